"""The commands of the pages, run in their order as they stand; what needs a GPU, the hub or hours says so.

A mark is the first word behind the line's `#`, or stands in brackets in the section's heading.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import one_thread  # noqa: F401

from neuroada_cli.cli.app import main
from neuroada_cli.recipe.load import bundled_recipes

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/index.md", "docs/howto.md", "docs/data.md")
MARKS = ("gpu", "hub", "hours")
# A real model takes minutes for what a page shows, so its runs are cut short; nothing else is changed.
SHORT = {
    "train": "--set train.max_steps=2 --set train.eval_every=2 --set data.limit=12 --set train.batch_size=4 "
    "--set data.validation_limit=2",
    "eval": "--limit 2 --max-new-tokens 4",
    "bench": "--rounds 1 --warmup 0 --batch 1 --seq 16",
}


def commands(page: str) -> Iterator[tuple[str, bool]]:
    """(command line, whether it runs on a laptop) of a page, in its order."""
    heading = ""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line
        if re.match(r"(?: {4}|\$ )neuroada [a-z-]", line):
            words, _, said = line.removeprefix("$ ").strip().partition("#")
            marks = re.findall(r"[a-z]+", said.partition(":")[0]) if ":" in said else []
            in_heading = re.search(r"\((?:gpu|hub|, )+\)$", heading)
            yield words.strip(), not in_heading and not {*marks} & {*MARKS}


def test_every_page_with_commands_is_run() -> None:
    """Beside them there are the results, which their commands made, and the generated reference."""
    written = {page for page in (ROOT / "docs").glob("*.md") if list(commands(f"docs/{page.name}"))}
    assert {f"docs/{page.name}" for page in written} - {*PAGES} == {"docs/cli.md", "docs/results.md"}


def test_what_needs_a_large_model_is_marked() -> None:
    for page in PAGES:
        for line, runs in commands(page):
            words = line.split()
            large = "RECIPE" in words or any(
                word.startswith("llama") and word in bundled_recipes() for word in words
            )
            assert not (large and runs and "train" in line), f"{page}: {line}"


@pytest.fixture
def newcomer(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of: a model, rows, tasks of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROADA_DATA", str(shared / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?\n"))
    for place in ("path/to/model", "FOLDER"):
        shutil.copytree(shared / "models" / "stories260K", tmp_path / place)
    rows = [{"instruction": f"{n} + 1?", "input": "", "output": str(n + 1)} for n in range(24)]
    for name in ("alpaca.json", "rows.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    (tmp_path / "general.txt").write_text("A text of no kind.\n" * 4)
    tasks = tmp_path / "path" / "to" / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text('{"q": "1 + 1?", "a": ["2", "seven"]}\n' * 3)
    (tasks / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tasks / 'rows.jsonl'}}}}}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\n'
        'doc_to_choice: "{{a}}"\ndoc_to_target: 0\n'
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, newcomer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = 0
    for line, runs in commands(page):
        words = shlex.split(line)[1:]
        if not runs or "--install-completion" in words:
            continue
        if "runs/parrot" in words:  # the page shows a run of its own
            main_ends(
                ["train", "--model", "smollm2-135m", "--data", "alpaca.json", *more_of("train", [])], line
            )
            (newcomer / "runs" / "parrot").symlink_to("alpaca")
        main_ends([*words, *more_of(words[0], words)], f"{page}: {line}")
        done += 1
        capsys.readouterr()
    assert done


def more_of(command: str, words: list[str]) -> list[str]:
    if "--harness" in words or "--dry-run" in words:
        return []
    return SHORT.get(command, "").split()


def main_ends(words: list[str], where: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code, where
