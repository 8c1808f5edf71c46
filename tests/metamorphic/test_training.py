"""What may not matter to a training: for every method, base and target set, the same bits come out.

The oracle is the same training without it; nothing here knows what the right numbers are.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_loop import STEPS, Bench, Case, Outcome, covered
from tiny_run import one_thread  # noqa: F401
from torch import nn

from neuroada_cli.delta import model as delta

SAVED_AT = 2  # in the first epoch, after the second choice where a run chooses anew
VALIDATION = 5


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module", params=covered())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def plain(bench: Bench, case: Case) -> Outcome:
    """The training that nothing disturbs: no evaluation, no checkpoint."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return bench.run(case)
    finally:
        torch.set_num_threads(before)


def test_it_learns(plain: Outcome) -> None:
    """Otherwise nothing below says anything."""
    assert all(norm > 0 for norm in plain.norms)
    assert any(bool(tensor.any()) for tensor in plain.learnt.values())
    assert len(set(plain.losses)) == STEPS


def test_evaluating_every_step_changes_nothing(bench: Bench, case: Case, plain: Outcome) -> None:
    found = bench.run(case, validation=VALIDATION, eval_every=1)
    assert bench.said.evaluated == [*range(1, STEPS + 1)]
    assert found.bits() == plain.bits()


def test_saving_every_step_and_going_on_from_a_save_change_nothing(
    bench: Bench, case: Case, plain: Outcome, tmp_path: Path
) -> None:
    found = bench.run(case, saved_in=tmp_path, save_every=1)
    assert found.bits() == plain.bits()
    resumed = bench.run(case, saved_in=tmp_path, source=tmp_path / f"checkpoint-{SAVED_AT}")
    expected = plain.bits()
    for said in ("losses", "norms"):
        expected[said] = expected[said][SAVED_AT:]
    assert resumed.bits() == expected


def test_recomputing_changes_nothing(bench: Bench, case: Case, plain: Outcome) -> None:
    assert bench.run(case, gradient_checkpointing=True).bits() == plain.bits()


def test_a_second_adapter_attached_and_detached_changes_nothing(
    bench: Bench, case: Case, plain: Outcome
) -> None:
    other = bench.selection(case, k=3, criterion="reverse")

    def visit(model: nn.Module) -> None:
        values = torch.Generator().manual_seed(1)
        deltas = {
            name: torch.randn(index_OK.shape, generator=values) * (index_OK >= 0)
            for name, index_OK in other.indices.items()
        }
        delta.attach(model, other.indices, deltas)
        with torch.no_grad():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        delta.detach(model)

    assert bench.run(case, before=visit).bits() == plain.bits()


@pytest.mark.parametrize("case", covered(wide=True))
def test_the_number_of_threads_changes_nothing(case: Case, bench: Bench) -> None:
    """Without dropout in the attention: torch's softmax on a CPU has another backward pass for one thread
    than for several, which differs in the last bit; only dropout (or eager attention) makes use of it.
    """
    one = bench.run(case, dropout=0.0, max_steps=1)  # what differed later would have differed in its gradient
    torch.set_num_threads(2)  # `one_thread` puts it back
    assert bench.run(case, dropout=0.0, max_steps=1).bits() == one.bits()
