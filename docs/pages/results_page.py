"""docs/results.md from docs/results/: real runs on real data, and experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results"
SUITES = RESULTS / "suites"
ENDS = 20  # steps at the start and at the end whose mean loss is kept; of a short run half of it


def _suite(file: Path) -> list[str]:
    from neuroada_cli.suites import tables

    found = json.loads(file.read_text(encoding="utf-8"))
    suite, machine = found["suite"], found["machine"]
    done = sum(1 for run in found["runs"] if run["trained"] and not run["failed"])
    options = "".join(f" --set {key}={json.dumps(value)}" for key, value in found["overrides"].items())
    complete = sum(1 for run in found["runs"] if run.get("scores")) if suite["score"] is True else done
    lines = [
        "",
        f"## Suite {suite['name']}",
        "",
        f"    neuroada bench --suite {suite['name']}{options}    # hours",
        "",
        f"{suite['description']}. Mean ± sample standard deviation over seeds "
        f"{', '.join(map(str, suite['seeds']))}; {complete} of {len(found['runs'])} runs are done"
        f"{_reused(found)}. Protocol "
        f"{', '.join(found['protocols'])}{_loss_on(found)}. {machine['cpu']}, {machine['cores']} cores, "
        f"torch {machine['versions']['torch']}, {machine['date']}.",
        "",
        tables.markdown(found).rstrip(),
        "",
        tables.about_forgetting(found),
        "",
    ]
    return [
        *lines,
        *_tuning(found),
        *_curves(found),
        "",
        f"![{suite['name']}]({RESULTS.name}/{SUITES.name}/{file.stem}.png)",
    ]


def _reused(found: dict[str, Any]) -> str:
    count = sum(1 for run in found["runs"] if (run["trained"] or {}).get("reused"))
    return f" ({count} of them taken from another suite, where they are the same)" if count else ""


def _loss_on(found: dict[str, Any]) -> str:
    masks = found.get("loss_masks")  # older files do not say
    return f", loss on {' and '.join(masks)}" if masks else ""


def _tuning(found: dict[str, Any]) -> list[str]:
    """Which learning rates were tried, and whether one was chosen at the end of what was tried."""
    if not found["suite"]["tune"]:
        return []
    lines = []
    for key, values in found["suite"]["tune"]["values"].items():
        edge = {
            f"{run['variant']} on {run['recipe']}"
            for run in found["runs"]
            if run["tuned"].get(key) in (min(values), max(values))
        }
        tried = ", ".join(f"{value:g}" for value in values)
        text = f"`{key}` was chosen among {tried} on validation rows only, with seed "
        text += f"{found['suite']['tune']['seed']}, alike for all"
        for one, other in found["suite"]["untuned"].items():
            text += f" ({one} takes that of {other})" if other else f" ({one} keeps its own)"
        if edge:
            text += f". Chosen at an end of that range, so perhaps not the best: {'; '.join(sorted(edge))}"
        lines.append(text + ".")
    return lines


def _curves(found: dict[str, Any]) -> list[str]:
    """Where the losses of training and of validation began and ended: learning, memorising, or neither."""
    seed, recipes = found["suite"]["seeds"][0], found["suite"]["recipes"]
    cells: dict[tuple[str, str], str] = {}
    for run in found["runs"]:
        trained = run["trained"]
        if run["seed"] != seed or not trained or not trained.get("loss_ends"):
            continue
        first, last = trained["loss_ends"]
        evaluated = [loss for _, loss, _ in trained.get("evaluations") or []]
        held = f" ({evaluated[0]:.2f} → {evaluated[-1]:.2f})" if len(evaluated) > 1 else ""
        cells[run["variant"], run["recipe"]] = f"{first:.2f} → {last:.2f}{held}"
    if not cells or not found["suite"]["tune"]:
        return []
    lines = [
        "",
        f"Loss in training, mean of the first and of the last {ENDS} steps (of a short run: of its halves),",
        f"and in brackets on validation rows, at the first and the last evaluation (seed {seed}):",
        "",
        f"| variant | {' | '.join(recipes)} |",
        "| --- |" + " ---: |" * len(recipes),
    ]
    for variant in found["suite"]["variants"]:
        row = [cells.get((variant, label), "–") for label in recipes]
        lines.append(f"| {variant} | {' | '.join(row)} |")
    return lines


def page() -> str:
    lines = [
        "# Results of real runs",
        "",
        "Written by `make docs` from the files in `docs/results/`. Scores are on held-out",
        "rows, of the base model, of the tuned one, and of the merged checkpoint; *majority* is the score of",
        "always giving the most frequent answer. The models are small and the runs short: they show that the",
        "method learns and that nothing is lost on the way to the merged checkpoint, not what it can reach.",
        "",
        "| recipe | task | rows | metric | majority | base | tuned | merged | trained weights | minutes |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    details: list[str] = []
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if "scores" not in found:
            continue
        lines += [_row(file.stem, task, found) for task in found["scores"]["base"]]
        details += _details(file.stem, found)
    for file in sorted(SUITES.glob("*.json")):
        details += _suite(file)
        notes = file.with_suffix(".md")  # what it shows and what it does not, written by a person
        if notes.is_file():
            details += ["", notes.read_text(encoding="utf-8").rstrip()]
    return "\n".join([*lines, *details]) + "\n"


def _row(name: str, task: str, found: dict[str, Any]) -> str:
    base, tuned, merged = (found["scores"][stage][task] for stage in ("base", "tuned", "merged"))
    majority = "" if base["majority"] is None else f"{100 * base['majority']:.1f}"
    scores = " | ".join(f"{100 * result['score']:.1f}" for result in (base, tuned, merged))
    share = 100 * found["trainable"] / found["parameters"]
    minutes = found["seconds"]["train"] / 60
    return (
        f"| {name} | {task} | {base['n']} | {base['metric']} | {majority} | {scores} | "
        f"{found['trainable']:,} ({share:.2g} %) | {minutes:.1f} |"
    )


def _details(name: str, found: dict[str, Any]) -> list[str]:
    recipe, machine = found["recipe"], found["machine"]
    first, last = (sum(found[key]) / len(found[key]) for key in ("first_losses", "last_losses"))
    return [
        "",
        f"## {name}",
        "",
        f"    {found['command']}",
        "",
        f"{recipe['model']['path']} in {recipe['model']['dtype']}, K={recipe['select']['k']}, lr "
        f"{recipe['optim']['lr']:g}, protocol {recipe['data']['protocol']}, seed {recipe['seed']}. "
        f"Training loss {first:.3f} (first ten steps) to {last:.3f} (last ten); "
        f"{found['merged_rows_differing_from_tuned']} rows answered differently after merging. "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']} at the end, "
        f"torch {machine['versions']['torch']}, {machine['date']}.",
        "",
        f"![training]({RESULTS.name}/{name}.png)",
    ]
