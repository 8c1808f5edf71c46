"""What is known of a method before it is built: one record each, without torch.

Recipes, plans, space on the disk, adapters and merging ask here instead of knowing methods by name.

O = output neurons, I = inputs
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neuroada_cli.delta.names import blocks_of
from neuroada_cli.errors import RecipeError, ResourceError, nearest


@dataclass(frozen=True)
class Sizes:
    """What a method's numbers follow from.

    shapes  target -> (O, I)
    chosen  connections of the selection, whether they train or not
    total   numbers in the model's files
    width   numbers in a hidden state
    rank    of the recipe's section `peer`
    """

    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    chosen: int = 0
    total: int = 0
    width: int = 0
    rank: int = 8


# of parameters that a method adds: name -> shape, 0 for a size that only the base tells
AddedShapes = Callable[[int, Mapping[str, int], Mapping[str, int] | None], dict[str, tuple[int, ...]]]


@dataclass(frozen=True)
class MethodFacts:
    """One method.

    make          what builds it: a callable, or "module:name", imported when it is needed
    about         what `train.method` says of it
    only_fresh    only parameters that the base lacks train
    chosen        the chosen connections train, and nothing else
    everything    every parameter of the model trains
    biases        every bias of the model trains
    peer          keys of the recipe's section `peer` that it takes
    delta_dtype   takes `train.delta_dtype`
    narrow        trains in the data type of the weights, the optimizer's state included
    reselects     takes `train.reselect_every`
    quantized     trains on bases in 4 or 8 bits
    packs         trains on packed rows
    tiles         needs `select.tile`
    package       what has to be installed for it, besides what always is
    linear_only   puts layers of its own beside linear ones, and knows no experts that share one tensor
    predictable   its memory can be predicted without weights
    unmergeable   why no plain checkpoint can hold what it learns; None: one can
    shards        what builds it on a model whose rows are dealt to ranks: "module:name", taking the ranks
    in_prompts    changes what a model makes of a prompt, and nothing of a text that has none
    folds         writes values of its own into chosen entries of shared weights (the bench puts them back)
    marks         what the names of parameters hold that it adds; None: it adds none
    added         their shapes: (rank, target -> O, layer -> I where the base is known). Raises ValueError
    merged_layers its added layers are merged by their library into whole weights
    count         how many numbers train; None: counted on a model without weights
    refuses       hub's name of a model's task -> why the method cannot work there
    moments       bytes in a checkpoint beside the chosen connections' places and values:
                  (numbers that train, Sizes, bytes of a weight, bytes of a delta)
    """

    make: str | Callable[..., Any]
    about: str = ""
    only_fresh: bool = False
    chosen: bool = False
    everything: bool = False
    biases: bool = False
    peer: tuple[str, ...] = ()
    delta_dtype: bool = False
    narrow: bool = False
    reselects: bool = False
    quantized: bool = False
    packs: bool = True
    tiles: bool = False
    package: str | None = None
    linear_only: bool = False
    predictable: bool = True
    unmergeable: str | None = None
    in_prompts: bool = False
    shards: str | None = None
    folds: bool = False
    marks: str | None = None
    added: AddedShapes | None = None
    merged_layers: bool = False
    count: Callable[[Sizes], int] | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    moments: Callable[[int, Sizes, int, int], int] = lambda n, sizes, weight, delta: 3 * 4 * n

    def build(
        self,
        peer: Mapping[str, Any] | None = None,
        seed: int = 0,
        delta_dtype: str = "fp32",
        reselects: bool = False,
    ) -> Any:
        """A fresh method: the `neuroada_cli.methods.protocol.Method` of one model.

        peer  settings of the recipe's section;  seed  of what it draws at random
        delta_dtype, reselects  for methods that take them
        Raises ResourceError where a package that it needs is not installed.
        """
        arguments: dict[str, Any] = {}
        if self.peer:
            arguments = {key: value for key, value in (peer or {}).items() if key in self.peer}
            arguments["seed"] = seed
        if self.delta_dtype:
            arguments["delta_dtype"] = delta_dtype
        if self.reselects:
            arguments["reselects"] = reselects
        return self.factory()(**arguments)

    def build_sharded(self, ranks: Any) -> Any:
        """A fresh method for a model whose rows are dealt to `ranks`. Raises RecipeError where it cannot."""
        if self.shards is None:
            raise RecipeError("has no way to train a sharded model", "train.method", "use neuroada")
        return _imported(self.shards)(ranks)

    def factory(self) -> Callable[..., Any]:
        """What builds it, imported. Raises ResourceError where a package that it needs is not installed."""
        self.require()
        if not isinstance(self.make, str):
            return self.make
        return _imported(self.make)

    def require(self) -> None:
        """Raises ResourceError, before any model is there, when a package that it needs is not installed."""
        if self.package is not None:
            require_package(self.package, str(self.make).rpartition(":")[2].lower())


def _imported(named: str) -> Callable[..., Any]:
    module, _, name = named.partition(":")
    made: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return made


def require_package(package: str, what: str, extra: str | None = None) -> None:
    """Raises ResourceError naming what needs the package, when it is not installed.

    extra  of ours that brings it, where it is not called like the package
    """
    if importlib.util.find_spec(package) is None:
        raise ResourceError(
            f"{what} needs the package {package}, which is not installed",
            fix=f"pip install 'neuroada-cli[{extra or package}]'",
        )


# ---------------------------------------------------------------------------------------------------
# Counting, shapes and bytes, as arithmetic


def edited_blocks(targets: Iterable[str]) -> list[str]:
    """The blocks after which LoReFT edits states. Raises ValueError when no target lies in one."""
    blocks = blocks_of(targets)
    if not blocks:
        raise ValueError("has no numbered block among the targets, after which its states could be edited")
    return blocks


def _lora_count(sizes: Sizes) -> int:
    """A [R, I] and B [O, R] of every target."""
    return sum(sizes.rank * (outputs + inputs) for outputs, inputs in sizes.shapes.values())


def _dora_count(sizes: Sizes) -> int:
    """LoRA's, and a magnitude per neuron."""
    return _lora_count(sizes) + sum(outputs for outputs, _ in sizes.shapes.values())


