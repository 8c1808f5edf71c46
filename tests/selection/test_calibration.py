"""What `activation` counts: every token of the rows once, whatever batches they lie in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import pico_bert
from tiny_families import MIXTURES, tiny
from tiny_run import one_thread, tiny_recipe  # noqa: F401
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, T5Config

from neuroada_cli.data.batch import IGNORED, Encoded, unpadded
from neuroada_cli.delta.targets import find_targets, targets_of
from neuroada_cli.loop.loop import TrainData
from neuroada_cli.selection.from_rows import _inputs
from neuroada_cli.training.choose import calibration

HEAD, LENGTHS = 20, (2, 9, 5, 2, 14, 3, 7, 5)
SETTINGS: dict[str, dict[str, Any]] = {
    "row by row": {"micro_batch_size": 1},
    "all at once": {"micro_batch_size": None},
    "in fours, as they come": {"micro_batch_size": 4, "group_by_length": False},
    "shared prefix": {"share_prefix": True},
    "packed": {"packing": True},
}


def rows(kind: str = "generation") -> list[Encoded]:
    """Of several lengths, all with one beginning; the last learns nothing."""
    chance = torch.Generator().manual_seed(3)
    made = []
    for number, length in enumerate(LENGTHS):
        tokens = torch.randint(3, 90, (length,), generator=chance).tolist()
        whole = [*range(5, 5 + HEAD), *tokens]
        labels: Any = [*[IGNORED] * HEAD, *tokens]
        if number == len(LENGTHS) - 1:
            labels = [IGNORED] * len(whole)
        if kind == "seq2seq":
            made.append(Encoded(whole, labels[HEAD - 1 :], number, decoder=[0, *tokens]))
        else:
            made.append(Encoded(whole, labels if kind == "generation" else number % 2, number))
    return made


def norms(model: nn.Module, data: TrainData, train: dict[str, Any]) -> dict[str, Tensor]:
    section = {"criterion": "activation", "calibration_batches": None}
    recipe = tiny_recipe("none", "none", select=section, train={"batch_size": 8, **train})  # type: ignore[arg-type]
    heads = [n for n in targets_of(model) if n.endswith(("lm_head", "classifier", "pooler.dense"))]
    targets = find_targets(model, ["all-linear"], heads)
    targets = {name: target for name, target in targets.items() if target.layout.experts is None}
    batches = calibration(recipe, data, "activation")
    return dict(_inputs(model, targets, batches, data.kind, 0))


def obvious(model: nn.Module, data: TrainData, names: list[str]) -> dict[str, Tensor]:
    """A row at a time, as it is."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: parts[name].append(args[0].detach().flatten(0, -2))
        )
        for name in names
    ]
    for row in data.train:
        if isinstance(row.labels, list) and set(row.labels) == {IGNORED}:
            continue
        given = {"input_ids": torch.tensor([row.input_ids])}
        if row.decoder is not None:
            given["decoder_input_ids"] = torch.tensor([row.decoder])
        with torch.no_grad():
            model(**given)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts[name]).float().norm(dim=0) for name in names}


def assert_the_same_however_batches_are_made(model: nn.Module, data: TrainData, settings: Any) -> None:
    found = {said: norms(model, data, train) for said, train in settings.items()}
    names = [name for name in found["row by row"] if isinstance(model.get_submodule(name), nn.Linear)]
    assert names
    expected = found["row by row"] | obvious(model, data, names)
    assert any(bool(norm_I.any()) for norm_I in expected.values())
    for said, by_layer in found.items():
        for name, norm_I in by_layer.items():
            torch.testing.assert_close(norm_I, expected[name], rtol=1e-4, atol=1e-5, msg=f"{said}: {name}")


@pytest.mark.parametrize(
    "model_type", ["llama", "opt", "gpt_neox", "qwen2_moe", "glm4_moe", "granitemoeshared", *MIXTURES]
)
def test_activation_counts_each_token_once_however_batches_are_made(model_type: str) -> None:
    """OPT and shared experts get all tokens in one row, routers do or do not."""
    data = TrainData(rows(), [], "generation", pad_id=0)
    assert_the_same_however_batches_are_made(tiny(model_type), data, SETTINGS)


def test_of_an_encoder_decoder_and_of_a_classifier_too() -> None:
    plain = {said: train for said, train in SETTINGS.items() if said not in ("shared prefix", "packed")}
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    t5 = AutoModelForSeq2SeqLM.from_config(config).eval()
    assert_the_same_however_batches_are_made(t5, TrainData(rows("seq2seq"), [], "generation", 0), plain)
    bert = pico_bert(num_labels=2).eval()
    assert_the_same_however_batches_are_made(bert, TrainData(rows("classes"), [], "classification", 0), plain)


def test_batches_without_padding_hold_every_row_that_has_a_target_once() -> None:
    batches = list(unpadded(rows(), 0, None, 2))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(LENGTHS) - 1))
    assert all(batch.attention_BS.all() and len(batch.rows) <= 2 for batch in batches)
    assert max(len(batch.rows) for batch in batches) == 2
