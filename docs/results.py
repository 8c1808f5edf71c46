"""Real runs on real data, whose files docs/results.md shows.

    python docs/results.py run quickstart
    python docs/results.py run minilm_mrpc --data-dir DATA
    python docs/results.py run commonsense15k --data-dir DATA --set data.limit=1500
    python docs/results.py suite runs/suites/glue
    python docs/results.py draw

`run` takes a recipe through select, eval of the base, train, eval, merge and eval of the merged folder, and
writes docs/results/NAME.json and NAME.png with the command that made them; `suite` takes over the results of
`neuroada bench --suite`, from the folder it wrote; `draw` draws the pictures of all suites anew.
`make docs` then shows them on docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from pages.results_page import ENDS, RESULTS, SUITES


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
    draw(SUITES / f"{name}.json")


def draw(file: Path) -> None:
    """The picture of a suite's results, from the file alone."""
    from neuroada_cli.suites import tables

    tables.draw(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("recipe")
    one.add_argument("--data-dir")
    one.add_argument("--set", action="append", default=[], dest="overrides")
    suite = commands.add_parser("suite")
    suite.add_argument("folder", type=Path)
    commands.add_parser("draw")
    given = parser.parse_args()
    if given.command == "run":
        run(given.recipe, given.data_dir, given.overrides)
    if given.command == "suite":
        take_suite(given.folder)
    if given.command == "draw":
        for file in sorted(SUITES.glob("*.json")):
            draw(file)


if __name__ == "__main__":
    main()
