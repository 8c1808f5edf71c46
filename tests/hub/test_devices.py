"""Which device is taken, and what is said of one that is not there."""

from __future__ import annotations

import pytest
import torch

from neuroada_cli import hub
from neuroada_cli.errors import RecipeError, ResourceError
from neuroada_cli.recipe.load import recipe_from


def test_apples_gpu_is_taken_where_it_is_named_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hub.choose_device("mps") == "mps"
    assert hub.choose_device() == "cpu"  # nothing was measured on it, so nobody gets it unasked
    with pytest.raises(ResourceError, match="choose cpu, mps"):
        hub.choose_device("cuda")


def test_where_it_is_missing_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"there is no mps here.*choose cpu$"):
        hub.choose_device("mps")


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "cuda:3"])
def test_recipes_name_it(device: str) -> None:
    recipe = recipe_from({"name": "a", "device": device, "model": {"path": "m"}, "data": {"task": "gsm8k"}})
    assert recipe.device == device


def test_a_recipe_that_names_another_is_refused() -> None:
    with pytest.raises(RecipeError, match="device"):
        recipe_from({"name": "a", "device": "tpu", "model": {"path": "m"}, "data": {"task": "gsm8k"}})
