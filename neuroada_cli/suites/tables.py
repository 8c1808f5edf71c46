"""A suite's results as a table and a picture: mean ± sample standard deviation over seeds."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from neuroada_cli.evaluation.display import UNPROMPTED
from neuroada_cli.methods import METHODS
from neuroada_cli.show import figures
from neuroada_cli.tasks.loss_mask import LABEL
from neuroada_cli.tasks.registry import TASKS

Found = dict[str, Any]  # what results.json holds
WIDEST = 6  # columns of scores beside each other in a terminal
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255")


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sample standard deviation); the latter is None for fewer than two values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _runs(found: Found, label: str, variant: str) -> list[dict[str, Any]]:
    return [
        run
        for run in found["runs"]
        if (run["recipe"], run["variant"]) == (label, variant) and run["trained"] and not run["failed"]
    ]


def columns(found: Found) -> list[tuple[str, str]]:
    """(recipe label, task) of every score there is, in the order of the suite."""
    seen: dict[tuple[str, str], None] = {}
    if found["suite"]["score"] == "validation":
        for label in found["suite"]["recipes"]:
            runs = [r for variant in found["suite"]["variants"] for r in _runs(found, label, variant)]
            seen |= {(label, f"validation {run['trained']['metric'] or 'loss'}"): None for run in runs}
        return list(seen)
    for label in found["suite"]["recipes"]:
        for run in found["runs"]:
            if run["recipe"] == label:
                seen |= {(label, task): None for task in run.get("scores") or {}}
    return list(seen)


def scores(found: Found, label: str, task: str, variant: str) -> list[float]:
    """One score per seed, in %; losses and values of validation rows as they are."""
    runs = _runs(found, label, variant)
    if found["suite"]["score"] == "validation":
        return [run["trained"]["best_value"] for run in runs]
    unit = 1 if found["suite"]["score"] == "loss" else 100
    return [unit * run["scores"][task]["score"] for run in runs if run.get("scores")]


def leaked(found: Found, label: str, task: str) -> bool:
    """Whether 1 % or more of a column's test questions were trained on in any of its runs."""
    from neuroada_cli.evaluation.results import CLEAN_BELOW

    results = [(run.get("scores") or {}).get(task) for run in found["runs"] if run["recipe"] == label]
    return any(r and (r.get("leaked") or 0) >= CLEAN_BELOW * r["n"] for r in results)


def rows(found: Found) -> tuple[list[str], list[list[str]]]:
    """(headings, one row per variant). An average is over columns, of the means; its spread over seeds.
    Forgetting is what the loss per token of general text has risen by (`eval.forgetting`).

    Columns whose questions were trained on say so, and the clean ones get an average of their own.
    """
    suite = found["suite"]
    places = columns(found)
    validation, losses = suite["score"] == "validation", suite["score"] == "loss"
    digits = 4 if validation or losses else 1
    heads = [
        label if sum(p[0] == label for p in places) == 1 and not validation else f"{label} {task}"
        for label, task in places
    ]
    if len(suite["recipes"]) == 1 and len(places) > 1:
        heads = [task for _, task in places]  # the suite's description names the model
    if losses:
        heads = [f"{head} loss" for head in heads]
    spoilt = {place for place in places if leaked(found, *place)}
    heads = [
        f"{head} (leaked)" if place in spoilt else head for head, place in zip(heads, places, strict=True)
    ]
    averages = {"average": places} if len(places) > 1 and not validation else {}
    if averages and 0 < len(spoilt) < len(places):
        averages["clean average"] = [place for place in places if place not in spoilt]
    forgets = _forgets(found)
    heading = [
        "variant",
        *heads,
        *averages,
        *(["forgetting"] if forgets else []),
        "trained",
        "rows/s",
        "peak GB",
    ]
    if suite["tune"]:
        heading.append("tuned")
    lines: list[list[str]] = []
    for variant in suite["variants"]:
        by_place = {place: scores(found, *place, variant) for place in places}
        line = [variant, *(_shown(values, digits) for values in by_place.values())]
        for averaged in averages.values():
            values = [by_place[place] for place in averaged]
            complete = all(values) and len({len(each) for each in values}) == 1
            means = [statistics.fmean(v) for v in zip(*values, strict=True)] if complete else []
            line.append(_shown(means, digits))
        runs = [run for label in suite["recipes"] for run in _runs(found, label, variant)]
        trained = [run["trained"] for run in runs]
        if forgets:
            line.append(_shown([t["forgetting"] for t in trained if "forgetting" in t], 4))
        line.append(_range([100 * t["trainable"] / t["total"] for t in trained], "{:.3f}", " %"))
        line.append(_range([t["rows_per_second"] for t in trained], "{:.1f}"))
        line.append(_range([t["peak_bytes"] / 1e9 for t in trained], "{:.2f}"))
        if suite["tune"]:
            chosen = dict.fromkeys(
                ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in run["tuned"].items())
                for run in runs
            )
            line.append("; ".join(chosen))
        lines.append(line)
    return heading, lines


