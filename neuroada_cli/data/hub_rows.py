"""Rows of a set on the hub.

Its files of text (JSON, CSV, TSV, lines) are read by us, as files here are: `datasets` gives JSON types of
its own, by which a column of ISO dates becomes times, and a whole number beyond 64 bits a float. Everything
else is typed by whoever made it, and comes through `datasets`.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroada_cli.data.formats import PACKED
from neuroada_cli.data.reading import PLAIN, FileRows, read_as
from neuroada_cli.data.typed import TypedRows

OURS = {"json": (".jsonl", ".json"), "csv": (".csv", ".tsv"), "text": (".txt",)}  # of its readers


def hub_rows(name: str, config: str | None, split: str, key: str | None = None) -> FileRows:
    """The rows of a split; key: `data.field`.

    Raises DataError for malformed files, and whatever `datasets` raises.
    """
    import datasets

    builder = datasets.load_dataset_builder(name, config)
    if files := _text_files(builder, split):
        here = datasets.DownloadManager().download(files)
        parts = [
            read_as(Path(path), urllib.parse.urlsplit(file).path, f"{name}/{file.rpartition('/')[2]}", key)
            for path, file in zip(here, files, strict=True)
        ]
        return parts[0] if len(parts) == 1 else FileRows([row for part in parts for row in part.rows])
    found = datasets.load_dataset(name, config, split=split)
    made = TypedRows(f"{name} {split}", of_json=builder.info.builder_name == "json")
    return FileRows(made.rows(found.with_format("arrow")[:]), said=made.said)


def _text_files(builder: Any, split: str) -> Sequence[str]:
    """The addresses of a split's files, where all of them are text that we read; else none."""
    endings = OURS.get(builder.name, ())
    files = [str(file) for file in (getattr(builder.config, "data_files", None) or {}).get(split, ())]
    typed = builder.info.features is not None or getattr(builder.config, "field", None) is not None
    ours = [_unpacked(file).endswith(endings) and _unpacked(file).endswith(PLAIN) for file in files]
    return files if endings and all(ours) and not typed else ()


def _unpacked(file: str) -> str:
    for packed in PACKED:
        file = file.removesuffix(packed)
    return file