def _loreft_count(sizes: Sizes) -> int:
    """R and W [R, D] and b [R] of every block."""
    return len(edited_blocks(sizes.shapes)) * sizes.rank * (2 * sizes.width + 1)


def _lora_added(
    rank: int, outputs: Mapping[str, int], inputs: Mapping[str, int] | None
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in outputs.items():
        shapes[f"{name}.lora_A.default.weight"] = (rank, inputs[name] if inputs else 0)
        shapes[f"{name}.lora_B.default.weight"] = (rows, rank)
    return shapes


def _dora_added(
    rank: int, outputs: Mapping[str, int], inputs: Mapping[str, int] | None
) -> dict[str, tuple[int, ...]]:
    magnitudes = {f"{name}.lora_magnitude_vector.default.weight": (rows,) for name, rows in outputs.items()}
    return _lora_added(rank, outputs, inputs) | magnitudes


def _loreft_added(
    rank: int, outputs: Mapping[str, int], inputs: Mapping[str, int] | None
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in edited_blocks(outputs):
        width = inputs[block] if inputs else 0
        shapes[f"{block}.loreft.rotate.parametrizations.weight.original"] = (rank, width)
        shapes[f"{block}.loreft.source.weight"] = (rank, width)
        shapes[f"{block}.loreft.source.bias"] = (rank,)
    return shapes


def _delta_moments(n: int, sizes: Sizes, weight: int, delta: int) -> int:
    return 2 * delta * n


def _mask_moments(n: int, sizes: Sizes, weight: int, delta: int) -> int:
    """Exact values of the chosen entries, and moments of every weight of the targets."""
    return weight * (n + 2 * sum(outputs * inputs for outputs, inputs in sizes.shapes.values()))


# ---------------------------------------------------------------------------------------------------
# The methods

_HERE = "neuroada_cli.methods"
NEUROADA = MethodFacts(
    f"{_HERE}.neuroada:NeuroAda", "neuroada", chosen=True, folds=True, delta_dtype=True, reselects=True,
    quantized=True, count=lambda sizes: sizes.chosen, moments=_delta_moments,
    shards=f"{_HERE}.sharded:ShardedNeuroAda",
)  # fmt: skip
LORA = MethodFacts(
    f"{_HERE}.peft:lora", "lora and dora (need peft)", peer=("rank", "alpha", "dropout"), package="peft",
    quantized=True, predictable=False, linear_only=True, marks=".lora_", added=_lora_added,
    merged_layers=True, count=_lora_count,
)  # fmt: skip
LOREFT_STAYS = (
    "was trained by loreft, which edits states of the prompt and no weight: no plain checkpoint can hold that"
)
ONE_STACK = "edits a prompt's states in one stack of blocks, and this model"
LOREFT_REFUSES = {
    "seq2seq-lm": f"{ONE_STACK} has an encoder and a decoder",
    "image-text-to-text": f"{ONE_STACK} reads pictures by another",
    "image-classification": f"{ONE_STACK} reads no prompt",
}
METHODS: dict[str, MethodFacts] = {
    "neuroada": NEUROADA,
    "mask": MethodFacts(
        f"{_HERE}.mask:Mask", "mask", chosen=True, folds=True, narrow=True,
        count=lambda sizes: sizes.chosen, moments=_mask_moments,
    ),
    "full": MethodFacts(
        f"{_HERE}.full:Full", "full", everything=True, narrow=True,
        count=lambda sizes: sizes.total, moments=lambda n, sizes, weight, delta: 3 * weight * n,
    ),
    "lora": LORA,
    "dora": dataclasses.replace(
        LORA, make=f"{_HERE}.peft:dora", about="", added=_dora_added, count=_dora_count
    ),
    "loreft": MethodFacts(
        f"{_HERE}.loreft:LoReft", "loreft", peer=("rank", "dropout", "positions"), packs=False,
        predictable=False, unmergeable=LOREFT_STAYS, in_prompts=True, marks=".loreft.",
        added=_loreft_added, count=_loreft_count, refuses=LOREFT_REFUSES,
    ),
    "smt": MethodFacts(
        f"{_HERE}.smt:Smt", "smt (with select.tile)", chosen=True, folds=True, tiles=True,
        count=lambda sizes: sizes.chosen, moments=_delta_moments,
    ),
    "bitfit": MethodFacts(f"{_HERE}.bitfit:BitFit", "bitfit (all biases)", biases=True),
    "head": MethodFacts(
        f"{_HERE}.bitfit:Head", "head (only a fresh head, the control)", only_fresh=True, count=lambda _: 0
    ),
}  # fmt: skip


def check_method(name: str) -> None:
    """Raises RecipeError with a did-you-mean for a name that is none of METHODS."""
    if name not in METHODS:
        raise RecipeError(f"train.method={name[:80]} is not a method", fix=nearest(name, METHODS))


def facts_of(name: str) -> MethodFacts:
    """The record of a method. Raises RecipeError with a did-you-mean for a name that is none of METHODS."""
    check_method(name)
    return METHODS[name]
