"""report.html of an evaluation: scores with what they depend on, and rows that were right and wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.evaluation import display
from neuroada_cli.evaluation.places import scores_of
from neuroada_cli.evaluation.results import Prediction, TaskResult
from neuroada_cli.machine import environment
from neuroada_cli.show import page
from neuroada_cli.show.figures import drawn

SHOWN = 12  # rows of each kind and task; all of them are in predictions/
MOST_CHARACTERS = 2000  # of a prompt or an answer
NAME = "report.html"
DEPTH = 3  # RUN/merged/eval, RUN/eval/checkpoint-N


def write(
    folder: Path,
    target: str,
    results: Mapping[str, TaskResult],
    predictions: Mapping[str, Sequence[Prediction]],
    abouts: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the page into an evaluation's folder; where it cannot be made, that is said and nothing is lost.

    target  what was scored;  abouts  task -> what its scores depend on, as in results.json
    Raises ResourceError for the disk.
    """
    place = folder / NAME

    def made() -> None:
        run_dir = _run_of(folder)
        to_run = {} if run_dir is None else {os.path.relpath(run_dir / NAME, folder): "The training run"}
        parts = [
            page.links(to_run),
            page.section("Scores", _scores(results)),
            *(
                page.section(name, page.facts_table(_about(abouts.get(name, {}))), *_rows(predictions[name]))
                for name in results
            ),
            page.section("Command", page.preformatted(page.command())),
            page.section("Environment", page.facts_table(environment.facts())),
        ]
        files.write_text(place, page.page("Evaluation", target, parts))

        if run_dir is not None:
            whole = (run_dir / NAME).read_text(encoding="utf-8")
            address = place.relative_to(run_dir).as_posix()
            files.write_text(run_dir / NAME, page.with_link(whole, address, scores_of(place, run_dir)))

    drawn(made, place)


def _run_of(folder: Path) -> Path | None:
    """The run in whose folder, or whose adapter's or merged folder, the scores lie, if it has a report."""
    return next((each for each in folder.parents[:DEPTH] if _is_run(each)), None)


def _is_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() and (folder / NAME).is_file()


def _scores(results: Mapping[str, TaskResult]) -> str:
    headings, rows = display.plain_table(results)
    return page.table(headings, rows)


def _about(about: Mapping[str, Any]) -> dict[str, object]:
    """What a score depends on, flat and in words; the model by its fingerprint."""
    data, model = about.get("data", {}), about.get("model", {})
    found = {
        "protocol": f"{about.get('protocol')} (loss on {about.get('loss_mask')})",
        "decoding": about.get("decoding"),
        "rows": f"{data.get('rows')}, {data.get('source')}",
        "sha256 of the rows": data.get("sha256"),
        "data type": about.get("dtype"),
        "adapter": about.get("adapter_sha256"),
        "base by content": model.get("content") if isinstance(model, Mapping) else None,
    }
    return {key: value for key, value in found.items() if value is not None and "None" not in str(value)}


def _rows(rows: Sequence[Prediction]) -> list[str]:
    """Some that are wrong, then some that are right, from all over the set."""
    parts = []
    for kind in ("wrong", "right"):
        those = [row for row in rows if row.correct == (kind == "right")]
        if not those:
            continue
        taken = (
            [those[place * len(those) // SHOWN] for place in range(SHOWN)] if len(those) > SHOWN else those
        )
        some = f"; {len(taken)} of them, all are in predictions/" if len(taken) < len(those) else ""
        parts.append(page.paragraph(f"{len(those):,} of {len(rows):,} rows are {kind}{some}"))
        parts += [_row(row, kind) for row in taken]
    return parts


def _row(row: Prediction, kind: str) -> str:
    found = row.extracted or "no answer"
    summary = f"row {row.row}: {found}" + (f", but right is {row.reference}" if kind == "wrong" else "")
    inside = page.facts_table(
        {
            "asked": _cut(row.prompt),
            "written": _cut(row.prediction),
            "found": row.extracted,
            "right": row.reference,
        }
    )
    return page.folded(_cut(summary, 160), inside, kind)


def _cut(words: str, most: int = MOST_CHARACTERS) -> str:
    return words if len(words) <= most else f"{words[:most]} … ({len(words):,} characters)"
