"""report.html: a run on one page, from what its folder holds.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.adapter.folder import Adapter, read_adapter
from neuroada_cli.delta.names import block_number
from neuroada_cli.evaluation.places import EVALUATIONS, scores_of
from neuroada_cli.files.folders import LINKS, files_beneath
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.show import page
from neuroada_cli.show.blocks import kinds_of, rows_of
from neuroada_cli.show.numbers import clock, counted, share
from neuroada_cli.tasks.loss_mask import loss_mask_of
from neuroada_cli.tasks.registry import get_protocol
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import picture
from neuroada_cli.training.preflight import Checked


def write(path: Path, checked: Checked, entries: Sequence[dict[str, Any]], trainable: int) -> None:
    """Write the page of a run that is over.

    entries  of metrics.jsonl;  trainable  parameters that train
    Raises ResourceError for the disk, ModelError for a run folder that was tampered with.
    """
    recipe, run_dir = checked.recipe, path.parent
    steps = [entry for entry in entries if entry["kind"] == "train"]
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    made = page.page(
        recipe.name,
        recipe.description or f"{recipe.train.method} on {recipe.model.path}",
        [
            page.links(_scores_of(run_dir)),
            page.figures_row(_numbers(checked, steps, evaluations, trainable)),
            page.section("Course", *(page.picture(*drawn) for drawn in picture.courses(entries))),
            page.section("Evaluations while training", _evaluations(evaluations)),
            *_samples(entries),
            page.section("What was learnt", *_deltas(_adapter(run_dir))),
            page.section("Rows", page.facts_table(_rows(checked))),
            page.section("Command", page.preformatted(page.command())),
            page.section(
                "Recipe", page.folded("every key, defaults as well", page.preformatted(to_yaml(recipe)))
            ),
            page.section("Environment", page.facts_table(files.read_json(run_dir / run_folder.ENVIRONMENT))),
        ],
    )
    files.write_text(path, made)


def _scores_of(run_dir: Path) -> dict[str, str]:
    """Evaluations of this run that are there already: page -> what it is called there."""
    inside = sorted(file.relative_to(run_dir) for file, _ in files_beneath(run_dir))
    return {
        place.as_posix(): scores_of(run_dir / place, run_dir)
        for place in inside
        if place.name == run_folder.REPORT and EVALUATIONS in place.parts[:-1] and not _is_hidden(place)
    }


def _is_hidden(place: Path) -> bool:
    """In a folder that is being written."""
    return any(part.startswith(".") for part in place.parts)


def _numbers(
    checked: Checked,
    steps: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    trainable: int,
) -> dict[str, str]:
    """What stands at the top, large."""
    found = {f"of {checked.plan.total:,} parameters train": share(trainable, checked.plan.total)}
    if steps:
        found["optimizer steps"] = f"{steps[-1]['step']:,}"
        found["in these steps"] = clock(sum(entry["seconds"] for entry in steps))
        found["loss of the last step"] = f"{steps[-1]['loss']:.4f}"
        found["peak memory"] = f"{max(entry['peak_bytes'] for entry in steps) / 1e9:.2f} GB"
    best = [entry for entry in evaluations if entry["best"]]
    if best:
        name = best[-1]["metric_name"]
        value = best[-1]["loss"] if name is None else best[-1]["metric"]
        found[f"best {name or 'validation loss'}, at step {best[-1]['step']}"] = f"{value:.4f}"
    return found


def _adapter(run_dir: Path) -> Adapter | None:
    """The best checkpoint's, else the last one's."""
    place = next((run_dir / name for name in LINKS if (run_dir / name).is_dir()), None)
    return None if place is None else read_adapter(place)


def _rows(checked: Checked) -> dict[str, str]:
    rows, data = checked.rows, checked.recipe.data
    counts, held = rows.train_report, rows.validation_report
    protocol = get_protocol(data.protocol)
    mask = loss_mask_of(data, checked.task, protocol)
    found = {
        "training": f"{counted(counts.rows, 'row')} from {rows.train_source}",
        "validation": f"{counted(held.rows, 'row')} from {rows.validation_source}" if held else "none",
        "task and protocol": f"{data.task}, {protocol.name} (loss on {mask})",
        "sha256": rows.hashes["train"],
    }
    if counts.tokens:
        found["tokens"] = f"{counts.tokens:,}, {100 * counts.targets / counts.tokens:.0f} % of them learnt"
    return found


def _evaluations(evaluations: Sequence[dict[str, Any]]) -> str:
    if not evaluations:
        return page.paragraph(
            "no validation rows, so nothing says how the model does on rows it has not seen"
        )
    name = evaluations[0]["metric_name"]
    headings = ["step", "validation loss", *([name] if name else []), ""]
    rows = [
        [
            f"{entry['step']:,}",
            f"{entry['loss']:.4f}",
            *([f"{entry['metric']:.4f}"] if name else []),
            "best so far" if entry["best"] else "",
        ]
        for entry in evaluations
    ]
    return page.table(headings, rows, words=0)


def _samples(entries: Sequence[dict[str, Any]]) -> list[str]:
    """What the model wrote at each evaluation, row by row; no section where it was not asked."""
    by_row: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["kind"] == "sample":
            by_row.setdefault(entry["row"], []).append(entry)
    if not by_row:
        return []
    parts = [page.paragraph("the first validation rows, answered by the likeliest token each time")]
    for row, asked in by_row.items():
        answers = {f"step {e['step']:,}": e["answer"] + ("" if e["ended"] else " …") for e in asked}
        parts.append(page.folded(f"row {row}: what is asked", page.preformatted(asked[0]["prompt"])))
        parts.append(page.facts_table(answers | {"the row": asked[0]["reference"]}))
    return [page.section("Answers while training", *parts)]


def _deltas(adapter: Adapter | None) -> list[str]:
    """Size of the deltas by layer and kind of module."""
    sizes = {} if adapter is None else sizes_of(adapter)
    if not sizes:
        return [page.paragraph("what this method learns is no delta per connection, so no sizes are shown")]
    largest = max(sizes.values())
    count = counted(len(sizes), "layer")
    parts = [
        page.paragraph(f"root mean square of the deltas of {count}; the largest is {largest:.3g}"),
        _map(sizes),
        page.paragraph("block by kind of layer, the larger the fuller; what does not train is empty"),
    ]
    ordered = sorted(sizes.items(), key=lambda pair: pair[1], reverse=True)
    rows = [[name, f"{size:.3g}"] for name, size in ordered]
    return [*parts, page.folded("every layer, the largest first", page.table(["layer", "rms"], rows))]


def sizes_of(adapter: Adapter) -> dict[str, float]:
    """Layer -> root mean square of its deltas [O, K]; entries that are no connection do not count."""
    found = {}
    for name, value_OK in adapter.deltas.items():
        chosen_OK = adapter.selection.indices[name] >= 0
        count = int(chosen_OK.sum())
        if count:
            found[name] = float((value_OK.double().square() * chosen_OK).sum() / count) ** 0.5
    return found if any(found.values()) else {}


def _map(sizes: Mapping[str, float]) -> str:
    """Blocks, the last one on top, by kinds of layers."""
    kind_of = kinds_of(list(sizes))
    kinds, most = list(dict.fromkeys(kind_of.values())), max(sizes.values())
    at = {(block_number(name), kind_of[name]): size for name, size in sizes.items()}
    rows = {
        "outside" if block is None else str(block): [at.get((block, kind)) for kind in kinds]
        for block in reversed(rows_of(list(sizes)))
    }
    return page.shaded("block", kinds, rows, most)
