"""A dry run: what differs from the defaults, what trains, will it fit, and how long it will take."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from neuroada_cli import memory
from neuroada_cli.foreign_text import shown
from neuroada_cli.hub.known import known
from neuroada_cli.machine.memory import memory_in_use
from neuroada_cli.ranks.group import ALONE
from neuroada_cli.recipe.keys import described_keys
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import clock, counted, size
from neuroada_cli.training.pace import pace
from neuroada_cli.training.parallel import ROOM, memory_of, of_processes, why_not_sharded, without_a_row
from neuroada_cli.training.plan import as_asked, largest_step, predicted_memory
from neuroada_cli.training.preflight import Checked

MANY = 4096  # rows of a forward pass, beyond which nobody asks
Ways = Mapping[str, memory.Breakdown | memory.ProcessBytes]


def dry_run(
    checked: Checked, processes: int = 1, origins: Mapping[str, str] | None = None, full: bool = False
) -> memory.Breakdown | memory.ProcessBytes | None:
    """Say it all on standard output; no weight is read.

    processes  that are going to train together
    origins    key -> where the recipe's value comes from;  full  the defaults are shown, too
    Returns the largest step of one process, by the way to share the work that takes the least; None where it
    is not predicted.
    """
    recipe, plan, console = checked.recipe, checked.plan, Console()
    console.print(_settings(recipe, origins or {}, full))
    _say(console, f"trains     {plan.trains(verb='')}")
    _say(console, f"steps      {plan.walks(recipe.train.batch_size, checked.rows.train_report.rows)}")
    if processes == 1:
        _say_time(checked, console)
        found = predicted_memory(recipe, plan, checked.rows, checked.base, checked.device)
        ways: str | Ways = found if isinstance(found, str) else {"GB": found}
    else:
        ways = of_processes(checked, processes)
    if isinstance(ways, str):
        _say(console, f"memory     is not predicted: {ways}")
        return None
    _say_of_what(checked, processes, console)
    own = _own_memory(checked)
    console.print(_memory_table(ways, recipe.train.method, own))
    if processes == 1:
        _say_fit(checked, ways["GB"].peak, own, console)
        return ways["GB"]
    _say_devices(ways, recipe.train.parallel, console)
    if (why := why_not_sharded(checked)) is not None:
        _say(console, f"train.parallel: shard {why}")
    if (idle := without_a_row(recipe, processes)) is not None:
        _say(console, f"{idle}: replicate is refused; in shard the others hold their share and wait")
    return min(ways.values(), key=lambda way: way.peak)


def _say(console: Console, line: str) -> None:
    say(console, shown(line))


# ---------------------------------------------------------------------------------------------------
# The recipe


def _settings(recipe: Recipe, origins: Mapping[str, str], full: bool) -> Table:
    """What differs from the defaults or was written all the same, with its place."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("key", style="cyan", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    values, left = recipe.model_dump(mode="json"), 0
    for key in described_keys():
        value = json.dumps(_at(values, key.name), ensure_ascii=False)
        origin = origins.get(key.name)
        absent = key.name.startswith("peer.") and recipe.peer is None
        if origin is None and (absent or value == (key.default or "null")):
            left += 1
            if not full:
                continue
            origin = "default"
        text = value[1:-1] if value.startswith('"') else value
        table.add_row(key.name, shown(text), shown(origin or "the model or the rows"))
    if left and not full:
        table.caption = f"{counted(left, 'other key')} as by default (--full shows them)"
        table.caption_justify = "left"
    return table


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


# ---------------------------------------------------------------------------------------------------
# Time and memory


def _own_memory(checked: Checked) -> int:
    """Bytes of the process itself, the model's code among them, which a dry run may have done without."""
    about = as_asked(checked.recipe, checked.base, checked.plan)
    if checked.device != "cpu" or about is None:
        return memory_in_use(checked.device)

    def with_code() -> int:
        _ = checked.base.skeleton
        return memory_in_use("cpu")

    told_by, rows = [checked.base.folder / "config.json"], checked.rows.hashes
    return known("processes", told_by, [*about, rows], with_code, int, int)


def _say_time(checked: Checked, console: Console) -> None:
    found = pace(checked)
    if isinstance(found, str):
        _say(console, f"time       is not estimated: {found}")
        return
    where = "this machine's CPU" if checked.device == "cpu" else "this GPU"
    when = "" if found.when is None else f", timed at {found.when:%H:%M}"
    _say(
        console,
        f"time       about {clock(found.seconds)} on {where}, evaluations and saving apart "
        f"({found.tokens_per_s:,.0f} tokens/s, from steps of a few blocks with random weights{when})",
    )


