"""Seeded damage to bytes: what disks, copies and people who mean harm do to files."""

from __future__ import annotations

import random

INTERESTING = [
    b"\0",
    b"\xff",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"0",
    b"9",
    b"e",
    b"\\",
    b"\n",
    b"\x1b",
]
WORDS = [
    b"null", b"true", b"NaN", b"1e999", b"-1", b"\\ud800", b"9" * 30, b"F64", b"I64", b"[[[[", b"../x", b"{}",
    b"\xc3\x28", b'""', b"0.5", b"!!python/object:os.system", b"&a", b"*a", b"<<: ", b"\t", b"2024-13-45",
]  # fmt: skip


def mutate(data: bytes, chance: random.Random, begin: int = 0, end: int | None = None) -> bytes:
    """One to four edits between two offsets: flips, overwrites, insertions, deletions, repeats, a cut."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        stop = len(data) if end is None else min(end, len(data))
        at = chance.randrange(begin, max(begin + 1, stop))
        data = _edit(data, at, chance)
    return data


def _edit(data: bytes, at: int, chance: random.Random) -> bytes:
    kind = chance.randrange(8)
    size = chance.choice((1, 1, 2, 4, 8, 32))
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + chance.choice(INTERESTING) + data[at + 1 :]
    if kind == 2:
        return data[:at] + chance.choice(WORDS) + data[at:]
    if kind == 3:
        return data[:at] + data[at + size :]
    if kind == 4:
        return data[:at] + data[at : at + size] * 2 + data[at + size :]
    if kind == 5:
        return data[:at] + bytes(chance.randrange(256) for _ in range(size)) + data[at + size :]
    if kind == 6 and chance.random() < 0.3:
        return data[:at]
    digits = [i for i in range(at, min(at + 64, len(data))) if 48 <= data[i] <= 57]
    if digits:  # a number that is another one: the damage that parses
        return data[: digits[0]] + str(chance.randrange(10)).encode() + data[digits[0] + 1 :]
    return data[:at] + chance.choice(WORDS) + data[at + size :]
