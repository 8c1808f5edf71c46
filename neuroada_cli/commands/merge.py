"""`neuroada merge`: fold the trained connections into a plain Hugging Face checkpoint.

The base is read and the result written one tensor at a time, into a temporary folder that takes its final
name when everything in it is complete; a merge that fails or is killed leaves no folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from neuroada_cli.adapter import load as adapted
from neuroada_cli.errors import ModelError, NumericsError, RecipeError
from neuroada_cli.foreign_text import shown
from neuroada_cli.merging import check as merge_check
from neuroada_cli.merging.job import Job, prepare
from neuroada_cli.merging.merge import FoldStats, Merge
from neuroada_cli.show.notes import say, tell
from neuroada_cli.show.numbers import counted, describe_dtype, share, size


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
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    base: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
    onto: str = "original",
    weights: Sequence[float] | None = None,
) -> MergeResult:
    """Merge the adapter in `source` (a run or adapter folder) into its base and write the folder `out`.

    source           or several adapters of one base, whose weighted deltas are added and rounded once
    weights          a factor for each of several; -1 takes one away
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
    first, *others = [source] if isinstance(source, str | Path) else list(source)
    if others and weights is None:
        raise RecipeError(f"{len(others) + 1} adapters need a weight each", "--weights", "like 1,0.5")
    job = prepare(
        Path(first),
        out,
        base,
        dtype,
        onto,
        trust_remote_code,
        others=list(map(Path, others)),
        weights=weights,
    )
    merge, difference = job.merge, None
    tell(hub.ignored_of_model(merge.base.folder, trust_remote_code, merge.base.graph), quiet)
    with files.Lock.on(out):
        files.require_space(out, job.nbytes)
        with files.atomic_folder(out, overwrite=overwrite) as temporary, _bar(job, quiet) as on_bytes:
            written = job.write(temporary, max_shard_bytes, on_bytes)
            _refuse_unchanged(merge.stats, merge.target, job.folder)
            if job.packed is not None and weights is None:
                target_of = adapted.Target(str(first), job.opened)
                found = merge_check.measure(
                    target_of, temporary, str(merge.base.folder), trust_remote_code=trust_remote_code
                )
                difference = found | {"onto": onto}
                files.write_json(temporary / "merge_report.json", difference)
    seconds = time.perf_counter() - started
    result = MergeResult(out, merge.stats, merge.target, merge.parameters, written.nbytes, seconds)
    if not quiet:
        _show_overlap(job)
        _show(result, merge, merge.trained, written.left)
        _show_difference(difference)
    return result


@contextmanager
def _bar(job: Job, quiet: bool) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    columns = (
        TextColumn("merging"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        step = bar.add_task("merging", total=sum(entry.nbytes for entry in job.merge.plan))
        yield lambda nbytes: bar.advance(step, nbytes)


# ---------------------------------------------------------------------------------------------------
# What is refused


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


def _show_overlap(job: Job) -> None:
    """What several adapters have in common."""
    found = job.overlap
    if found is None:
        return
    console = Console()
    for weight, name in job.parts:
        say(console, f"{weight:>8g} × {shown(name)}")
    line = "none was chosen by more than one, so they add exactly"
    if found.shared:
        line = (
            f"{found.shared:,} ({share(found.shared, found.connections)}) were chosen by several and are "
            f"summed, {found.opposed:,} of them against each other"
        )
    say(console, f"{found.connections:,} connections; {line}")
    if job.packed is not None:
        console.print("the difference to the quantised models is not measured for a sum", highlight=False)


def _compared(stats: FoldStats) -> str:
    """How far it is known that the base is the one that was trained on."""
    if stats.compared == stats.read:
        return "every tensor is what it was when connections were chosen"
    rest = stats.read - stats.compared
    return f"the one that was trained on; {rest:,} of {stats.read:,} tensors are only sampled"


def _show(result: MergeResult, merge: Merge, trained: torch.dtype, left: Sequence[str]) -> None:
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
            "lost to rounding",
            f"{counted(stats.lost, 'delta')} too small for {describe_dtype(result.dtype)}",
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
    if left:
        more = f" and {len(left) - 6} more" if len(left) > 6 else ""
        table.add_row("not carried over", shown(f"{', '.join(left[:6])}{more}"))
    speed = size(round(result.nbytes / max(result.seconds, 1e-9)))
    table.add_row("written", f"{size(result.nbytes)} in {result.seconds:.1f} s ({speed}/s)")
    table.add_row("merged model", shown(result.out))
    Console().print(table)
