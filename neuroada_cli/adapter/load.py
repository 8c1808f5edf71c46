"""A loaded model for whatever the user named: a base, an adapter on its base, or a merged folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter.config import OWN_TASKS, method_of, method_problem
from neuroada_cli.adapter.find import find_adapter, open_found
from neuroada_cli.adapter.finite import refuse_overflow
from neuroada_cli.adapter.folder import Adapter, AdapterFolder
from neuroada_cli.adapter.whole import refuse_whole
from neuroada_cli.delta.layout import layout_of
from neuroada_cli.delta.model import attach
from neuroada_cli.delta.names import blocks_of
from neuroada_cli.delta.quantized import round_trip
from neuroada_cli.delta.targets import added_apart, shapes_of, targets_of
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.stored import own_dtype
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import check_base, check_shapes, check_ties
from neuroada_cli.tasks.registry import TASKS


@dataclass(frozen=True)
class Adapted:
    """model is in evaluation mode, reader what it reads rows with; adapter is None for a plain model.

    folder    of the base (or plain) model
    identity  what a result file says the model was: fingerprint of the base, hash of the adapter
    fresh     parameters that are in none of the files, so they are random: a head that nobody trained
    in_use    the base's files, on which the weights may lie; None where they were not loaded
    before    the base's values of what the adapter trained whole, where `load` was to keep them
    """

    model: nn.Module
    reader: hub.Reader
    folder: Path
    adapter: Adapter | None
    identity: dict[str, Any]
    fresh: tuple[str, ...] = ()
    in_use: hub.InUse | None = None
    before: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        return self.reader.tokenizer

    def refuse_written_to(self) -> None:
        """Raises ModelError where the model may no longer be what `identity` says."""
        if self.in_use is not None:
            self.in_use.refuse_written_to(self.model)


@dataclass(frozen=True)
class Target:
    """What the user named, looked at once: an adapter or run folder, or anything else by its name.

    adapter  its folder, verified; None for what is no adapter
    """

    name: str
    adapter: AdapterFolder | None


def find_target(name: str) -> Target:
    """Raises ModelError for an adapter folder that is not what was written."""
    shared = None if os.path.exists(name) else hub.adapter_of_hub(name)
    try:
        find_adapter(shared or name)
    except ModelError:
        return Target(name, None)
    return Target(name, open_found(shared or name))


def recipe_of(target: Target) -> Recipe | None:
    """The recipe that an adapter, or a folder that was merged from one, was trained with.

    None where there is none, and for a model folder that we did not write, whatever lies in it. The folder
    may come from a stranger: its recipe says what was trained, but never that code may run.
    Raises ModelError for a recipe that is not the one that was written, RecipeError for one that is none.
    """
    if target.adapter is not None:
        file = target.adapter.file(adapters.RECIPE)
    elif files.is_ours(target.name):
        file = files.own_file(Path(target.name), adapters.RECIPE)
    else:
        return None
    if file is None:
        return None
    recipe = load_recipe(file)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"trust_remote_code": False})})


def load(
    target: str | Path | Target,
    task: hub.ModelTask | hub.Work | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    num_labels: int | None = None,
    base: str | None = None,
    revision: str | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
    keep_base: bool = False,
) -> Adapted:
    """Load `target` ready to answer.

    target  adapter or run folder, model folder, packaged model, or hub id; or one that was looked at
    task    the class of a plain model, or what is asked of it; an adapter knows its own
    dtype   default: what training saw, else the files' own; fp32 for a classifier that we did not write
    base    where an adapter's base lies now; default: where training found it
    weights  False: only what is known of a plain model without them, for whoever else loads it
    keep_base  what the adapter trained whole beside its connections is kept as it was, too
    Raises ModelError for anything missing, broken, or a base that is not the adapter's.
    """
    target = target if isinstance(target, Target) else find_target(str(target))
    if target.adapter is None:
        folder = hub.resolve_model(target.name, revision, trust_remote_code)
        kind = _class_of(folder, task or hub.Work(), trust_remote_code)
        foreign = kind in hub.CLASSIFIERS and not files.is_ours(folder)
        if not weights:
            return _without_weights(folder, kind, trust_remote_code)
        stored = hub.open_weights(folder)
        usual = "fp32" if foreign else own_dtype(stored)
        in_use = hub.InUse(stored, hub.fingerprint(folder, stored))
        loaded = hub.load_model(
            folder, kind, dtype or usual, device, num_labels, attention,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        reader = hub.load_reader(folder, kind, trust_remote_code, _sees(task))
        identity = {"model": in_use.known, "model_content": "sampled"}
        return Adapted(loaded.model, reader, folder, None, identity, tuple(loaded.fresh), in_use)
    place = target.adapter.folder
    adapter = adapters.read_adapter(target.adapter)
    folder = hub.resolve_model(base or adapter.base, None if base else adapter.revision, trust_remote_code)
    wanted = adapter.task if task is None else _class_of(folder, task, trust_remote_code)
    if wanted != adapter.task:
        raise ModelError(
            f"was trained for {adapter.task}, not for {wanted}", str(place), "choose its own task"
        )
    check_base(adapter.selection.fingerprint, folder)
    in_use = hub.InUse(hub.open_weights(folder), adapter.selection.fingerprint)
    labels = adapter.settings.get("num_labels")
    loaded = hub.load_model(
        folder, adapter.task, dtype or str(adapter.settings.get("dtype", "fp32")), device, labels, attention,
        trust_remote_code=trust_remote_code, quantization=adapter.settings.get("quantization"),
    )  # fmt: skip
    # from the model and not from its files, whose names for it may be others, in other numbers or pieces
    kept = adapter.whole.keys() - loaded.fresh if keep_base and _chosen(adapter) else ()
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters() if n in kept}
    put_on(loaded.model, adapter, str(place))
    reader = _reader(target.adapter, folder, adapter, trust_remote_code)
    manifest = target.adapter.manifest["files"]
    known = {key: value for key, value in adapter.selection.fingerprint.items() if key != hub.HASHES}
    identity = {
        "model": known,
        "model_content": "sampled",
        "adapter_sha256": manifest[adapters.TENSORS]["sha256"],
    }
    fresh = tuple(name for name in loaded.fresh if name not in adapter.whole)
    return Adapted(loaded.model.eval(), reader, folder, adapter, identity, fresh, in_use, before)


def _chosen(adapter: Adapter) -> bool:
    return METHODS[method_of(adapter.settings)].chosen


def _without_weights(folder: Path, kind: hub.ModelTask, trust_remote_code: bool) -> Adapted:
    model = hub.writing_skeleton(folder, kind, trust_remote_code).eval()
    identity = {"model": hub.fingerprint(folder), "model_content": "sampled"}
    return Adapted(model, hub.load_reader(folder, kind, trust_remote_code), folder, None, identity)


def _class_of(folder: Path, task: hub.ModelTask | hub.Work, trust_remote_code: bool) -> hub.ModelTask:
    return hub.model_task(folder, task, trust_remote_code) if isinstance(task, hub.Work) else task


def with_merged_layers(
    adapter: Adapter, where: str, base: hub.Base, requantize: str | None = None
) -> Adapter:
    """A LoRA or DoRA adapter as whole weights: PEFT merges its layers, in memory, at the trained type.

    requantize  merge into the weights as a quantised base has them, as training saw them: their 4 or 8 bits
    Raises ModelError for an adapter that does not fit its base, or that sits on one user of a shared weight;
    NumericsError where a sum is not finite.
    """
    settings = adapter.settings
    apart = next(iter(added_apart(base.graph, adapter.selection.indices).items()), None)
    if apart is not None:
        raise ModelError(
            f"{method_of(settings)} changed {apart[0]} and not {apart[1]}, whose weight is the same one: no "
            "plain checkpoint can hold both",
            where,
            "use it as it is (neuroada eval takes it), or train without that layer",
        )
    loaded = hub.load_model(
        base.folder, adapter.task, str(settings.get("dtype", "fp32")), "cpu", settings.get("num_labels"),
        trust_remote_code=base.trust_remote_code,
    )  # fmt: skip
    if requantize is not None:
        for name in adapter.selection.indices:
            module = loaded.model.get_submodule(name)
            weight_OI = layout_of(module).rows(cast(Tensor, module.weight).detach())
            weight_OI.copy_(round_trip(weight_OI, requantize, weight_OI.dtype))
    put_on(loaded.model, adapter, where)
    whole = {name: tensor for name, tensor in adapter.whole.items() if ".lora_" not in name}
    for name in adapter.selection.indices:
        layer: Any = loaded.model.get_submodule(name)
        layer.merge()  # PEFT's own check rounds to 16 bits twice (findings/peft-safe-merge-rounds-twice.sh)
        merged = whole[f"{name}.weight"] = layer.base_layer.weight.detach()
        refuse_overflow(merged, name, merged.dtype, where, "train with a lower optim.lr")
    selection = replace(adapter.selection, indices={})
    return replace(adapter, selection=selection, deltas={}, whole=whole)


def reader_of(
    target: Target,
    task: hub.Work,
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | None = None,
) -> hub.Reader:
    """The reader that `load` would come with, without the model."""
    if target.adapter is None:
        folder = hub.resolve_model(target.name, revision, trust_remote_code)
        kind = hub.model_task(folder, task, trust_remote_code)
        return hub.load_reader(folder, kind, trust_remote_code, task.pictures)
    adapter = adapters.read_adapter(target.adapter)
    folder = hub.resolve_model(base or adapter.base, None if base else adapter.revision, trust_remote_code)
    return _reader(target.adapter, folder, adapter, trust_remote_code)


def _reader(place: AdapterFolder, base: Path, adapter: Adapter, trust_remote_code: bool) -> hub.Reader:
    """The base's, for texts with the adapter's own tokenizer where it has one."""
    if adapter.task in OWN_TASKS and _trained_on_pictures(adapter):
        return hub.load_reader(base, adapter.task, trust_remote_code, pictures=True)
    start = hub.decoder_start(base, adapter.task, trust_remote_code)
    return hub.Reader(_tokenizer(place.folder, base, trust_remote_code), start)


def _sees(task: hub.ModelTask | hub.Work | None) -> bool:
    return task.pictures if isinstance(task, hub.Work) else task in OWN_TASKS


def _trained_on_pictures(adapter: Adapter) -> bool:
    """A model that writes about pictures may have been trained on texts alone."""
    name = str(adapter.settings.get("task"))
    return adapter.task == "image-classification" or (name in TASKS and TASKS[name].pictures)


def _tokenizer(adapter: Path, base: Path, trust_remote_code: bool) -> Any:
    """The adapter's own, of which no code ever runs, else the base's."""
    own = (adapter / adapters.TOKENIZER).is_file()
    return hub.load_tokenizer(adapter, model=base) if own else hub.load_tokenizer(base, trust_remote_code)


@torch.no_grad()
def put_on(model: nn.Module, adapter: Adapter, where: str) -> None:
    """Fold an adapter into a loaded base (LoRA: put it beside the weights); set what it trained in full.

    Raises ModelError naming the module or parameter that does not fit.
    """
    facts = METHODS[method_of(adapter.settings)]
    try:
        if facts.added is not None:
            _refuse_misfit(model, adapter, where)
            facts.build(adapter.settings.get("peer")).attach(model, adapter.selection.indices)
        else:
            if facts.chosen:
                check_ties(adapter.selection, model, where)
            attach(model, adapter.selection.indices, adapter.deltas)
    except (TypeError, ValueError) as error:
        raise ModelError(f"does not fit its base: {error}", where) from None
    refuse_whole(model, adapter, where)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in adapter.whole.items():
        parameters[name].copy_(tensor)


def _refuse_misfit(model: nn.Module, adapter: Adapter, where: str) -> None:
    """Added layers are built for the base's sizes before anything is put into them."""
    shapes = shapes_of(targets_of(model))
    check_shapes(adapter.selection, shapes, where)
    inputs = {name: shapes[name][1] for name in adapter.selection.indices}
    width = getattr(model.config.get_text_config(), "hidden_size", 0)  # type: ignore[union-attr,operator]
    inputs |= dict.fromkeys(blocks_of(inputs), width)
    problem = method_problem(
        adapter.settings, adapter.selection.indices, adapter.deltas, adapter.whole, inputs
    )
    if problem is not None:
        raise ModelError(f"does not fit its base: {problem}", where)
