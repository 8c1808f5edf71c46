"""Real runs on real data, and the page that shows them.

    python docs/results.py run quickstart
    python docs/results.py run minilm_mrpc --data-dir DATA
    python docs/results.py run commonsense15k --data-dir DATA --set data.limit=1500
    python docs/results.py suite runs/suites/glue
    python docs/results.py page

`run` takes a recipe through select, eval of the base, train, eval, merge and eval of the merged folder, and
writes docs/results/NAME.json and NAME.png with the command that made them; `suite` takes over the results of
`neuroada bench --suite`, from the folder it wrote; `page` writes docs/results.md from
the files that are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
SUITES = RESULTS / "suites"
ENDS = 20  # steps at the start and at the end whose mean loss is kept; of a short run half of it


def run(name: str, data_dir: str | None, overrides: list[str]) -> None:
    from neuroada_cli import files
    from neuroada_cli.commands import quickstart
    from neuroada_cli.machine.load import machine
    from neuroada_cli.recipe.load import load_recipe

    given = [*overrides, *([f"data.data_dir={json.dumps(data_dir)}"] if data_dir else [])]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "tour"
        tour = quickstart.run(load_recipe(name, [*given, f"run_dir={json.dumps(str(where))}"]))
        found = json.loads((where / "results.json").read_text(encoding="utf-8"))
        losses = [
            entry["loss"]
            for line in (tour.trained.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            if (entry := json.loads(line))["kind"] == "train"
        ]
        picture = tour.trained.run_dir / "training.png"
        RESULTS.mkdir(exist_ok=True)
        shutil.copyfile(picture, RESULTS / f"{name}.png")
    found["recipe"]["run_dir"] = found["recipe"]["data"]["data_dir"] = None  # of that machine only
    options = "".join(f" --set {override}" for override in overrides)
    found |= {
        "command": f"python docs/results.py run {name}{' --data-dir DATA' if data_dir else ''}{options}",
        "first_losses": losses[:10],
        "last_losses": losses[-10:],
        "machine": machine(),
    }
    files.write_json(RESULTS / f"{name}.json", found)


def take_suite(folder: Path) -> None:
    """docs/results/suites/NAME.json and .png from what a suite wrote, without places on that machine."""
    from neuroada_cli import files

    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    name = found["suite"]["name"]
    for run in [*found["trials"], *found["runs"]]:
        if run["trained"]:
            losses = run["trained"].pop("losses", None)  # a run taken over from a result file has none
            if losses:
                count = min(ENDS, max(1, len(losses) // 2))
                ends = (losses[:count], losses[-count:])
                run["trained"]["loss_ends"] = [sum(part) / len(part) for part in ends]
    places = ("data.data_dir", "model.path")
    found["overrides"] = {key: value for key, value in found["overrides"].items() if key not in places}
    SUITES.mkdir(parents=True, exist_ok=True)
    files.write_json(SUITES / f"{name}.json", found)
    shutil.copyfile(folder / "plot.png", SUITES / f"{name}.png")


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
        f"    neuroada bench --suite {suite['name']}{options}",
        "",
        f"{suite['description']}. Mean ± sample standard deviation over seeds "
        f"{', '.join(map(str, suite['seeds']))}; {complete} of {len(found['runs'])} runs are done"
        f"{_reused(found)}. Protocol "
        f"{', '.join(found['protocols'])}{_loss_on(found)}. {machine['cpu']}, {machine['cores']} cores, "
        f"torch {machine['versions']['torch']}, {machine['date']}.",
        "",
        tables.markdown(found).rstrip(),
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
        "Written by `python docs/results.py page` from the files in `docs/results/`. Scores are on held-out",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("recipe")
    one.add_argument("--data-dir")
    one.add_argument("--set", action="append", default=[], dest="overrides")
    suite = commands.add_parser("suite")
    suite.add_argument("folder", type=Path)
    commands.add_parser("page")
    given = parser.parse_args()
    if given.command == "run":
        run(given.recipe, given.data_dir, given.overrides)
    if given.command == "suite":
        take_suite(given.folder)
    (DOCS / "results.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
