"""What is said before training about numbers that a type cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pairs import VOCABULARY, pairs_tokenizer
from tiny_run import tiny_bert_folder, tiny_llama_folder, tiny_recipe, tiny_rte_folder
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

from neuroada_cli.commands import train
from neuroada_cli.data.batch import Encoded, collate
from neuroada_cli.hub import TORCH_DTYPES
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.loop.modes import set_training
from neuroada_cli.training.preflight import check
from neuroada_cli.training.remarks import remarks, stuck_moment


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("method", ["neuroada", "bf16 deltas", "mask", "full", "lora"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_second_moment_in_bf16_is_told_wherever_there_is_one(
    method: str, dtype: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the optimizer of a real run holds."""
    given: dict[str, object] = {"method": "neuroada" if method == "bf16 deltas" else method, "max_steps": 1}
    if method == "bf16 deltas":
        given["delta_dtype"] = "bf16"
    held: list[torch.optim.AdamW] = []
    inner = torch.optim.AdamW.__init__

    def noted(self: torch.optim.AdamW, *arguments: object, **named: object) -> None:
        inner(self, *arguments, **named)  # type: ignore[arg-type]
        held.append(self)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", noted)
    recipe = tiny_recipe(base, tmp_path / "run", train=given, model={"dtype": dtype})
    train.run(recipe, quiet=True)
    moments = {state["exp_avg_sq"].dtype for each in held for state in each.state.values()}
    assert moments
    assert (torch.bfloat16 in moments) == (stuck_moment(recipe) is not None), moments


def test_it_is_true_and_the_beta_it_names_is_enough(base: Path, tmp_path: Path) -> None:
    """A moment, and what is left of it after many steps without a gradient."""

    def left(beta: float, value: float) -> float:
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        optimizer = torch.optim.AdamW([parameter], betas=(0.9, beta))
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moment = optimizer.state[parameter]["exp_avg_sq"]
        before = float(moment.fill_(value))
        for _ in range(100):
            optimizer.step()
        return float(moment) / before

    for value in (1.0, 1.25, 1.5, 1.9921875, 3e-6):  # mantissas from end to end
        assert left(0.999, value) == 1
        assert left(0.996, value) < 0.9

    def said(beta: float) -> list[str]:
        changes = {"train": {"delta_dtype": "bf16"}, "optim": {"betas": [0.9, beta]}}
        checked = check(tiny_recipe(base, tmp_path / "other", **changes), overwrite=False)
        return [line for line in remarks(checked) if "second moment" in line]

    (line,) = said(0.999)
    assert line.endswith("a second optim.betas of up to 0.996 lets it")
    assert "train.delta_dtype=fp32" in line
    assert not said(0.996)


@pytest.mark.parametrize("method", ["neuroada", "bitfit", "full", "head"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_gradients_that_are_added_up_in_16_bits_are_named(method: str, dtype: str, tmp_path: Path) -> None:
    """By what the gradient of each kind of module really is, where the method trains one of it."""
    encoder = tiny_bert_folder(tmp_path / "base")
    rows = tiny_rte_folder(tmp_path / "data")
    data = {"task": "rte", "data_dir": str(rows), "limit": None, "validation_limit": None}
    recipe = tiny_recipe(
        encoder, tmp_path / "run", train={"method": method}, model={"dtype": dtype}, data=data
    )
    (line,) = [line for line in remarks(check(recipe, overwrite=False)) if "added up" in line] or [""]
    trains = {"full": ("weight", "bias"), "bitfit": ("bias",)}.get(method, ())
    for kind in (torch.nn.Embedding, torch.nn.LayerNorm, torch.nn.Linear):
        short = [name for name, value in summed(kind, TORCH_DTYPES[dtype]).items() if value < 4900]
        assert (kind.__name__ in line) == bool({*short} & {*trains}), (kind, short, line)


def summed(kind: type[torch.nn.Module], dtype: torch.dtype) -> dict[str, float]:
    """Parameter -> the largest entry of its gradient for 5000 tokens that each send it 1."""
    if kind is torch.nn.Embedding:
        layer = torch.nn.Embedding(2, 4).to(dtype)
        out_TD = layer(torch.zeros(5000, dtype=torch.long))
    else:
        layer = (torch.nn.LayerNorm(4) if kind is torch.nn.LayerNorm else torch.nn.Linear(4, 4)).to(dtype)
        out_TD = layer(torch.tensor([1.0, -1.0, 1.0, -1.0]).to(dtype).expand(5000, 4))
    out_TD.sum().backward()
    return {name: float(p.grad.abs().max()) for name, p in layer.named_parameters() if p.grad is not None}


def test_rows_that_compete_for_experts_are_told(tmp_path: Path) -> None:
    """By the loss of a long row, with short ones beside it and alone."""
    torch.manual_seed(0)
    sizes = {name: 2 for name in ("encoder_attention_heads", "decoder_attention_heads")}
    config = NllbMoeConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_experts=2, expert_capacity=16, encoder_sparse_step=1, decoder_sparse_step=1,
        dropout=0.0, attention_dropout=0.0, moe_token_dropout=0.0, activation_dropout=0.0,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0, init_std=0.3, decoder_start_token_id=2, **sizes,
    )  # fmt: skip
    model = NllbMoeForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "base")
    pairs_tokenizer("bart").save_pretrained(tmp_path / "base")
    said = remarks(check(tiny_recipe(tmp_path / "base", tmp_path / "run"), False))
    [line] = [each for each in said if "expert" in each]
    assert "at most 16 tokens of a micro-batch" in line
    assert "train.micro_batch_size" in line
    rows = [Encoded([*range(5, 17), n], [-100, 9, n], n, decoder=[2, 9, n]) for n in range(20, 24)]
    set_training(model)
    with torch.no_grad():
        together = sum(float(token_loss(model, collate(rows[at : at + 2], 1))[0]) for at in (0, 2))
        alone = sum(float(token_loss(model, collate([row], 1))[0]) for row in rows)
    assert abs(together - alone) > 1e-3
