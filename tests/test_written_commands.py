"""The commands of the pages, run as they stand; what needs a GPU, the hub or hours says so."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import pico_llama
from extended_registries import extended
from tiny_run import one_thread, stop_in_step, tiny_tokenizer  # noqa: F401
from written_commands import PAGES, REFERENCE, Line, lines, made_by, reasons

from neuroada_cli.cli.app import main
from neuroada_cli.recipe.load import bundled_recipes, load_recipe

FROM_NOTHING = ("README.md", "docs/index.md", "docs/howto.md")  # their lines follow on each other
# what a reader has before the first line of a page, and what the other pages' examples speak of besides
OWN = ("path/to/model", "FOLDER", "alpaca.json", "rows.json", "general.txt", "path/to/tasks", "question.txt")
PREPARED = (
    *OWN, "my.yaml", "theirs.jsonl", "~/data", "opt-1.3b", "llama-7b-hf", "out",
    "runs/my", "runs/mine", "runs/math", "runs/commonsense", "runs/parrot", "runs/math10k",
)  # fmt: skip
# A real model takes minutes for what a page shows, so its runs are cut short; what a line sets stays.
SHORT = {
    "train": "--set train.epochs=1 --set train.batch_size=4 --set data.limit=8 --set data.validation_limit=2",
    "quickstart": "--set data.limit=16 --set data.validation_limit=2 --set eval.limit=2",
    "select": "--set select.calibration_batches=1 --set data.limit=32",
    "eval": "--limit 2 --max-new-tokens 4",
    "generate": "--max-new-tokens 8",
    "chat": "--max-new-tokens 8",
    "bench": "--rounds 1 --warmup 0 --batch 1 --seq 16",
}
SMALL = "math10k"  # what the examples train
QUICK = ("recipes", "env")


class Place(NamedTuple):
    folder: Path
    shared: Path


def all_lines() -> list[Line]:
    return [line for page in PAGES for line in lines(page)]


# --- what is written --------------------------------------------------------------------------------


def test_every_command_is_one_of_the_program() -> None:
    """Options exist and have the right form. Usage lines, which name no values, are of the help itself."""
    found = all_lines()
    assert len(found) > 100
    for line in found:
        if line.page == REFERENCE and "[" in line.text:
            continue
        try:
            command, words = line.parts
            assert not hasattr(command, "commands") or not words or words[0].startswith("-"), (
                "no such command"
            )
            given = line.given()
            load_recipe("quickstart", given.get("overrides") or [])
            for word in {*line.words} & {*bundled_recipes()}:
                load_recipe(word, given.get("overrides") or [])
        except (Exception, SystemExit) as error:
            if not (line.is_name and "Missing" in str(error)):
                raise AssertionError(f"{line}: {error}") from error


@pytest.mark.parametrize("page", PAGES)
def test_a_command_runs_or_says_what_it_needs(page: str) -> None:
    there = set(OWN if page in FROM_NOTHING else PREPARED)
    for line in lines(page):
        if line.is_name:
            continue
        found = reasons(line, set(PREPARED) if line.in_text else there)
        if line.runs:
            assert not found, f"{line}: mark it (# gpu, hub, hours), or prepare it in the test ({found})"
            there |= made_by(line) if page in FROM_NOTHING else set()
        elif line.needs:
            assert found, f"{line}: is marked, and runs on a laptop"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("neuroada train llama7b_math", ["llama7b_math: a GPU", "llama7b_math: the hub"]),
        ("neuroada train gemma3_1b_math --dry-run", ["gemma3_1b_math: a GPU", "gemma3_1b_math: the hub"]),
        ("neuroada train math10k --processes 2", ["several processes"]),
        ("torchrun --nproc-per-node 2 -m neuroada_cli train math10k", ["several processes"]),
        ("neuroada eval out --engine vllm", ["a GPU"]),
        ("neuroada eval out/ --harness arc_easy", ["the hub's rows"]),
        ("neuroada push out me/math", ["the hub"]),
        ("neuroada bench --suite glue", ["hours"]),
        ("neuroada merge runs/other new/", ["runs/other: nothing prepares it"]),
        ("neuroada train --model someone/model --data alpaca.json", ["someone/model: nothing prepares it"]),
        ("neuroada merge runs/math new/", []),
        ("neuroada train math10k --processes 8 --dry-run", []),
        ("neuroada recipes copy llama7b_math new.yaml", []),
    ],
)
def test_what_a_line_needs_is_seen(text: str, why: list[str]) -> None:
    assert reasons(Line("page", 1, text), set(PREPARED)) == why


def test_marks_are_explained_where_they_stand() -> None:
    for page in ("README.md", "docs/howto.md", REFERENCE):
        text = " ".join((Path(__file__).parents[1] / page).read_text(encoding="utf-8").split())
        assert re.search(r"`gpu`, `hub`(?:,| and) `hours`", text), page


# --- what is run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [line for line in all_lines() if line.runs and line.words[0] in QUICK], ids=str
)
def test_a_quick_command_runs(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(line, tmp_path)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def surroundings(shared: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROADA_DATA", str(shared / "data"))
    monkeypatch.setenv("NEUROADA_CACHE", str(caches / "neuroada"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(caches / "datasets"))


@pytest.fixture
def newcomer(tmp_path: Path, shared: Path, surroundings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what is one's own: a model, rows, tasks."""
    monkeypatch.chdir(tmp_path)
    bring_own(tmp_path, shared)
    assert all(Path(name).exists() for name in OWN)
    return tmp_path


