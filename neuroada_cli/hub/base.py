"""A base model as far as it is known without loading it: its files and its module graph, opened once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from neuroada_cli.hub.fingerprint import HASHES, fingerprint, hash_of
from neuroada_cli.hub.graph import module_graph
from neuroada_cli.hub.kinds import ModelTask, Work
from neuroada_cli.hub.loading import model_task, skeleton
from neuroada_cli.hub.weights import Weights, open_weights
from neuroada_cli.ranks.group import Ranks


@dataclass(frozen=True)
class Base:
    """folder holds the files, weights their tensors; graph is walked (`module_graph`).

    task, num_labels, trust_remote_code  of the model that is meant: which of transformers' classes it is
    hashes  of the tensors that were read whole so far
    """

    folder: Path
    graph: nn.Module
    weights: Weights
    task: ModelTask = "causal-lm"
    num_labels: int | None = None
    trust_remote_code: bool = False
    hashes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The module graph with its code, on the meta device: what can be run on tensors without memory."""
        return skeleton(self.folder, self.task, self.num_labels, self.trust_remote_code)

    @cached_property
    def parameters(self) -> int:
        """How many numbers the files hold (a tied weight is stored, and counted, once)."""
        return self.weights.parameters

    @cached_property
    def positions(self) -> int | None:
        """How many tokens a row may have; None where the model sets no bound."""
        config = self.graph.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        if limit is None:
            return None
        for name, module in self.graph.named_modules():
            # RoBERTa's positions start behind the padding token's, so it takes fewer than its config says
            if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
                limit = min(limit, module.num_embeddings - module.padding_idx - 1)
        return int(limit)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What makes this base this base (`hub.fingerprint`), its large tensors by samples."""
        return fingerprint(self.folder, self.weights)

    def read(self, name: str) -> Tensor:
        """A tensor of the files, hashed on the way."""
        tensor = self.weights.tensor(name)
        self.hashes[name] = hash_of(tensor)
        return tensor

    def read_in_turns(self, names: Collection[str], ranks: Ranks) -> None:
        """Hash these tensors, each by one of the ranks; and the others, where they are the smaller part."""
        wanted = [*names, *(self._smaller_part(names))]
        for name in ranks.mine(wanted):
            self.read(name)
        for hashes in ranks.collected({name: self.hashes[name] for name in ranks.mine(wanted)}):
            self.hashes.update(hashes)

    def _smaller_part(self, read: Collection[str]) -> list[str]:
        """What was not read, where that is the smaller part of the files."""
        unread = [name for name in self.weights if name not in read]
        small = 2 * sum(self.weights.info(name).nbytes for name in unread) < self.weights.nbytes
        return unread if small else []

    def fingerprint_as_read(self, everything: bool = False) -> dict[str, Any]:
        """The fingerprint with the hashes of all tensors that were read whole.

        everything  read the others now; so it is done, too, where they are the smaller part of the files
        """
        unread = [name for name in self.weights if name not in self.hashes]
        for name in unread if everything else self._smaller_part(self.hashes):
            self.read(name)
        return self.fingerprint | {HASHES: dict(sorted(self.hashes.items()))}


def open_base(
    folder: Path,
    task: ModelTask | Work = "causal-lm",
    num_labels: int | None = None,
    trust_remote_code: bool = False,
) -> Base:
    """The base in a checked local folder (`hub.resolve_model`).

    task  the class of model, or what it has to do
    Raises ModelError, also for a model that cannot do it.
    """
    if isinstance(task, Work):
        task = model_task(folder, task, trust_remote_code)
    graph = module_graph(folder, task, num_labels, trust_remote_code)
    return Base(folder, graph, open_weights(folder), task, num_labels, trust_remote_code)
