"""Validation: a loss that is not finite is told with its step and rows."""

from __future__ import annotations

import pytest
import torch
from conftest import pico_llama

from neuroada_cli.data.batch import Encoded, collate
from neuroada_cli.errors import NumericsError
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.loop.validate import validate


def test_a_loss_that_is_not_finite_names_step_and_rows() -> None:
    model = pico_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[95] = float("nan")
    rows = [Encoded([5, 6, 7, 8], [-100, -100, 7, 8], number) for number in range(6)]
    rows[4].input_ids[0] = 95
    batches = [collate(rows[at : at + 2], 0) for at in range(0, 6, 2)]
    with pytest.raises(NumericsError, match="not finite at step 12, validation rows 4, 5;") as caught:
        validate(model, batches, "generation", step=12)
    assert caught.value.exit_code == 5
    found = validate(model, batches[:2], "generation")
    assert found is not None
    assert found.targets == 8


def test_the_loss_is_the_mean_over_targets_however_rows_are_batched() -> None:
    """Rows have 1 to 5 targets, so a mean over batches or rows would differ."""
    model = pico_llama()
    rows = [
        Encoded([5, 6, 7, 8, 9, 10 + n], [-100] * n + [5, 6, 7, 8, 9, 10 + n][n:], n) for n in range(1, 6)
    ]
    with torch.no_grad():
        sums = [float(token_loss(model, collate([row], 0))[0]) for row in rows]
    expected = sum(sums) / 15
    for size in (1, 2, 5):
        found = validate(model, [collate(rows[at : at + size], 0) for at in range(0, 5, size)], "generation")
        assert found is not None
        assert found.targets == 15
        assert found.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_afterwards_what_it_was(training: bool) -> None:
    model = pico_llama().train(training)
    validate(model, [collate([Encoded([5, 6, 7], [5, 6, 7], 0)], 0)], "generation")
    assert model.training == training
    assert all(module.training == training for module in model.modules())