@pytest.fixture(scope="module")
def prepared(shared: Path, caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside it the runs and files that examples speak of, made by the commands that make such things."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NEUROADA_DATA", str(shared / "data"))
        patch.setenv("NEUROADA_CACHE", str(caches / "neuroada"))
        patch.setenv("HF_DATASETS_CACHE", str(caches / "datasets"))
        patch.setenv("HOME", str(folder / "home"))
        bring_own(folder, shared)
        bring_examples(folder, shared)
        assert all(Path(name).expanduser().exists() for name in PREPARED)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", FROM_NOTHING)
def test_the_commands_of_a_page_run_one_after_another(page: str, newcomer: Path) -> None:
    done = [run(line, newcomer) for line in lines(page) if line.runs and not line.in_text]
    assert done


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        line for line in all_lines()
        if line.runs and line.words[0] not in QUICK and (line.in_text or line.page not in FROM_NOTHING)
    ],
    ids=str,
)  # fmt: skip
def test_an_example_runs(
    line: Line, prepared: Path, surroundings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    own = line.given().get("recipe")
    for name in made_by(line) if "--resume" not in line.words else ():
        shutil.rmtree(name, ignore_errors=True)  # an example that writes finds nothing in its place
    if own == SMALL:  # its run is of the recipe's own model then
        shutil.rmtree(f"runs/{SMALL}", ignore_errors=True)
        if "--resume" in line.words:
            with monkeypatch.context() as patch:
                stop_in_step(patch, 1)
                main_ends(["train", SMALL, *SHORT["train"].split()], "a run that was stopped", 143)
    with extended() if line.page == "docs/extending.md" else contextlib.nullcontext():
        run(line, folder)


def run(line: Line, home: Path) -> Line:
    """It, as a shell would with that home folder. It ends well, and says what it has to say."""
    words = [word.replace("~", str(home / "home")) if word.startswith("~") else word for word in line.words]
    given, output = line.redirected("<"), line.redirected(">")
    heard, said, aside = Path(given).read_text() if given else "Who are you?\n", io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home / "home"))
        patch.setattr(sys, "stdin", io.StringIO(heard))
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(aside):
                main_ends([*words, *short(line)], str(line))
        finally:
            sys.stderr.write(aside.getvalue())  # for whom it fails before
    if output:
        Path(output).write_text(said.getvalue())
        assert json.loads(Path(output).read_text())
    assert said.getvalue().strip() or aside.getvalue().strip(), line
    return line


def short(line: Line) -> list[str]:
    """What is added so that it takes seconds, but for keys that the line itself sets."""
    words = SHORT.get(line.words[0], "").split()
    if {"--harness", "--dry-run", "--predictions"} & {*line.words}:
        return []
    idle = {"--seq"} if "--real-rows" in line.words else set()  # which have lengths of their own
    own = {word.partition("=")[0] for word in line.words if "=" in word}
    pairs = [(words[at], words[at + 1]) for at in range(0, len(words), 2)]
    kept = [pair for pair in pairs if pair[0] not in idle and pair[1].partition("=")[0] not in own]
    return [word for pair in kept for word in pair]


def main_ends(words: list[str], where: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert (stop.value.code or 0) == code, where


def bring_own(folder: Path, shared: Path) -> None:
    for place in ("path/to/model", "FOLDER"):
        shutil.copytree(shared / "models" / "stories260K", folder / place)
    rows = [{"instruction": f"{n} + 1?", "input": "", "output": str(n + 1)} for n in range(24)]
    for name in ("alpaca.json", "rows.json"):
        (folder / name).write_text(json.dumps(rows))
    (folder / "general.txt").write_text("A text of no kind.\n" * 4)
    (folder / "question.txt").write_text("Name three rivers.\n")
    (folder / "home").mkdir()
    tasks = folder / "path" / "to" / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text('{"q": "1 + 1?", "a": ["2", "seven"]}\n' * 3)
    (tasks / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tasks / 'rows.jsonl'}}}}}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\n'
        'doc_to_choice: "{{a}}"\ndoc_to_target: 0\n'
    )


def bring_examples(folder: Path, shared: Path) -> None:
    (folder / "home" / "data").symlink_to(shared / "data")
    (folder / "my.yaml").write_text(
        "name: my\nmodel: {path: path/to/model}\n"
        "data: {task: instruct, train: alpaca.json, validation_rows: 2}\noptim: {schedule: constant}\n"
    )
    theirs = {"instruction": "1 + 1?", "prediction": "That is 2.", "answer": "2"}
    (folder / "theirs.jsonl").write_text(f"{json.dumps(theirs)}\n" * 3)
    for name in ("opt-1.3b", "llama-7b-hf"):  # as before safetensors
        model = pico_llama(vocabulary=len(tiny_tokenizer()))
        model.config.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
        torch.save(model.state_dict(), folder / name / "pytorch_model.bin")
    few = SHORT["train"].split()
    main_ends(["train", "my.yaml", *few], "runs/my")
    main_ends(["train", SMALL, "--set", "model.path=path/to/model", *few], "runs/math10k")
    for name in ("mine", "math", "commonsense", "parrot"):
        shutil.copytree("runs/my", f"runs/{name}", symlinks=True)
    shutil.copytree("runs/math10k/checkpoint-2", "runs/math10k/checkpoint-500")
    main_ends(["merge", "runs/math", "out"], "out")
