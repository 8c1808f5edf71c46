"""A base model as far as it is known without loading it: its files and its module graph, opened once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from neuroada_cli.hub.fingerprint import fingerprint
from neuroada_cli.hub.loading import ModelTask, skeleton
from neuroada_cli.hub.weights import Weights, open_weights


@dataclass(frozen=True)
class Base:
    """folder holds the files; skeleton is the module graph on the meta device, weights the files' tensors."""

    folder: Path
    skeleton: nn.Module
    weights: Weights

    @cached_property
    def parameters(self) -> int:
        """How many numbers the files hold (a tied weight is stored, and counted, once)."""
        return self.weights.parameters

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What makes this base this base (`hub.fingerprint`)."""
        return fingerprint(self.folder, self.weights)


def open_base(
    folder: Path,
    task: ModelTask = "causal-lm",
    num_labels: int | None = None,
    trust_remote_code: bool = False,
) -> Base:
    """The base in a checked local folder (`hub.resolve_model`). Raises ModelError."""
    return Base(folder, skeleton(folder, task, num_labels, trust_remote_code), open_weights(folder))
