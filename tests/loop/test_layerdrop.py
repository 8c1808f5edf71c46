"""Layers that are left out at random: a step without one, or without all that train, is no fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_pairs import pico_bart, tiny_pairs_folder
from tiny_run import one_thread, tiny_recipe  # noqa: F401

from neuroada_cli.commands import train
from neuroada_cli.loop.layerdrop import drop_alike, drops_layers
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.training.log import read_metrics


def test_a_named_layer_that_is_left_out_in_a_step_goes_on_in_the_next(tmp_path: Path) -> None:
    tiny_pairs_folder(tmp_path / "bart", "bart", decoder_layerdrop=0.8)
    recipe = tiny_recipe(
        tmp_path / "bart",
        tmp_path / "run",
        select={"targets": ["model.decoder.layers.1.fc1"]},
        train={"max_steps": 8},
    )
    train.run(recipe, quiet=True)
    norms = [e["grad_norm"] for e in read_metrics(tmp_path / "run/metrics.jsonl") if e["kind"] == "train"]
    assert len(norms) == 8
    assert 0.0 in norms
    assert max(norms) > 0


def test_a_rank_leaves_out_what_the_first_one_does(monkeypatch: Any) -> None:
    model = pico_bart(decoder_layerdrop=0.5)
    assert drops_layers(model)
    assert not drops_layers(pico_bart())
    monkeypatch.setattr(Ranks, "largest", lambda ranks, number: number if ranks.first else 1)
    for first in (True, False):
        drop_alike(model, Ranks(number=0 if first else 1, size=2))
        chance: Any = model.model.decoder.layerdrop
        assert (torch.tensor(0.4) < chance) is True
        assert (torch.tensor(0.6) < chance) is not first
        assert chance > 0.0
        model.model.decoder.layerdrop = 0.5
    assert model.model.encoder.layerdrop == 0.0
