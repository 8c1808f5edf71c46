"""Guesses of what a row writes next, looked up where its last tokens stood before; what they are worth.

A guess is asked together with the token before it and kept only where it is the most likely token, so it
saves passes through the model and changes no text. The idea is prompt lookup decoding
(https://github.com/apoorvumang/prompt-lookup-decoding), here for a batch of rows that learn from each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SAME = 3  # tokens in a row that have to stand there, too
DEEPEST = 16  # tokens guessed at once
REMEMBERED = 1 << 16  # places that are kept of other rows' texts
DECAY = 0.9  # per pass: what a guess was worth lately counts more

Place = tuple[list[int], int]


@dataclass
class Hits:
    """Guessed tokens that were right, of those that were looked at."""

    right: float = 1.0
    seen: float = 2.0

    def count(self, right: int, seen: int) -> None:
        self.right, self.seen = DECAY * self.right + right, DECAY * self.seen + seen

    def share(self, prior: float = 0.5) -> float:
        return (self.right + 2 * prior) / (self.seen + 2)


@dataclass
class Row:
    """ids: the prompt and what was written behind it; places of its own, hits, and its present guess."""

    ids: list[int]
    begun: int = field(init=False)
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    hits: Hits = field(default_factory=lambda: Hits(0.0, 0.0))
    guess: list[int] = field(default_factory=list)
    own: bool = True

    def __post_init__(self) -> None:
        self.ids = list(self.ids)
        self.begun = len(self.ids)
        for at in range(SAME, self.begun):
            self.places[tuple(self.ids[at - SAME : at])] = at

    @property
    def written(self) -> list[int]:
        return self.ids[self.begun :]


class Lookup:
    """What rows have written so far, and how often a guess from it came true."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], Place] = {}
        self._hits = {True: Hits(), False: Hits()}  # from a row's own text, from others'

    def guess(self, row: Row, most: int) -> float:
        """Sets `row.guess`, of at most `most` tokens; how likely each of them is, given those before it."""
        key, row.guess = tuple(row.ids[-SAME:]), []
        row.own = key in row.places
        source, at = (row.ids, row.places[key]) if row.own else self._places.get(key, (row.ids, len(row.ids)))
        for place in range(at, at + min(most, DEEPEST)):
            if place < len(source):
                row.guess.append(source[place])
            elif row.own and row.guess:  # a text that repeats itself goes on with what was just guessed
                row.guess.append(row.guess[place - len(source)])
        return row.hits.share(self._hits[row.own].share())

    def take(self, row: Row, tokens: Sequence[int]) -> None:
        """`row` went on with `tokens`, its end among them."""
        right = agreeing(row.guess, tokens)
        if row.guess:
            seen = right + (right < min(len(row.guess), len(tokens)))
            for hits in (row.hits, self._hits[row.own]):
                hits.count(right, seen)
        if len(self._places) > REMEMBERED:
            self._places.clear()
        for token in tokens:
            key = tuple(row.ids[-SAME:])
            row.places[key] = len(row.ids)
            self._places[key] = (row.ids, len(row.ids))
            row.ids.append(token)


def agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def depth(likely: Sequence[tuple[int, float]], overhead: int) -> int:
    """How many guessed tokens are worth asking of every row of a batch.

    likely    of each row: how many tokens are guessed, how likely each is
    overhead  what a pass costs beside its tokens, in tokens
    A right one saves its row a share of a pass and the token's own turn; each is computed for all rows.
    """
    rows = len(likely)
    saved = overhead / rows + 1
    for deeper in range(1, DEEPEST + 1):
        right = sum(share**deeper for count, share in likely if count >= deeper)
        if right * saved <= rows:
            return deeper - 1
    return DEEPEST
