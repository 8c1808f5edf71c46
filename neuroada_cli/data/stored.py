"""Encoded rows of text in a file: a row is read when it is asked for, and only its place is held.

One tensor `tokens` int32 holds those of all rows, one behind the other: a token that is learnt as its id, any
other as -1 - id.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import torch

from neuroada_cli import files
from neuroada_cli.data.batch import IGNORED, Encoded
from neuroada_cli.data.encoding import EncodeReport
from neuroada_cli.data.lazy import Lazy, Positions
from neuroada_cli.errors import DataError, UserError
from neuroada_cli.files.safetensors_header import TensorInfo, read_header

BYTES = 4  # of a token
TOKENS, LENGTHS, ROWS, PROMPTS = "tokens", "lengths", "rows", "prompts"


class Stored(Lazy[Encoded]):
    """The rows of a file that `writing` wrote; report counts them.

    lengths  tokens of each
    Raises UserError, OSError, EOFError, KeyError, TypeError or ValueError for a file that is not as it was
    written.
    """

    def __init__(self, file: Path) -> None:
        self._where = file
        infos, about = read_header(file)
        self._bytes = Positions(file)  # held open: the cache may remove it meanwhile
        self.report = EncodeReport(**json.loads(about["report"]))
        self._begin = infos[TOKENS].offset
        self.lengths = self._numbers(infos[LENGTHS], "i")
        self._rows, self._prompts = self._numbers(infos[ROWS], "q"), self._numbers(infos[PROMPTS], "i")
        self._ends = array("q", accumulate(self.lengths))
        counted = (self._ends[-1], len(self.lengths), len(self._rows), len(self._prompts))
        rows = self.report.rows
        if counted != (self.report.tokens, rows, rows, rows) or infos[TOKENS].shape != (self._ends[-1],):
            raise ValueError(f"{file} holds {counted}, not what its report says")

    def _numbers(self, info: TensorInfo, code: str) -> array[int]:
        found = array(code)
        found.frombytes(self._bytes.read(info.offset, info.nbytes))
        return found

    def __len__(self) -> int:
        return len(self.lengths)

    def _at(self, place: int) -> Encoded:
        size, tokens = self.lengths[place], array("i")
        begin = self._begin + BYTES * (self._ends[place] - size)
        try:
            tokens.frombytes(self._bytes.read(begin, BYTES * size))
        except (OSError, EOFError):
            raise DataError("can no longer be read", str(self._where), "start again") from None
        ids = [token if token >= 0 else -1 - token for token in tokens]
        labels = [token if token >= 0 else IGNORED for token in tokens]
        return Encoded(ids, labels, self._rows[place], prompt=self._prompts[place])


class Writer:
    """Takes encoded rows part by part, as `encode_into` gives them."""

    def __init__(self, growing: files.Growing) -> None:
        self._growing = growing
        self._lengths, self._rows, self._prompts = array("i"), array("q"), array("i")

    def extend(self, rows: Sequence[Encoded], /) -> None:
        tokens = array("i")
        for row in rows:
            assert isinstance(row.labels, list)
            pairs = zip(row.input_ids, row.labels, strict=True)
            tokens.extend([token if label != IGNORED else -1 - token for token, label in pairs])
            self._lengths.append(len(row))
            self._rows.append(row.row)
            self._prompts.append(row.prompt or 0)
        if tokens:
            self._growing.append(torch.frombuffer(tokens, dtype=torch.int32))

    def finish(self, report: EncodeReport) -> None:
        others = {
            LENGTHS: torch.frombuffer(self._lengths, dtype=torch.int32),
            ROWS: torch.frombuffer(self._rows, dtype=torch.int64),
            PROMPTS: torch.frombuffer(self._prompts, dtype=torch.int32),
        }
        self._growing.finish(others, {"report": json.dumps(asdict(report))})


@contextmanager
def writing(file: Path) -> Iterator[Writer]:
    """A file of encoded rows, all or nothing; `finish` inside. Raises ResourceError."""
    with files.grown_tensors(file, TOKENS, torch.int32) as growing:
        yield Writer(growing)


def opened(file: Path) -> Stored | None:
    """None for a file that is not there, or not as it was written."""
    if not file.is_file():
        return None
    try:
        return Stored(file)
    except (UserError, OSError, EOFError, KeyError, TypeError, ValueError, IndexError):
        return None


def lengths_of(rows: Sequence[Encoded]) -> Sequence[int]:
    """How many tokens each row has, without reading one that lies in a file."""
    return rows.lengths if isinstance(rows, Stored) else [len(row) for row in rows]
