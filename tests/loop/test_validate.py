"""Validation: a loss that is not finite is told with its step and rows."""

from __future__ import annotations

import pytest
import torch
from conftest import pico_llama

from neuroada_cli.data.batch import Encoded, collate
from neuroada_cli.errors import NumericsError
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
