"""What happens when in a run: the rows of each step, evaluations, saves, early stopping."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import pico_llama
from tiny_loop import Said, drop, rows
from tiny_run import one_thread  # noqa: F401

from neuroada_cli.delta.targets import find_targets
from neuroada_cli.loop.loop import Progress, Schedule, Settings, TrainData, train
from neuroada_cli.loop.optim import OptimSettings, lr_factor
from neuroada_cli.loop.validate import Evaluation
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.selection.criteria import choose
from neuroada_cli.tasks.training_set import held_out_of

OPTIM = OptimSettings(1e-2)


class Saved:
    """Checkpoints that only remember when one was written, and what was known then."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.best_steps: list[int | None] = []

    def save(self, progress: Progress, *_: object) -> None:
        self.steps.append(progress.step)
        self.best_steps.append(progress.best_step)

    def restore(self, *_: object) -> Progress:
        return Progress()


def run(count: int = 12, validation: int = 4, dropout: float = 0.0, **settings: Any) -> tuple[Said, Saved]:
    model = pico_llama()
    targets = find_targets(model, ["q_proj"])
    indices = {name: choose(target.weight.detach(), 1) for name, target in targets.items()}
    method = METHODS["neuroada"].build()
    method.attach(model, indices)
    drop(model, dropout)
    said, saved = Said(), Saved()
    data = TrainData(rows(False, False, count), rows(False, False, validation, 4), "generation", 0)
    train(model, method, data, Settings(OPTIM, batch_size=4, **settings), saved, said, indices)
    return said, saved


def test_the_last_step_is_evaluated_and_saved_whatever_does_not_divide_it() -> None:
    said, saved = run(max_steps=5, epochs=2, eval_every=3, save_every=2)
    assert said.evaluated == [3, 5]
    assert {2, 4, 5} <= set(saved.steps) <= {2, 3, 4, 5}


def test_without_a_word_about_it_every_epoch_is_evaluated_and_saved() -> None:
    said, saved = run(epochs=2)
    assert (said.evaluated, saved.steps) == ([3, 6], [3, 6])


def test_the_best_so_far_is_saved_at_once() -> None:
    said, saved = run(epochs=2, eval_every=1, save_every=99)
    assert said.best[0] == 1
    assert saved.steps == sorted({*said.best, 6})
    assert saved.best_steps[-1] == said.best[-1]


def judged(values: list[float], metric: bool, early_stop: int = 2) -> tuple[int | None, int]:
    """(the step that `best` names, the step after which a run stops) when evaluations say these values."""
    progress = Progress()
    for step, value in enumerate(values, start=1):
        progress.step = step
        progress.judge(Evaluation(value, 1, value if metric else None, "accuracy" if metric else None))
        if progress.hopeless(early_stop):
            break
    return progress.best_step, progress.step


@pytest.mark.parametrize("metric", [False, True])
def test_a_tie_is_no_progress(metric: bool) -> None:
    better = 1.0 if metric else -1.0
    assert judged([0.5, 0.5, 0.5, 9 * better], metric) == (1, 3)
    assert judged([0.5, 0.5, 0.5 + better, 0.5 + better, 0.5], metric) == (3, 5)


def test_early_stopping_counts_from_the_best_on() -> None:
    assert judged([3.0, 4.0, 2.0, 2.5, 1.0, 5.0, 5.0, 0.1], metric=False) == (5, 7)
    said, saved = run(max_steps=12, epochs=12, eval_every=1, early_stop=1, count=4)
    assert saved.best_steps[-1] is not None
    assert said.evaluated[-1] == saved.best_steps[-1] + 1 or said.evaluated[-1] == 12


def test_every_epoch_has_all_rows_in_an_order_of_its_own() -> None:
    data = TrainData(rows(False, False, 10), (), "generation", 0)
    settings = Settings(OPTIM, batch_size=4, epochs=3, group_by_length=False)

    def taken(step: int) -> tuple[int, ...]:
        return tuple(row for batch in Schedule(data, settings).micro_batches(step) for row in batch.rows)

    schedule = Schedule(data, settings)
    assert (schedule.per_epoch, schedule.total) == (3, 9)
    epochs = [[taken(3 * epoch + step) for step in range(3)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(row for step in epoch for row in step) == [*range(10)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_part_of_an_epoch_counts_whole_batches() -> None:
    assert Settings(OPTIM, epochs=1, batch_size=4).total_steps(9) == 3
    assert Settings(OPTIM, epochs=0.5, batch_size=4).total_steps(9) == 2
    assert Settings(OPTIM, epochs=5, batch_size=4, max_steps=7).total_steps(9) == 7


def test_a_share_counts_as_it_is_written() -> None:
    """1.1 x 100 and 0.07 x 100 as floats are a little more than 110 and 7."""
    assert Settings(OPTIM, epochs=1.1, batch_size=4).total_steps(400) == 110
    assert Settings(OPTIM, epochs=1e-05, batch_size=1).total_steps(10) == 1
    assert lr_factor(7, 100, "constant", 0.07) == lr_factor(6, 100, "constant", 0.07) == 1
    assert lr_factor(5, 100, "constant", 0.07) == 6 / 7
    section = recipe_from({
        "name": "a", "model": {"path": "b"}, "data": {"task": "due_dates", "validation_rows": 0.07},
    }).data  # fmt: skip
    assert held_out_of(section, 100) == 7


def test_dropout_is_the_seed_s() -> None:
    """One batch of all rows, so that nothing else of a run depends on the seed."""
    losses = [run(4, 0, 0.3, max_steps=1, seed=seed)[0].losses[0] for seed in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-4


def test_validation_rows_are_shared_by_processes_as_training_rows_are() -> None:
    """Else one process has them all, in a forward pass as many times as large as those of training."""
    data = TrainData(rows(False, False, 12), rows(False, False, 7, 4), "generation", 0)
    sizes = {
        (workers, batch): [
            len(b.rows) for b in Schedule(data, Settings(OPTIM, batch_size=batch), workers).validation()
        ]
        for workers, batch in [(1, 8), (4, 8), (4, 64)]
    }
    assert sizes == {(1, 8): [7], (4, 8): [2, 2, 2, 1], (4, 64): [2, 2, 2, 1]}
