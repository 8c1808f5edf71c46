"""Encoded rows are kept in the user's cache folder, so that the same ones are encoded once.

The name of a file is a hash of all that its content depends on: every row, the tokenizer as it stands, the
settings, and the code that encodes. Whatever of it changes leads to another name, and an old file is never
read again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from neuroada_cli import files
from neuroada_cli.data import encoding, seams
from neuroada_cli.data.batch import Encoded, Example
from neuroada_cli.data.encoding import EncodeReport
from neuroada_cli.errors import UserError
from neuroada_cli.files.cached import keep_to, used
from neuroada_cli.hub.endings import endings
from neuroada_cli.hub.tokenizer_class import without_calls
from neuroada_cli.machine.cache import cache_folder

MANY = 1000  # rows, below which encoding is as fast as looking
MOST_BYTES = 4 << 30  # of the folder
FOLDER, ENDING = "rows", ".safetensors"
Made = tuple[list[Encoded], EncodeReport]


def encoded_once(
    examples: Sequence[Example], tokenizer: Any, settings: Sequence[object], make: Callable[[], Made]
) -> Made:
    """What `make` gives, or gave before. A cache that cannot be written is none.

    settings  what the result depends on beside rows and tokenizer
    """
    own = _state(tokenizer) if len(examples) >= MANY else None
    if own is None or any(example.pictures for example in examples):
        return make()
    digest = hashlib.sha256(json.dumps([_rules(), repr(settings), own]).encode())
    for example in examples:
        digest.update(repr(example).encode("utf-8", "surrogatepass") + b"\n")
    file = cache_folder() / FOLDER / f"{digest.hexdigest()}{ENDING}"
    if (found := _read(file)) is not None:
        used(file)
        return found
    made = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, *made)
    except (UserError, OSError):
        return made
    keep_to(file.parent, ENDING, MOST_BYTES)
    return made


def _state(tokenizer: Any) -> str | None:
    """Everything that a tokenizer's result depends on; None for one that does not say it, or whose code is
    not transformers' own.
    """
    backend = getattr(without_calls(tokenizer), "backend_tokenizer", None)
    kind = type(tokenizer)
    if backend is None or not kind.__module__.startswith("transformers."):
        return None
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    ends = sorted(endings(tokenizer).ids)
    return json.dumps([kind.__qualname__, special, ends, repr(tokenizer), backend.to_str()])


@lru_cache(maxsize=1)
def _rules() -> list[str]:
    """The code that encodes, and the libraries' versions."""
    source = b"".join(Path(str(module.__file__)).read_bytes() for module in (encoding, seams))
    versions = [importlib.metadata.version(package) for package in ("transformers", "tokenizers")]
    return [hashlib.sha256(source).hexdigest(), Path(__file__).read_text(encoding="utf-8"), *versions]


def _write(file: Path, rows: Sequence[Encoded], report: EncodeReport) -> None:
    labels = [label for row in rows for label in (row.labels if isinstance(row.labels, list) else [])]
    tensors = {
        "ids": torch.tensor([token for row in rows for token in row.input_ids], dtype=torch.int32),
        "labels": torch.tensor(labels, dtype=torch.int32),
        "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int64),
        "rows": torch.tensor([row.row for row in rows], dtype=torch.int64),
        "prompts": torch.tensor([row.prompt or 0 for row in rows], dtype=torch.int64),
    }
    files.write_tensors(file, tensors, {"report": json.dumps(asdict(report))})


def _read(file: Path) -> Made | None:
    """None for a file that is not there, or not as it was written."""
    if not file.is_file():
        return None
    try:
        tensors, about = files.read_tensors(file)
        report = EncodeReport(**json.loads(about["report"]))
        ids, labels = tensors["ids"].tolist(), tensors["labels"].tolist()
        lengths = tensors["lengths"].tolist()
        if not len(ids) == len(labels) == sum(lengths) == report.tokens or len(lengths) != report.rows:
            return None
        rows, at = [], 0
        for size, row, prompt in zip(
            lengths, tensors["rows"].tolist(), tensors["prompts"].tolist(), strict=True
        ):
            rows.append(Encoded(ids[at : at + size], labels[at : at + size], row, prompt=prompt))
            at += size
        return rows, report
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None