def _say_fit(checked: Checked, peak: int, own: int, console: Console) -> None:
    """Whether the run fits into this machine as it is now, and the most rows that would."""
    free = memory_of(checked.device, ALONE)
    room = int(ROOM * free) - (0 if checked.device == "cpu" else own)
    needs = peak  # what the process holds now is not free already
    verdict = "fits" if needs <= room else "does not fit"
    where = "of the GPU" if checked.device.startswith("cuda") else "available here"
    _say(
        console, f"will it fit  it {verdict}: {(peak + own) / 1e9:.2f} GB in all, {free / 1e9:.2f} GB {where}"
    )
    rows, longest = largest_step(checked.recipe, checked.rows)
    most = _most_rows(checked, room, rows, peak)
    rows_of = f"of {longest} tokens" if longest else "with a picture each"
    if most is None:
        return
    if most:
        more = " or more" if most == MANY else ""
        _say(console, f"largest train.micro_batch_size that fits: {most:,}{more} rows {rows_of}")
    else:
        _say(console, f"not one row {rows_of} fits; a smaller model or type, or a larger machine does")


def _say_devices(ways: Ways, wanted: str, console: Console) -> None:
    """How much memory every process's device needs, as `parallel.decide` asks it."""
    named = " or ".join(f"{size(round(found.peak / ROOM))} ({way})" for way, found in ways.items())
    least = "" if wanted != "auto" or len(ways) == 1 else "; train.parallel: auto replicates where that fits"
    _say(console, f"each process needs a device of {named}: a tenth has to stay free{least}")


def _most_rows(checked: Checked, room: int, rows: int, peak: int) -> int | None:
    """The most rows whose step takes no more than `room`, where so many `rows` take `peak` bytes.

    Memory is nearly a straight line in the rows: the line through two predictions says about where it meets
    the room, and the line to a third one, of a round number beyond, says where. Round, because what is free
    changes all the time: so the next dry run most often asks what is known already.
    """
    twice = _peak_of(checked, 2 * rows)
    if twice is None:
        return None
    slope = max(1, (twice - peak) // rows)
    about = rows + (room - peak) // slope
    if about <= 2 * rows:
        size, taken = rows, peak
        while about > 0:
            there = _peak_of(checked, about)
            if there is None:
                return None
            if there <= room:
                return about
            # the line bends where rows are packed, since a mask is of all their tokens squared
            slope = max(1, (taken - there) // (size - about)) if size > about else slope
            size, taken, about = about, there, about - 1 - (there - room) // slope
        return 0
    beyond = min(MANY, _rounded_up(about))
    there = _peak_of(checked, beyond)
    if there is None:
        return None
    slope = max(1, -(-(there - twice) // (beyond - 2 * rows)))
    return beyond if there <= room else 2 * rows + max(0, room - twice) // slope


def _rounded_up(count: int) -> int:
    """To one digit."""
    step: int = 10 ** (len(str(count)) - 1)
    return -(-count // step) * step


def _peak_of(checked: Checked, size: int) -> int | None:
    """Bytes of a step of so many rows of the longest kind, were there so many."""
    recipe, report = checked.recipe, checked.rows.train_report
    train = recipe.train.model_copy(update={"batch_size": size, "micro_batch_size": None})
    rows = dataclasses.replace(checked.rows, train_report=dataclasses.replace(report, rows=size))
    found = predicted_memory(
        recipe.model_copy(update={"train": train}), checked.plan, rows, checked.base, checked.device
    )
    return None if isinstance(found, str) else found.peak


def _say_of_what(checked: Checked, processes: int, console: Console) -> None:
    micro, longest = largest_step(checked.recipe, checked.rows, processes)
    unknown = checked.plan.stored_k is None and checked.plan.facts.chosen
    sees = checked.task.pictures and longest > 0
    kind = "at least" if unknown or sees else "an estimate"
    each = "" if processes == 1 else f" in each of {processes} processes"
    size = f"{micro} x {longest} tokens" if longest else f"{micro} pictures"
    _say(console, f"Predicted memory{each}: {size}, {kind}")
    if unknown:
        _say(console, "rows are stored as long as the longest of their layer, known after `neuroada select`")
    if sees:
        _say(console, "the pass over the pictures themselves comes on top")
    held = checked.rows.validation_report
    if held is not None and held.longest > longest:
        _say(console, f"validation rows have up to {held.longest} tokens, and a look at them counts, too")


def _memory_table(ways: Ways, method: str, own: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("what" if "GB" in ways else "GB, by train.parallel")
    parts = {"weights": "weights", "state": f"what {method} adds", "activations": "activations"}
    if "shard" in ways:
        parts["gathered"] = "layers put together"
    parts["peak"] = "peak of tensors"
    for way in ways:
        table.add_column(way, justify="right")
    for part, what in parts.items():
        table.add_row(what, *(f"{getattr(way, part) / 1e9:.3f}" for way in ways.values()))
    table.add_row("the process itself", *(f"{own / 1e9:.3f}" for _ in ways))
    table.add_row("in all", *(f"{(way.peak + own) / 1e9:.3f}" for way in ways.values()), style="bold")
    if "GB" not in ways:
        sent = (way.sent for way in ways.values() if isinstance(way, memory.ProcessBytes))
        table.add_row("sent per step", *(f"{nbytes / 1e9:.3f}" for nbytes in sent))
    return table
