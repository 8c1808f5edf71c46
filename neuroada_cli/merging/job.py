"""One merge from what the user named to a finished folder: checked, prepared, written.

Shared by `neuroada merge` and by exports of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.find import open_found
from neuroada_cli.adapter.folder import Adapter, AdapterFolder
from neuroada_cli.delta.quantized import KINDS as QUANTIZED_KINDS
from neuroada_cli.errors import ModelError, OutputError, RecipeError
from neuroada_cli.files.folders import is_model
from neuroada_cli.hub.stored import main_dtype
from neuroada_cli.merging.folder import (
    carry_recipe,
    carry_template,
    copy_companions,
    merged_config,
    model_card,
    room_beside_weights,
)
from neuroada_cli.merging.merge import Merge
from neuroada_cli.merging.plan import Planned
from neuroada_cli.merging.several import Overlap, combine
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.file import check_base


@dataclass(frozen=True)
class Written:
    """nbytes of all tensors; left: what of the base's folder was not carried over."""

    nbytes: int
    left: list[str]


@dataclass(frozen=True)
class Job:
    """A merge that may begin.

    opened   the adapter folder;  adapter  what is in it, as it was trained
    merge    the plan and its tensors
    packed   how the base was quantised in training, or None
    others   further adapter folders that are added to the first, with the weight of each, the first's too
    """

    opened: AdapterFolder
    adapter: Adapter
    merge: Merge
    packed: str | None
    others: tuple[AdapterFolder, ...] = ()
    weights: tuple[float, ...] = (1.0,)
    overlap: Overlap | None = None

    @property
    def folder(self) -> Path:
        return self.opened.folder

    @property
    def parts(self) -> list[tuple[float, str]]:
        """(weight, name) of several adapters; of one alone nothing."""
        names = [_name(opened.folder) for opened in (self.opened, *self.others)]
        return list(zip(self.weights, names, strict=True)) if self.overlap is not None else []

    @property
    def nbytes(self) -> int:
        """What the folder will take at most."""
        base = self.merge.base.folder
        beside = room_beside_weights(base)
        return sum(entry.nbytes for entry in self.merge.plan) + beside

    def write(
        self,
        folder: Path,
        max_shard_bytes: int | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> Written:
        """Fill an existing folder: config and tokenizer (which have to load there), weights, recipe, card.

        max_shard_bytes  default: the base's own shards;  on_bytes  is told of every tensor that is written
        Raises NumericsError for a result that is not finite, ModelError for a tokenizer that could not be
        loaded from there, ResourceError for the disk.
        """
        base, merge = self.merge.base, self.merge
        recipe = adapted.recipe_of(adapted.Target(str(self.folder), self.opened))
        data = recipe.data if recipe and not self.others else None
        changed = merged_config(hub.read_config(base.folder), merge.target, merge.adapter, base.graph)
        files.write_json(folder / "config.json", changed)
        left = copy_companions(base.folder, folder, base.trust_remote_code)
        if data is not None and data.chat_template is not None:
            carry_template(self.opened, folder)
        nbytes = _write_weights(merge, folder, max_shard_bytes, on_bytes)
        if not self.others:  # no recipe of one of them says what their sum was trained on
            carry_recipe(self.opened, folder)
        card = model_card(self.adapter, merge, data.date if data else None, self.parts)
        files.write_text(folder / "README.md", card)
        return Written(nbytes, left)


def prepare(
    source: Path,
    out: Path,
    base: str | None = None,
    dtype: str | None = None,
    onto: str = "original",
    trust_remote_code: bool = False,
    rename: bool = True,
    others: Sequence[Path] = (),
    weights: Sequence[float] | None = None,
) -> Job:
    """Everything that can be refused before a merge writes anything.

    source  a run or adapter folder;  out  what will be written
    others, weights  further ones that are added to it, and the factor of each, source's first
    base, dtype, onto  as `neuroada merge` takes them
    rename  a classifier gets the model's own names, and needs a head; else the files' names stay
    Raises ModelError (no adapter, wrong base, nothing to merge), RecipeError, OutputError for an out that
    would lie in or over the inputs.
    """
    _refuse_packed(dtype)
    opened, added = _opened(source), tuple(_opened(other) for other in others)
    folder = opened.folder
    trained = adapter = adapters.read_adapter(opened)
    facts = METHODS[method_of(adapter.settings)]
    if facts.unmergeable is not None:
        raise ModelError(
            facts.unmergeable, str(folder), "use it as it is: neuroada eval takes the run folder"
        )
    _refuse_empty(adapter, folder)
    base_folder = base_folder_of(adapter, base, trust_remote_code)
    overlap = None
    for each in (opened, *added):
        refuse_overlap(out, each.folder, base_folder)
    check_base(adapter.selection.fingerprint, base_folder)
    if weights is not None:
        pairs = [(str(folder), adapter), *((str(o.folder), adapters.read_adapter(o)) for o in added)]
        for place, other in pairs[1:]:
            _check_same_base(other, place, base_folder)
        adapter, overlap = combine(pairs, weights)
        trained = adapter
        _refuse_empty(adapter, folder)
    packed = _quantization(adapter, onto, folder)
    requantize = packed if onto == "dequantized" else None
    whole = hub.open_base(base_folder, adapter.task, num_labels(adapter), trust_remote_code)
    if facts.merged_layers:
        adapter = adapted.with_merged_layers(adapter, str(folder), whole, requantize)
    seen = _trained_dtype(adapter, whole.weights)
    target = hub.TORCH_DTYPES[dtype] if dtype else seen
    rename = rename and adapter.task in hub.CLASSIFIERS
    merge = Merge(whole, adapter, seen, target, rename, requantize)
    return Job(opened, trained, merge, packed, added, tuple(weights or (1.0,)), overlap)


def _check_same_base(adapter: Adapter, place: str, base: Path) -> None:
    try:
        check_base(adapter.selection.fingerprint, base)
    except ModelError as error:
        reason = error.what.removeprefix("is not the base that was selected and trained on: ")
        raise ModelError(
            f"was trained on another base than the first adapter: {reason}",
            place,
            "an adapter that was trained on the other's merged model is merged alone, onto that model",
        ) from None


def _name(folder: Path) -> str:
    """Of an adapter folder in a card: its run's name and, in a run, the checkpoint's."""
    inside = folder.name.startswith("checkpoint-") and folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if inside else folder.name


def _write_weights(
    merge: Merge, folder: Path, max_shard_bytes: int | None, on_bytes: Callable[[int], None]
) -> int:
    """The shards and, for more than one, their index. Returns the bytes of all tensors."""
    shards = merge.shards(max_shard_bytes)
    total = sum(entry.nbytes for shard in shards for entry in shard)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = hub.shard_name(number, len(shards))
        weight_map |= {entry.name: name for entry in shard}
        plan = [(entry.name, entry.dtype, entry.shape) for entry in shard]
        tensors = _counted(merge, shard, on_bytes)
        files.stream_tensors(folder / name, plan, tensors, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        files.write_json(folder / hub.INDEX, index)
    return total


def _counted(merge: Merge, shard: list[Planned], on_bytes: Callable[[int], None]) -> Iterator[Tensor]:
    for entry, tensor in zip(shard, merge.tensors(shard), strict=True):
        yield tensor
        on_bytes(entry.nbytes)


# ---------------------------------------------------------------------------------------------------
# What is refused


def _refuse_packed(dtype: str | None) -> None:
    if dtype in QUANTIZED_KINDS:
        raise RecipeError(
            "folding back into 4 or 8 bits would destroy the deltas: the largest weights of a block set its "
            "scale, and rounding moves them by more than training did",
            f"--dtype {dtype}",
            "merge in bf16 and quantise when loading",
        )
    if dtype is not None and dtype not in hub.TORCH_DTYPES:
        raise RecipeError(f"{dtype!r} is not a data type", "--dtype", f"choose {', '.join(hub.TORCH_DTYPES)}")


def _quantization(adapter: Adapter, onto: str, folder: Path) -> str | None:
    """How the base was quantised in training. Raises RecipeError for --onto without a quantised base."""
    kind = adapter.settings.get("quantization")
    if onto not in ("original", "dequantized"):
        raise RecipeError(f"{onto!r} is neither original nor dequantized", "--onto")
    if kind is None:
        if onto != "original":
            raise RecipeError("the adapter was not trained on a quantised base", "--onto", "leave it out")
        return None
    if kind not in QUANTIZED_KINDS:
        raise ModelError(f"names an unknown quantisation {kind!r}", str(folder))
    return str(kind)


def _opened(source: Path) -> AdapterFolder:
    if is_model(source):
        raise ModelError(
            "is a plain model: there is nothing to merge (a merged folder is merged already)",
            str(source),
            "name a run or adapter folder",
        )
    return open_found(source)


def refuse_overlap(out: Path, adapter: Path, base: Path) -> None:
    """Neither into the inputs (their manifests would break) nor over them (they would be deleted)."""
    here = out.resolve()
    for what, folder in (("the base model", base.resolve()), ("the adapter", adapter.resolve())):
        if here == folder or folder in here.parents:
            raise OutputError(f"lies inside {what}", str(out), "name a folder elsewhere")
        if here in folder.parents:
            raise OutputError(f"holds {what}", str(out), "name a folder elsewhere")


def _refuse_empty(adapter: Adapter, folder: Path) -> None:
    if not adapter.whole and not any(bool(delta.any()) for delta in adapter.deltas.values()):
        raise ModelError("every delta is zero: merging it would copy the base", str(folder), "train it first")


# ---------------------------------------------------------------------------------------------------
# What the adapter says about its base


def base_folder_of(adapter: Adapter, base: str | None, trust_remote_code: bool) -> Path:
    if base is not None:
        return hub.resolve_model(base, trust_remote_code=trust_remote_code)
    try:
        return hub.resolve_model(adapter.base, adapter.revision, trust_remote_code)
    except ModelError as error:
        fix = (
            f"{error.fix}; if the base has moved, name it with --base" if error.fix else "name it with --base"
        )
        raise type(error)(f"the adapter's base: {error.what}", error.where, fix) from None


def _trained_dtype(adapter: Adapter, weights: hub.Weights) -> torch.dtype:
    """What training rounded the weights to; without a word about it, the type of the files."""
    return hub.TORCH_DTYPES.get(str(adapter.settings.get("dtype"))) or main_dtype(weights)


def num_labels(adapter: Adapter) -> int | None:
    """The classifier's labels: as stated, else the rows of the head's last layer."""
    if adapter.task not in hub.CLASSIFIERS:
        return None
    stated = adapter.settings.get("num_labels")
    if isinstance(stated, int) and stated > 0:
        return stated
    heads = [t for n, t in adapter.whole.items() if n.endswith((".weight", ".bias")) and "pooler" not in n]
    return int(heads[-1].shape[0]) if heads else None
