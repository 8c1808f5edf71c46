"""`neuroada merge`: fold the trained connections into a plain Hugging Face checkpoint.

The base is read and the result written one tensor at a time, into a temporary folder that takes its final
name when everything in it is complete; a merge that fails or is killed leaves no folder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.find import open_found
from neuroada_cli.adapter.folder import Adapter, AdapterFolder
from neuroada_cli.delta.quantized import KINDS as QUANTIZED_KINDS
from neuroada_cli.errors import ModelError, NumericsError, OutputError, RecipeError
from neuroada_cli.foreign_text import shown
from neuroada_cli.hub.stored import main_dtype
from neuroada_cli.merging import check as merge_check
from neuroada_cli.merging.folder import carry_recipe, copy_companions, merged_config, model_card
from neuroada_cli.merging.merge import FoldStats, Merge
from neuroada_cli.merging.plan import Planned
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.file import check_base
from neuroada_cli.show.numbers import describe_dtype, share

SMALL_FILES_BYTES = 64 << 20  # room for tokenizer and config in the space check


@dataclass(frozen=True)
class MergeResult:
    """out is the written folder; nbytes of weights in it; seconds the whole merge took."""

    out: Path
    stats: FoldStats
    dtype: torch.dtype
    parameters: int
    nbytes: int
    seconds: float


def run(
    source: str | Path,
    out: str | Path,
    base: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
    onto: str = "original",
) -> MergeResult:
    """Merge the adapter in `source` (a run or adapter folder) into its base and write the folder `out`.

    base             where the base lies now; default: where training found it
    dtype            "bf16", "fp16" or "fp32"; default: the type that training saw
    max_shard_bytes  default: the base's own shards
    onto             of a quantised base: "original" weights, or the "dequantized" ones that training saw;
                     the difference to the trained model is measured, shown and stored
    Raises ModelError (no adapter, wrong base, an adapter that changes nothing), NumericsError (overflow),
    OutputError (out exists, would lie in or over the inputs, or another process writes it), ResourceError
    (disk).
    """
    started = time.perf_counter()
    out = Path(out)
    _refuse_packed(dtype)
    verified = _opened(Path(source))
    folder = verified.folder
    trained_adapter = adapter = adapters.read_adapter(verified)
    facts = METHODS[method_of(adapter.settings)]
    if facts.unmergeable is not None:
        raise ModelError(
            facts.unmergeable, str(folder), "use it as it is: neuroada eval takes the run folder"
        )
    _refuse_empty(adapter, folder)
    base_folder = _base_folder(adapter, base, trust_remote_code)
    _refuse_overlap(out, folder, base_folder)
    check_base(adapter.selection.fingerprint, base_folder)
    packed = _quantization(adapter, onto, folder)
    requantize = packed if onto == "dequantized" else None

    with files.Lock.on(out):
        if facts.merged_layers:
            adapter = adapted.with_merged_layers(
                adapter, str(folder), base_folder, trust_remote_code, requantize
            )
        opened = hub.open_base(base_folder, adapter.task, _num_labels(adapter), trust_remote_code)
        classifier = adapter.task in hub.CLASSIFIERS
        trained = _trained_dtype(adapter, opened.weights)
        target = hub.TORCH_DTYPES[dtype] if dtype else trained
        merge = Merge(opened, adapter, trained, target, classifier, requantize)
        files.require_space(out, sum(entry.nbytes for entry in merge.plan) + SMALL_FILES_BYTES)

        config = hub.read_config(base_folder)
        with files.atomic_folder(out, overwrite=overwrite) as temporary:
            nbytes = _write_weights(merge, temporary, max_shard_bytes, quiet)
            _refuse_unchanged(merge.stats, target, folder)
            files.write_json(temporary / "config.json", merged_config(config, target, adapter, opened.graph))
            copy_companions(base_folder, temporary, config)
            carry_recipe(verified, temporary)
            recipe = adapted.recipe_of(adapted.Target(str(source), verified))
            day = recipe.data.date if recipe else None
            files.write_text(temporary / "README.md", model_card(trained_adapter, merge, day))
            difference = None
            if packed is not None:
                target_of = adapted.Target(str(source), verified)
                found = merge_check.measure(
                    target_of, temporary, str(base_folder), trust_remote_code=trust_remote_code
                )
                difference = found | {"onto": onto}
                files.write_json(temporary / "merge_report.json", difference)
    result = MergeResult(out, merge.stats, target, merge.parameters, nbytes, time.perf_counter() - started)
    if not quiet:
        _show(result, merge, trained)
        _show_difference(difference)
    return result


def _write_weights(merge: Merge, folder: Path, max_shard_bytes: int | None, quiet: bool) -> int:
    """The shards and, for more than one, their index. Returns the bytes of all tensors."""
    shards = merge.shards(max_shard_bytes)
    total = sum(entry.nbytes for shard in shards for entry in shard)
    weight_map: dict[str, str] = {}
    console = Console(stderr=True)
    columns = (
        TextColumn("merging"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        step = bar.add_task("merging", total=total)
        for number, shard in enumerate(shards, start=1):
            name = hub.shard_name(number, len(shards))
            weight_map |= {entry.name: name for entry in shard}
            plan = [(entry.name, entry.dtype, entry.shape) for entry in shard]
            tensors = _counted(merge, shard, bar, step)
            files.stream_tensors(folder / name, plan, tensors, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        files.write_json(folder / hub.INDEX, index)
    return total


def _counted(merge: Merge, shard: list[Planned], bar: Progress, step: Any) -> Iterator[torch.Tensor]:
    for entry, tensor in zip(shard, merge.tensors(shard), strict=True):
        yield tensor
        bar.advance(step, entry.nbytes)


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
    is_model = (source / "config.json").is_file() and not (source / "adapter_config.json").is_file()
    if is_model:
        raise ModelError(
            "is a plain model: there is nothing to merge (a merged folder is merged already)",
            str(source),
            "name a run or adapter folder",
        )
    return open_found(source)


def _refuse_overlap(out: Path, adapter: Path, base: Path) -> None:
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


def _refuse_unchanged(stats: FoldStats, target: torch.dtype, folder: Path) -> None:
    if stats.changed or stats.replaced:
        return
    if stats.whole and not stats.lost:
        raise ModelError(
            f"changes nothing: in {describe_dtype(target)}, what was trained whole is the base's own",
            str(folder),
            "train it first",
        )
    raise NumericsError(
        f"no weight changes: all {stats.lost:,} deltas (largest {stats.largest_delta:.1e}) are too small "
        f"for {describe_dtype(target)}",
        fix="train longer or with a higher optim.lr, or merge in a wider --dtype",
    )


# ---------------------------------------------------------------------------------------------------
# What the adapter says about its base


def _base_folder(adapter: Adapter, base: str | None, trust_remote_code: bool) -> Path:
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


def _num_labels(adapter: Adapter) -> int | None:
    """The classifier's labels: as stated, else the rows of the head's last layer."""
    if adapter.task not in hub.CLASSIFIERS:
        return None
    stated = adapter.settings.get("num_labels")
    if isinstance(stated, int) and stated > 0:
        return stated
    heads = [t for n, t in adapter.whole.items() if n.endswith((".weight", ".bias")) and "pooler" not in n]
    return int(heads[-1].shape[0]) if heads else None


# ---------------------------------------------------------------------------------------------------


def _show_difference(found: dict[str, Any] | None) -> None:
    if found is None:
        return
    mean, spread = found["mean_difference"], found["logit_spread"]
    Console().print(
        f"against the model as trained, on its quantised base ({found['rows']} rows of "
        f"{shown(found['source'])}): logits differ by {mean:.3g} on average (their spread is {spread:.3g}), "
        f"the first choice is the same at {found['same_first_choice']:.1%} of positions",
        highlight=False,
    )


def _compared(stats: FoldStats) -> str:
    """How far it is known that the base is the one that was trained on."""
    if stats.compared == stats.read:
        return "every tensor is what it was when connections were chosen"
    rest = stats.read - stats.compared
    return f"the one that was trained on; {rest:,} of {stats.read:,} tensors are only sampled"


def _show(result: MergeResult, merge: Merge, trained: torch.dtype) -> None:
    stats = result.stats
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row(
        "tensors folded", f"{stats.tensors:,}" + (f" and {stats.whole} whole" if stats.whole else "")
    )
    changed = (
        f"{stats.changed:,} of {stats.entries:,} chosen ({share(stats.changed, result.parameters)} of all)"
    )
    if stats.changed:  # a baseline that trains whole parameters leaves the chosen entries alone
        table.add_row("weights changed", changed)
        table.add_row("largest |delta|", f"{stats.largest_delta:.3g}")
    if stats.lost:
        table.add_row(
            "lost to rounding", f"{stats.lost:,} deltas too small for {describe_dtype(result.dtype)}"
        )
    written = describe_dtype(result.dtype)
    if result.dtype != trained:
        written += (
            f"; trained in {describe_dtype(trained)}: largest difference {stats.largest_difference:.3g}"
        )
    elif merge.cast:
        written += " (the base's files were rounded to it, as for training)"
    table.add_row("data type", written)
    table.add_row("base", _compared(stats))
    if merge.onto is not None:
        table.add_row("merged onto", merge.onto)
    speed = result.nbytes / max(result.seconds, 1e-9) / 1e9
    table.add_row("written", f"{result.nbytes / 1e9:.2f} GB in {result.seconds:.1f} s ({speed:.2f} GB/s)")
    table.add_row("merged model", shown(result.out))
    Console().print(table)
