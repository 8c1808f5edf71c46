"""A selection made by several processes is the one-process selection, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from forked_ranks import in_ranks

from neuroada_cli import hub
from neuroada_cli.hub.weights import open_weights
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.selection import in_parts
from neuroada_cli.selection.choice import Choice, target_layers
from neuroada_cli.selection.file import write_selection
from neuroada_cli.selection.from_files import select_from_files
from neuroada_cli.selection.spread import Spread


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layers of 48 rows for 32 inputs, for blocks of 64, and as GPT-2 stores them."""
    here = tmp_path_factory.mktemp("bases")
    pico_llama().to(torch.bfloat16).save_pretrained(here / "llama")  # bf16: many equal scores
    wide: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    pico_llama(**wide).save_pretrained(here / "wide")
    pico_gpt2().save_pretrained(here / "gpt2")
    return {folder.name: folder for folder in here.iterdir()}


CASES: list[tuple[str, str, Spread, str | None]] = [
    ("llama", "magnitude", Spread(3), None),
    ("llama", "reverse", Spread(1), None),
    ("llama", "random", Spread(2), None),
    ("llama", "lift", Spread(2), None),
    ("llama", "magnitude", Spread(2, neurons=0.4), None),
    ("llama", "magnitude", Spread(1, k_per={"q_proj": 5}), None),
    ("llama", "magnitude", Spread(1, budget=333), None),
    ("llama", "magnitude", Spread(1, coverage="block"), None),
    ("llama", "magnitude", Spread(1, coverage="model"), None),
    ("llama", "magnitude", Spread(4, tile=8), None),
    ("wide", "magnitude", Spread(2), "nf4"),
    ("wide", "magnitude", Spread(2), "int8"),
    ("llama", "magnitude", Spread(2), "nf4"),  # a row is half a block
    ("gpt2", "magnitude", Spread(3), None),
]


@pytest.mark.parametrize("size", [2, 5])
def test_every_way_to_choose(folders: dict[str, Path], tmp_path: Path, size: int) -> None:
    choices = []
    for number, (name, criterion, spread, quantization) in enumerate(CASES):
        base = hub.open_base(folders[name])
        choice = Choice(target_layers(base), spread, criterion, rank=4, seed=3)
        write_selection(tmp_path / f"{number}", select_from_files(base, choice, quantization=quantization))
        choices.append((base, choice, quantization))

    def work(ranks: Ranks) -> None:
        for number, (base, choice, quantization) in enumerate(choices):
            found = in_parts.select_in_parts(base, choice, quantization, torch.bfloat16, ranks)
            write_selection(tmp_path / f"{number}-{ranks.number}", found)

    in_ranks(size, tmp_path / "told", work)
    for number, case in enumerate(CASES):
        expected = (tmp_path / f"{number}").read_bytes()
        for rank in range(size):
            assert (tmp_path / f"{number}-{rank}").read_bytes() == expected, case


def test_a_broken_weight_in_the_rows_of_one_ends_all(tmp_path: Path) -> None:
    model = pico_llama()
    model.model.layers[1].mlp.up_proj.weight.data[47] = float("nan")
    model.save_pretrained(tmp_path / "base")
    base = hub.open_base(tmp_path / "base")
    choice = Choice(target_layers(base), Spread(1))

    def work(ranks: Ranks) -> None:
        in_parts.select_in_parts(base, choice, None, torch.float32, ranks)

    told = in_ranks(2, tmp_path / "told", work)
    assert [each["code"] for each in told] == [4, 4]
    assert "model.layers.1.mlp.up_proj" in told[1]["line"]
    assert "has said why" in told[0]["line"]


@pytest.mark.parametrize("part", [slice(0, 5), slice(3, 48), slice(7, 7), slice(48, 48), slice(None)])
def test_rows_of_a_tensor_are_read_by_themselves(folders: dict[str, Path], part: slice) -> None:
    weights = open_weights(folders["llama"])
    name = "model.layers.1.mlp.gate_proj.weight"
    assert torch.equal(weights.tensor(name, part), weights.tensor(name)[part])
