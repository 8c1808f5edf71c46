"""Whose folder it is: a run's own files may be replaced, anybody else's never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import tree

from neuroada_cli import files
from neuroada_cli.errors import OutputError
from neuroada_cli.machine import environment
from neuroada_cli.training import folder as run_folder


def write_run(folder: Path, *steps: int) -> Path:
    folder.mkdir(exist_ok=True)
    files.write_json(folder / "env.json", environment.facts())
    for name in ("recipe.yaml", "metrics.jsonl", "training.png", "selection.safetensors"):
        files.write_text(folder / name, name)
    for step in steps:
        with files.atomic_folder(folder / f"checkpoint-{step}") as checkpoint:
            files.write_text(checkpoint / "a.txt", "a")
    for link in ("best", "last"):
        files.atomic_link(folder / link, f"checkpoint-{max(steps, default=0)}")
    return folder


def refused(folder: Path, **options: Any) -> str:
    before = tree(folder)
    with pytest.raises(OutputError) as caught:
        run_folder.check(folder, **({"resume": False, "overwrite": False} | options))
    assert caught.value.exit_code == 7
    assert tree(folder) == before
    return caught.value.line()


ALL = [{"resume": True}, {"overwrite": True}, {}]


@pytest.mark.parametrize("options", ALL)
@pytest.mark.parametrize(
    "content",
    [
        {"thesis.txt": "mine"},
        {"recipe.yaml": "name: mine\n"},  # a recipe alone is anybody's
        {"recipe.yaml": "name: mine\n", "metrics.jsonl": "mine", "env.json": '{"HOME": "x"}'},
        {"recipe.yaml": "name: mine\n", "env.json": "[1]"},
        {"checkpoint-5/optimizer.pt": "of another program"},
        {"checkpoint-best/manifest.json": "{}"},
    ],
)
def test_what_is_no_run_is_left_alone(content: dict[str, str], options: Any, tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    line = refused(tmp_path, **options)
    assert "is not empty" in line
    assert "holds no run" in line
    before = tree(tmp_path)
    run_folder.clear(tmp_path)
    assert tree(tmp_path) == before


def test_a_run_is_gone_on_with_or_replaced_on_demand_only(tmp_path: Path) -> None:
    for folder in (write_run(tmp_path / "whole", 3), write_run(tmp_path / "begun")):
        run_folder.check(folder, resume=True, overwrite=False)
        run_folder.check(folder, resume=False, overwrite=True)
        assert "--resume goes on" in refused(folder)
    assert "exclude each other" in refused(folder, resume=True, overwrite=True)


@pytest.mark.parametrize("options", ALL)
def test_what_comes_before_a_run_is_welcome(options: Any, tmp_path: Path) -> None:
    """A selection, a hidden file, and the facts that a run writes first: it may be killed right after."""
    files.write_text(tmp_path / "selection.safetensors", "x")
    files.write_text(tmp_path / ".lock", "x")
    files.write_json(tmp_path / "env.json", environment.facts())
    run_folder.check(tmp_path, **({"resume": False, "overwrite": False} | options))


def test_the_recipe_that_was_named_is_never_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 3)
    recipe = folder / "recipe.yaml"
    link = tmp_path / "link.yaml"
    link.symlink_to(recipe)
    for named in (recipe, link):
        line = refused(folder, overwrite=True, recipe_file=named)
        assert "belongs to the run that would be removed" in line
    run_folder.check(folder, resume=True, overwrite=False, recipe_file=recipe)  # nothing is removed then
    run_folder.check(folder, resume=False, overwrite=True, recipe_file=tmp_path / "other.yaml")
    begun = write_run(tmp_path / "begun")
    assert "belongs to the run" in refused(begun, resume=True, recipe_file=begun / "recipe.yaml")


def test_clearing_takes_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 3, 6)
    (folder / "thesis.txt").write_text("mine", encoding="utf-8")
    (folder / "checkpoint-notes").mkdir()
    run_folder.clear(folder)
    assert sorted(entry.name for entry in folder.iterdir()) == ["checkpoint-notes", "thesis.txt"]


class Killed(BaseException):
    pass


def clear_until(moment: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Clear `folder`, but die at removal number `moment` (0 is the first); False when there are fewer."""
    done = iter(range(100))

    def dying(remove: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **keywords: Any) -> Any:
            if next(done) == moment:
                raise Killed
            return remove(*args, **keywords)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(files, "remove_folder", dying(files.remove_folder))
        try:
            run_folder.clear(folder)
        except Killed:
            return True
    return False


def test_a_kill_while_clearing_leaves_what_can_be_cleared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every removal in turn; and what is left never looks like a run with half a checkpoint."""
    moment = 0
    while clear_until(moment, folder := write_run(tmp_path / f"run-{moment}", 3, 6), monkeypatch):
        run_folder.check(folder, resume=False, overwrite=True)
        for _, checkpoint in run_folder.checkpoints(folder):
            files.verify_folder(checkpoint)
        run_folder.clear(folder)
        assert {entry.name for entry in folder.iterdir()} <= {"env.json"}
        run_folder.check(folder, resume=False, overwrite=False)
        moment += 1
    assert list(folder.iterdir()) == []
    assert moment > 8
