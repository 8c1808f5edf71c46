"""A base model as far as it is known without loading it: its files and its module graph, opened once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.delta.finite import all_finite, broken_row
from neuroada_cli.delta.targets import Target, parameter_name
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.fingerprint import HASHES, fingerprint, hash_of
from neuroada_cli.hub.graph import Rules, module_graph, rules_of
from neuroada_cli.hub.kinds import CLASSIFIERS, ModelTask, Work
from neuroada_cli.hub.loading import body_of, is_pooler, model_task, skeleton
from neuroada_cli.hub.packed_base import refuse_packed
from neuroada_cli.hub.places import Places, Run
from neuroada_cli.hub.plausible import refuse_missing_blocks, refuse_other_shapes
from neuroada_cli.hub.positions import answer_positions_of, positions_of
from neuroada_cli.hub.ties import held_apart, untie
from neuroada_cli.hub.weights import WEIGHT_DTYPES, Weights, open_weights
from neuroada_cli.ranks.group import Ranks


@dataclass(frozen=True)
class Base:
    """folder holds the files, weights their tensors; graph is walked (`module_graph`).

    task, num_labels, trust_remote_code  of the model that is meant: which of transformers' classes it is
    attention  implementation that the recipe asks for; None: transformers chooses
    apart   parameters that the config ties, but not the files: they are not tied in the graph
    hashes  of the tensors that were read whole so far
    """

    folder: Path
    graph: nn.Module
    weights: Weights
    task: ModelTask = "causal-lm"
    num_labels: int | None = None
    trust_remote_code: bool = False
    apart: tuple[str, ...] = ()
    attention: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The module graph with its code, on the meta device: what can be run on tensors without memory."""
        model = skeleton(self.folder, self.task, self.num_labels, self.trust_remote_code, self.attention)
        untie(model, self.apart)
        return model

    @cached_property
    def rules(self) -> Rules:
        """What loading does to the files' tensors."""
        return rules_of(self.graph)

    @cached_property
    def places(self) -> Places:
        """Where the parameters lie in the files."""
        return Places(self.graph, self.weights, self.rules, lambda: self.skeleton)

    def runs(self, name: str, target: Target) -> list[list[Run]]:
        """Where a target's neurons lie in the files, once for each stored copy. Raises ModelError."""
        return self.places.copies(parameter_name(self.graph, name), target.layout)

    def matrices(
        self, name: str, target: Target, part: slice | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """(which neurons, their weights [O, I]), expert by expert, each read when it is asked for.

        part  of these neurons nothing but their part of the files is read; None: of all, and the stored
              tensors are hashed on the way
        """
        layout, runs = target.layout, self.runs(name, target)[0]
        first, last, _ = (part or slice(None)).indices(layout.shape[0])
        held: dict[str, Tensor] = {}
        for start in range(0, layout.shape[0], layout.outputs):
            rows = slice(max(first, start), min(last, start + layout.outputs))
            here = [cut for run in runs if (cut := run.within(rows)) is not None]
            if part is None:
                held = {cut.stored: held[cut.stored] for cut in here if cut.stored in held}
                held |= {cut.stored: self.read(cut.stored) for cut in here if cut.stored not in held}
            pieces = [
                self._cut_out(cut, layout.inputs) if part else cut.rows(held[cut.stored], layout.inputs)
                for cut in here
            ]
            if pieces:
                yield rows, pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _cut_out(self, run: Run, inputs: int) -> Tensor:
        """The weights of a run, without reading what lies before and behind them."""
        row = max(1, math.prod(self.weights.info(run.stored).shape[1:]))
        end = run.start + (run.count - 1) * run.across + (inputs - 1) * run.along + 1
        begin = run.start // row
        tensor = self.weights.tensor(run.stored, slice(begin, -(-end // row)))
        return replace(run, start=run.start - begin * row).rows(tensor, inputs)

    @cached_property
    def parameters(self) -> int:
        """How many numbers the files hold (a tied weight is stored, and counted, once)."""
        return self.weights.parameters

    @cached_property
    def positions(self) -> int | None:
        """How many tokens a row may have; None where the model sets no bound."""
        return positions_of(self.graph)

    @cached_property
    def answer_positions(self) -> int | None:
        """How many tokens an encoder-decoder's answer may have; None where the model sets no bound."""
        return answer_positions_of(self.graph)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What makes this base this base (`hub.fingerprint`), its large tensors by samples."""
        return fingerprint(self.folder, self.weights)

    def read(self, name: str) -> Tensor:
        """A tensor of the files, hashed on the way."""
        tensor = self.weights.tensor(name)
        self.hashes[name] = hash_of(tensor)
        return tensor

    def _read_sound(self, name: str) -> None:
        """Hash a tensor. Raises ModelError where it holds NaN or infinity: a merge would refuse it, when all
        is trained.
        """
        tensor = self.read(name)
        if tensor.dtype in WEIGHT_DTYPES and not all_finite(tensor):
            where = str(self.weights.info(name).file)
            raise ModelError(
                f"{name}: row {broken_row(tensor)} holds NaN or infinity", where, "download it again"
            )

    def read_in_turns(self, names: Collection[str], ranks: Ranks) -> None:
        """Hash these tensors, each by one of the ranks; and the others, where they are the smaller part.
        All ranks call it; where one raises ModelError, the others raise Followed.
        """
        wanted = [*names, *(self._smaller_part(names))]

        def read() -> None:
            for name in ranks.mine(wanted):
                self._read_sound(name)

        ranks.all_do(read)  # by itself: what one tells of its failure is not what others would tell of hashes
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
            self._read_sound(name)
        return self.fingerprint | {HASHES: dict(sorted(self.hashes.items()))}


def open_base(
    folder: Path,
    task: ModelTask | Work = "causal-lm",
    num_labels: int | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> Base:
    """The base in a checked local folder (`hub.resolve_model`).

    task       the class of model, or what it has to do
    attention  how it is going to compute it (`hub.load_model`)
    Raises ModelError, also for a model that cannot do it.
    """
    if isinstance(task, Work):
        task = model_task(folder, task, trust_remote_code)
    weights = open_weights(folder)
    refuse_packed(folder, weights)
    graph = module_graph(folder, task, num_labels, trust_remote_code)
    base = Base(folder, graph, weights, task, num_labels, trust_remote_code, attention=attention)
    inside = body_of(graph)

    def made_anew(name: str) -> bool:
        return task in CLASSIFIERS and (not inside(name) or is_pooler(name))

    stored = base.places.plain_names()
    if stored:
        refuse_missing_blocks(graph, weights, lambda name: name in stored or bool(base.places.names(name)))
    refuse_other_shapes(graph, base.weights, stored, made_anew)
    if apart := held_apart(graph, base.places, base.weights):
        untie(graph, apart)
        base = replace(base, apart=tuple(apart))  # with places of its own
    return base
