"""Models whose normalisations hold running statistics: training must leave those as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_loop import NoCheckpoints, Said
from tiny_run import one_thread  # noqa: F401
from torch import Tensor, nn
from transformers import (
    MobileViTConfig,
    MobileViTForImageClassification,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
)

from neuroada_cli.data.batch import Encoded, collate
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.errors import NumericsError
from neuroada_cli.loop.frozen import FrozenWatch
from neuroada_cli.loop.loop import Settings, TrainData, train
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.loop.modes import evaluating, set_training
from neuroada_cli.loop.optim import OptimSettings
from neuroada_cli.loop.validate import validate
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.protocol import Method

ROWS = [Encoded([], number % 3, number) for number in range(6)]


def pixels(rows: Any) -> dict[str, Tensor]:
    made = [torch.Generator().manual_seed(row.row) for row in rows]
    return {"pixel_values": torch.stack([torch.randn(3, 32, 32, generator=each) for each in made]) + 1}


def pico_mobilevit() -> nn.Module:
    """Its statistics are those of other pictures than the rows', as a pretrained model's are."""
    torch.manual_seed(0)
    config = MobileViTConfig(
        image_size=32, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 8], num_attention_heads=2,
        num_labels=3, expand_ratio=1.0, initializer_range=0.2, hidden_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
    )  # fmt: skip
    model = MobileViTForImageClassification(config).train()
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(**pixels([Encoded([], 0, number) for number in range(90, 98)]))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def chosen(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.arange(2, dtype=torch.int32).repeat(model.get_submodule(name).out_features, 1)
        for name in find_targets(model, ["all-linear"])
    }


class Heard(Said):
    def evaluation(self, step: int, evaluation: Any, is_best: bool) -> None:
        super().evaluation(step, evaluation, is_best)
        self.last = evaluation


def trained(base: nn.Module, name: str, **settings: Any) -> tuple[nn.Module, Method, Heard]:
    model, method = copy.deepcopy(base), METHODS[name].build()
    method.attach(model, chosen(base))
    heard, data = Heard(), TrainData(ROWS, ROWS, "classification", 0, features=pixels)
    asked: dict[str, Any] = {"optim": OptimSettings(lr=1e-2), "epochs": 3, "batch_size": 6, **settings}
    indices = chosen(base) if METHODS[name].chosen else {}
    train(model, method, data, Settings(**asked), NoCheckpoints(), heard, indices)
    return model, method, heard


@pytest.mark.parametrize("name", ["neuroada", "mask", "full", "bitfit"])
def test_what_was_learnt_does_on_the_base_what_it_did_in_training(name: str) -> None:
    base = pico_mobilevit()
    model, method, heard = trained(base, name, eval_every=1)

    again, copied = copy.deepcopy(base), METHODS[name].build()
    copied.attach(again, chosen(base))
    copied.load_state(again, method.state(model))
    found = validate(again, [collate(ROWS, 0, pixels)], "classification")

    assert found is not None
    assert found.loss == pytest.approx(heard.last.loss, rel=1e-5)
    assert heard.losses[2] != pytest.approx(heard.losses[0], rel=1e-3)  # it has moved


def test_a_steps_loss_and_gradient_are_the_same_however_it_is_cut() -> None:
    base = pico_mobilevit()
    _, _, whole = trained(base, "neuroada", max_steps=1)
    _, _, by_one = trained(base, "neuroada", max_steps=1, micro_batch_size=1)
    assert by_one.losses == pytest.approx(whole.losses, rel=1e-5)
    assert by_one.norms == pytest.approx(whole.norms, rel=1e-4)


def test_statistics_rest_in_training_and_after_an_evaluation_while_the_rest_trains() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4, track_running_stats=False))
    set_training(model)
    with evaluating(model):
        assert not any(each.training for each in model.modules())
    assert [each.training for each in model] == [False, True, True]
    assert model.training


def test_a_buffer_of_the_models_file_that_moves_is_named_and_one_that_no_file_holds_may() -> None:
    model = pico_llama()
    model.register_buffer("mean", torch.zeros(3))
    model.register_buffer("cache", torch.zeros(3), persistent=False)
    watch = FrozenWatch(model, {})
    model.get_buffer("cache").add_(1)
    watch.check()
    watch.check_all()
    model.get_buffer("mean").add_(1e-6)
    for check in (watch.check, watch.check_all):
        with pytest.raises(NumericsError, match=r"mean: frozen weights changed"):
            check()


def test_experts_train_by_the_bound_of_their_config_also_behind_an_evaluation() -> None:
    """NLLB-MoE's routers write the number of tokens that they evaluate over it."""
    torch.manual_seed(0)
    config = NllbMoeConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_experts=2, expert_capacity=16,
        encoder_sparse_step=1, decoder_sparse_step=1, dropout=0.0, attention_dropout=0.0,
        moe_token_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0,
        decoder_layerdrop=0.0, init_std=0.3,
    )  # fmt: skip
    model = NllbMoeForConditionalGeneration(config)
    set_training(model)
    long = Encoded(list(range(5, 35)), [-100, *range(6, 26)], 0, decoder=[2, *range(6, 26)])
    short = Encoded([7, 8, 2], [-100, 9], 1, decoder=[2, 9])
    with torch.no_grad():
        before = token_loss(model, collate([long], 1))[0]
        validate(model, [collate([short], 1)], "generation")
        assert torch.equal(token_loss(model, collate([long], 1))[0], before)
        model.eval()
        token_loss(model, collate([short], 1))
        set_training(model)
        assert not torch.equal(token_loss(model, collate([long], 1))[0], before), "what there is to guard"
