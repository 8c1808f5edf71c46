"""How neurons share inputs: counted by hand, and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.commands import select
from neuroada_cli.errors import RecipeError
from neuroada_cli.selection.shares import _curve, shares_of


def test_shares_are_what_one_counts() -> None:
    index_OK = torch.tensor([[0, 3], [0, -1], [0, 1], [3, 2]], dtype=torch.int32)
    found = shares_of(index_OK, inputs=8)
    assert found.used == 4 / 8
    assert found.most == 3 / 4
    assert found.sorted_I.tolist() == [3, 2, 1, 1, 0, 0, 0, 0]


def test_the_curve_goes_from_nothing_to_everything() -> None:
    at, share = _curve([torch.tensor([3, 1, 0, 0]), torch.tensor([1, 1, 1, 1])])
    assert (at[0], share[0], at[-1], share[-1]) == (0, 0, 1, 1)
    assert share[at.index(0.25)] == pytest.approx((0.75 + 0.25) / 2)
    assert share == sorted(share)


def test_select_draws_it(tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_llama_folder(tmp_path / "base"), tmp_path / "run")
    select.run(recipe, quiet=True, plot=tmp_path / "shares.svg")
    drawn = (tmp_path / "shares.svg").read_text(encoding="utf-8")
    assert "svg" in drawn[:400]
    with pytest.raises(RecipeError, match="is no picture"):
        select.run(recipe, tmp_path / "x.safetensors", quiet=True, plot=tmp_path / "shares.txt")
    assert not (tmp_path / "x.safetensors").exists()
