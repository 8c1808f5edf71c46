"""The hash of encoded rows, by which a run is gone on with: what a step would see differently changes it."""

from __future__ import annotations

import dataclasses

from neuroada_cli.data.batch import IGNORED, Encoded
from neuroada_cli.training.rows import hash_of

ROWS = [
    Encoded([5, 6, 7, 8], [IGNORED, IGNORED, 7, 8], 0, prompt=2),
    Encoded([9, 10, 11], [IGNORED, 10, 11], 1, prompt=1),
]


def test_the_same_rows_have_the_same_hash() -> None:
    assert hash_of(ROWS) == hash_of([dataclasses.replace(row) for row in ROWS])


def test_whatever_differs_makes_another_hash() -> None:
    first = ROWS[0]
    others = [
        dataclasses.replace(first, input_ids=[5, 6, 7, 9]),
        dataclasses.replace(first, labels=[IGNORED, 6, 7, 8]),  # the same tokens, more of them learnt
        dataclasses.replace(first, prompt=1),  # what LoReFT edits
        dataclasses.replace(first, prompt=None),
        dataclasses.replace(first, row=7),
        dataclasses.replace(first, type_ids=[0, 0, 1, 1]),
        dataclasses.replace(first, labels=1),
        dataclasses.replace(first, labels=1.0),
    ]
    hashes = {hash_of([row, ROWS[1]]) for row in [first, *others]}
    hashes |= {hash_of(ROWS[::-1]), hash_of(ROWS[:1])}
    assert len(hashes) == len(others) + 3


def test_a_token_does_not_wander_from_one_row_to_the_next() -> None:
    def parted(at: int) -> str:
        ids = [5, 6, 7, 8, 9, 10]
        return hash_of([Encoded(ids[:at], ids[:at], 0), Encoded(ids[at:], ids[at:], 1)])

    assert parted(2) != parted(3)
