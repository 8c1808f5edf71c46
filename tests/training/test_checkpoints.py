"""Checkpoints of a run: which are kept, what the links name at every instant, and what may change before a
resume.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_loop import Bench, Case
from tiny_run import one_thread  # noqa: F401

from neuroada_cli import files
from neuroada_cli.errors import OutputError
from neuroada_cli.training.checkpoint import check_unchanged

CASE = Case("neuroada", "fp32", "one kind")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bases"))


def kept(run: Path) -> list[int]:
    return sorted(int(entry.name.partition("-")[2]) for entry in run.glob("checkpoint-*"))


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [5, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_the_newest_are_kept(bench: Bench, tmp_path: Path, keep: int, expected: list[int]) -> None:
    bench.run(CASE, saved_in=tmp_path, keep=keep, save_every=1, max_steps=6)
    assert kept(tmp_path) == expected
    assert os.readlink(tmp_path / "last") == "checkpoint-6"


def test_the_best_is_kept_however_old(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations that get worse: the first one stays the best."""
    from neuroada_cli.loop.validate import Evaluation

    values = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr("neuroada_cli.loop.loop.validate", lambda *_, **__: Evaluation(next(values), 1))
    bench.run(CASE, saved_in=tmp_path, keep=2, save_every=1, eval_every=1, validation=2, max_steps=6)
    assert kept(tmp_path) == [1, 5, 6]
    assert os.readlink(tmp_path / "best") == "checkpoint-1"


def test_links_name_what_is_there_whenever_something_goes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before and after every call that takes a name away: a kill there must lose nothing."""
    seen = 0

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal seen
            look()
            done = real(*args, **named)
            look()
            seen += 1
            return done

        return call

    def look() -> None:
        for link in ("last", "best"):
            if (tmp_path / link).is_symlink():
                assert (tmp_path / link / files.MANIFEST).is_file(), f"{link} leads nowhere"

    for module, names in ((os, ("rename", "replace", "unlink", "rmdir")), (shutil, ("rmtree",))):
        for name in names:
            monkeypatch.setattr(module, name, watched(getattr(module, name)))
    bench.run(CASE, saved_in=tmp_path, keep=1, save_every=1, eval_every=1, validation=2)
    assert seen > 20
    assert kept(tmp_path)[-1] == 4


RECIPE = {"name": "a", "train": {"max_steps": None, "epochs": 2, "keep": 3}, "eval": {"tasks": []}, "seed": 1}
DATA = {"train": "1" * 64, "train tokens": "2" * 64}


@pytest.fixture
def saved(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from neuroada_cli.training import checkpoint

    real = checkpoint.SavedState
    monkeypatch.setattr(
        checkpoint,
        "SavedState",
        lambda progress, position, numbers, *_: real(progress, position, numbers, RECIPE, DATA),
    )
    bench.run(CASE, saved_in=tmp_path, max_steps=1)
    return tmp_path / "checkpoint-1"


@pytest.mark.parametrize(
    ("recipe", "data", "told"),
    [
        ({"seed": 2}, {}, "seed: 1 -> 2"),
        ({"optim": {"eps": 1.0}}, {}, "optim: None -> "),
        ({}, {"train tokens": "3" * 64}, "data hash of train tokens: 222"),
        ({}, {"validation": "4" * 64}, "data hash of validation: None -> 444"),
    ],
)
def test_what_would_change_the_course_is_refused(
    saved: Path, recipe: dict[str, Any], data: dict[str, str], told: str
) -> None:
    check_unchanged(saved, RECIPE, DATA)
    with pytest.raises(OutputError, match="the recipe or data changed") as caught:
        check_unchanged(saved, RECIPE | recipe, DATA | data)
    assert told in caught.value.line()


CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0}
LONGER = {"max_steps": 5, "epochs": 2, "keep": 3}


@pytest.mark.parametrize(
    ("optim", "why"),
    [
        ({"schedule": "linear"}, "optim.schedule=linear"),
        (CONSTANT | {"warmup_ratio": 0.1}, "optim.warmup_ratio=0.1"),
        (CONSTANT, None),
    ],
)
def test_another_length_needs_a_schedule_or_a_word_that_permits_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch, optim: dict[str, Any], why: str | None
) -> None:
    from neuroada_cli.training import checkpoint

    state = checkpoint.read_state(saved)
    before = RECIPE | {"optim": optim}
    monkeypatch.setattr(checkpoint, "read_state", lambda _: dataclasses.replace(state, recipe=before))
    assert not check_unchanged(saved, before, DATA)
    longer = before | {"train": LONGER}
    if why is None:
        assert check_unchanged(saved, longer, DATA, steps=5)
    else:
        with pytest.raises(OutputError, match=r"train.max_steps: None -> 5") as caught:
            check_unchanged(saved, longer, DATA, steps=5)
        assert why in caught.value.line()
        assert "--extend" in caught.value.line()
    assert check_unchanged(saved, longer, DATA, steps=5, extend=True)
    with pytest.raises(OutputError, match="has done 1 steps, and would be 0 long"):
        check_unchanged(saved, longer, DATA, steps=0, extend=True)
    with pytest.raises(OutputError, match=r"seed: 1 -> 2; train.max_steps: None -> 5"):
        check_unchanged(saved, longer | {"seed": 2}, DATA, steps=5, extend=True)


def test_what_leaves_the_course_alone_may_change(saved: Path) -> None:
    free = {"name": "b", "train": {"max_steps": None, "epochs": 2, "keep": 9}, "eval": {"tasks": ["x"]}}
    check_unchanged(saved, RECIPE | free, DATA)
