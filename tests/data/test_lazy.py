"""Sequences whose elements are made when they are asked for: they are the lists that they stand for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neuroada_cli.data.lazy import Lazy, Made, chosen, fingerprint_of, joined

NUMBERS = st.lists(st.integers(0, 9), max_size=5)


def lazy(numbers: list[int]) -> Lazy[int]:
    return Made(numbers, lambda place, number: 10 * place + number, fingerprint_of(numbers))


def plain(numbers: list[int]) -> list[int]:
    return [10 * place + number for place, number in enumerate(numbers)]


def same(found: Lazy[int], expected: list[int]) -> None:
    assert isinstance(found, Lazy)
    assert len(found) == len(expected)
    assert list(found) == expected
    assert [found[place] for place in range(-len(expected), len(expected))] == expected + expected
    assert found[1:3] == expected[1:3]
    assert found[::-1] == expected[::-1]


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_joined_parts_are_their_sum(parts: list[list[int]]) -> None:
    found = joined([lazy(part) for part in parts])
    assert isinstance(found, Lazy)
    same(found, [each for part in parts for each in plain(part)])
    half = joined([lazy(parts[0]), *map(plain, parts[1:])])
    assert list(half) == list(found)


@given(NUMBERS, st.data())
def test_chosen_places_are_those_elements(numbers: list[int], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=6)) if numbers else []
    found = chosen(lazy(numbers), places)
    assert isinstance(found, Lazy)
    same(found, [plain(numbers)[place] for place in places])


@given(NUMBERS, st.lists(st.integers(0, 4), max_size=6), st.lists(st.integers(0, 4), max_size=6))
def test_other_places_have_another_fingerprint(numbers: list[int], one: list[int], other: list[int]) -> None:
    source = lazy(numbers)
    found = [fingerprint_of(chosen(source, places)) for places in (one, other)]
    assert (found[0] == found[1]) is (one == other)
    assert source.fingerprint() not in found