def about_forgetting(found: Found) -> str:
    """What the column of what was forgotten means, or why there is none."""
    if _forgets(found):
        line = "Forgetting: what the loss per token of general text has risen by; less than 0: fallen."
        methods = {name: each.get("train.method") for name, each in found["suite"]["variants"].items()}
        spared = [name for name, method in methods.items() if method and METHODS[method].in_prompts]
        return f"{line} {', '.join(spared)}: {UNPROMPTED}." if spared else line
    given = {task for run in found["runs"] for task in run.get("scores") or {}}
    labels = {task for task in given if task in TASKS and TASKS[task].kind != "generation"}
    masks = found.get("loss_masks") or {LABEL if task in labels else "" for task in given}
    if set(masks) == {LABEL}:
        return "No column of forgetting: these models give a label, not text, so they have no loss on text."
    return "Forgetting (what the loss on general text has risen by) was not measured in these runs."


def _forgets(found: Found) -> bool:
    return any("forgetting" in (run["trained"] or {}) for run in found["runs"])


def _shown(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "–"
    mean, deviation = spread(values)
    return f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _range(values: Sequence[float], form: str, unit: str = "") -> str:
    """One value, or the smallest and largest of several runs."""
    if not values:
        return "–"
    low, high = form.format(min(values)), form.format(max(values))
    return (low if low == high else f"{low}–{high}") + unit


def table(found: Found) -> Group:
    """Two tables, so that both fit a terminal: what came out, and what it took.

    Of more scores than fit only the averages; `markdown` has them all.
    """
    heading, lines = rows(found)
    seeds = len(found["suite"]["seeds"])
    rules = ", ".join(found["protocols"])
    title = f"{found['suite']['name']}   {seeds} seed{'s' * (seeds > 1)}, protocol {rules}"
    costs = heading.index("trained")
    scored: Sequence[int] = range(costs)
    if costs > WIDEST and "average" in heading:
        scored = [0, *(n for n in scored if heading[n].endswith("average"))]
    parts = [scored, (0, *range(costs, len(heading)))] if costs > 1 else [range(len(heading))]
    tables: list[Table] = []
    for columns_shown in parts:
        shown = Table(
            title=None if tables else title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
        )
        for column in columns_shown:
            left = column == 0 or heading[column] == "tuned"
            shown.add_column(heading[column], justify="left" if left else "right", no_wrap=column == 0)
        for line in lines:
            shown.add_row(*(line[column] for column in columns_shown))
        tables.append(shown)
    return Group(*tables, Text(about_forgetting(found), style="dim"))


def markdown(found: Found) -> str:
    """The same table for a page."""
    heading, lines = rows(found)
    rule = ["---" if name in ("variant", "tuned") else "---:" for name in heading]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heading, rule, *lines])


def draw(found: Found, path: Path) -> None:
    """A mark per variant and column with the spread over seeds; without: rows per second against peak memory.

    Raises ResourceError when the file cannot be written.
    """
    places, variants = columns(found), list(found["suite"]["variants"])
    width = max(7, 1.6 * len(places) + 3)
    figure = figures.new_figure(width, 4.5)
    axis = figure.subplots()
    for number, variant in enumerate(variants):
        colour = COLOURS[number % len(COLOURS)]
        if places:
            _marks(axis, found, variant, number, len(variants), colour)
        else:
            trained = [
                r["trained"] for label in found["suite"]["recipes"] for r in _runs(found, label, variant)
            ]
            peaks = [t["peak_bytes"] / 1e9 for t in trained]
            axis.scatter(peaks, [t["rows_per_second"] for t in trained], color=colour, label=variant, s=60)
    if places:
        axis.set_xticks(range(len(places)), _ticks(places))
        labels = {"validation": "best value on validation rows", "loss": "loss on test rows"}
        axis.set_ylabel(labels.get(found["suite"]["score"], "score (%)"))
    else:
        axis.set_xlabel("peak memory (GB)")
        axis.set_ylabel("rows per second")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    title = found["suite"]["description"] or found["suite"]["name"]
    axis.set_title(textwrap.fill(title, int(11 * (width - 1))), loc="left", fontsize=10)  # 11 letters an inch
    axis.grid(axis="y", alpha=0.25)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figures.save(figure, path)


def _ticks(places: Sequence[tuple[str, str]]) -> list[str]:
    """What stands below each column: recipe and task, but nothing twice."""
    alone = len({label for label, _ in places}) == 1 < len(places)

    def plain(word: str) -> str:
        return "".join(filter(str.isalnum, word)).lower()

    return [
        task if alone else label if plain(label) == plain(task) else f"{label}\n{task}"
        for label, task in places
    ]


def _marks(axis: Any, found: Found, variant: str, number: int, count: int, colour: str) -> None:
    """Bars of scores, from zero; points of losses, which lie close together and far from it."""
    width = 0.8 / count
    at, heights, errors = [], [], []
    for place, (label, task) in enumerate(columns(found)):
        values = scores(found, label, task, variant)
        if values:
            mean, deviation = spread(values)
            at.append(place + (number - (count - 1) / 2) * width)
            heights.append(mean)
            errors.append(deviation)
    known = [error or 0.0 for error in errors] if any(error is not None for error in errors) else None
    if found["suite"]["score"] is True:
        axis.bar(at, heights, width, yerr=known, color=colour, label=variant, capsize=2)
    else:
        axis.errorbar(at, heights, known, fmt="o", color=colour, label=variant, capsize=3)
