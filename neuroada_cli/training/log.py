"""What a run says about itself while it runs: metrics.jsonl, and one live line (or plain lines in a log)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import ModelError


class MetricsLog:
    """metrics.jsonl: one object per optimizer step ("train"), per evaluation ("eval") and per answer that was
    written at one ("sample").
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: dict[str, Any]) -> None:
        files.append_jsonl(self.path, entry)

    def settled(self) -> int:
        """Bytes so far, all of them on the disk: a checkpoint must not know of lines that may yet be lost."""
        return files.settle(self.path)

    def check(self, position: int) -> None:
        """Raises ModelError unless the first `position` bytes are whole entries, as they were at a save."""
        read_metrics(self.path, position)

    def cut(self, position: int) -> None:
        """Forget what was logged after a checkpoint, since those steps run again."""
        if self.path.exists() and self.path.stat().st_size > position:
            files.cut(self.path, position)


def read_metrics(path: Path, nbytes: int | None = None) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a line torn by a kill at the very end is left out.

    nbytes  only those in the first so many bytes
    Raises ModelError naming the line that is no entry.
    """
    entries = files.read_jsonl(path, nbytes)
    for number, entry in enumerate(entries, start=1):
        if not _is_entry(entry):
            raise ModelError("is no entry of a training", f"{path}:{number}")
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether everything is there that is read again, and is what it should be."""
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return False
    if entry.get("kind") == "sample":
        texts = all(isinstance(entry.get(key), str) for key in ("prompt", "answer", "reference"))
        return texts and type(entry.get("row")) is int and type(entry.get("ended")) is bool
    if not _is_number(entry.get("loss")):
        return False
    if entry.get("kind") == "train":
        return _is_number(entry.get("lr")) and _is_number(entry.get("grad_norm"))
    metric, name = entry.get("metric"), entry.get("metric_name")
    named = metric is None if name is None else isinstance(name, str) and _is_number(metric)
    return entry.get("kind") == "eval" and named and type(entry.get("best")) is bool


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
