"""Mixtures of experts from selection to merge, against an oracle that reads nothing but the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_choice import selected
from tiny_families import MIXTURES, tiny
from tiny_run import one_thread, tiny_recipe, tiny_tokenizer  # noqa: F401
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.commands import merge, select, train
from neuroada_cli.errors import RecipeError
from neuroada_cli.selection.file import read_selection
from neuroada_cli.show.numbers import size

K = 2
TOKENS = torch.arange(3, 43).view(2, 20)
TRANSPOSED = ("gpt_oss", "llama4_text")  # their experts lie as [E, I, O]


def saved(model_type: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = tiny(model_type, vocab_size=259, max_position_embeddings=256).to(dtype)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def neurons(model: PreTrainedModel, name: str, model_type: str) -> Tensor:
    """Every row that computes an output, experts below each other; by what is known of the families."""
    parameters = dict(model.named_parameters())
    weight = parameters[name] if name in parameters else parameters[f"{name}.weight"]
    if weight.ndim == 3:
        turned = weight.transpose(1, 2) if model_type in TRANSPOSED else weight
        return turned.reshape(-1, turned.shape[-1])
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", MIXTURES)
def test_selected_and_merged_as_the_loaded_model_says(
    model_type: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = saved(model_type, tmp_path / "base", dtype)
    selection = selected(base, k=K)
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    assert any("experts" in name or "moe" in name for name in selection.indices)
    chance = torch.Generator().manual_seed(3)
    deltas = {name: 0.3 * torch.randn(i.shape, generator=chance) for name, i in selection.indices.items()}
    expected: dict[str, Tensor] = {}
    for name, index_OK in selection.indices.items():
        weight_OI = neurons(loaded, name, model_type)
        chosen_OK = weight_OI.abs().float().gather(1, index_OK.long()).sort(1, True).values
        assert torch.equal(chosen_OK, weight_OI.abs().float().topk(K, 1).values), name
        expected[name] = weight_OI.float().scatter_add(1, index_OK.long(), deltas[name]).to(dtype)

    settings = {"dtype": "fp32" if dtype == torch.float32 else "bf16", "task": "due_dates"}
    adapter = Adapter(selection, deltas, {}, str(base), None, "causal-lm", settings)
    with files.atomic_folder(tmp_path / "adapter") as folder:
        adapters.write_adapter(folder, adapter)
    result = merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    assert result.stats.entries == sum(i.numel() for i in selection.indices.values())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype).eval()
    untouched = dict(loaded.named_parameters())
    for name in selection.indices:
        assert torch.equal(neurons(merged, name, model_type), expected[name]), name
        untouched.pop(name, None) if name in untouched else untouched.pop(f"{name}.weight")
    for name, parameter in untouched.items():
        assert torch.equal(merged.get_parameter(name), parameter), name
    attached = adapted.load(str(tmp_path / "adapter")).model
    with torch.inference_mode():
        assert torch.equal(merged(TOKENS).logits, attached(TOKENS).logits)


def recipe_of(base: Path, run_dir: Path, **sections: dict[str, Any]) -> Any:
    return tiny_recipe(base, run_dir, **{"train": {"max_steps": 3}, **sections})


def test_a_run_trains_resumes_and_merges_every_expert(tmp_path: Path) -> None:
    base = saved("qwen3_moe", tmp_path / "base")
    result = train.run(recipe_of(base, tmp_path / "run"), quiet=True)
    deltas = adapters.read_adapter(result.last or tmp_path).deltas
    experts = {name: delta for name, delta in deltas.items() if "experts" in name}
    assert len(experts) == 4
    for name, delta_OK in experts.items():
        assert (delta_OK.view(4, -1) != 0).any(dim=1).all(), name
    again = train.run(
        recipe_of(base, tmp_path / "other", train={"max_steps": 3, "save_every": 1}), quiet=True
    )
    assert all(
        torch.equal(d, deltas[n]) for n, d in adapters.read_adapter(again.last or tmp_path).deltas.items()
    )
    merge.run(tmp_path / "run", tmp_path / "out", quiet=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    subject = adapted.load(str(tmp_path / "run"))
    with torch.inference_mode():
        assert torch.equal(merged(TOKENS).logits, subject.model(TOKENS).logits)


def test_experts_that_stay_out_of_4_bits_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what a loaded base holds."""
    base = saved("qwen3_moe", tmp_path / "base")
    recipe = recipe_of(base, tmp_path / "run", model={"quantization": "nf4", "dtype": "bf16"})
    train.run(recipe, dry_run=True)
    said = capsys.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if "nf4 packs linear layers only" in line]
    loaded = hub.load_model(base, "causal-lm", "bf16", "cpu", quantization="nf4").model
    experts = [p for name, p in loaded.named_parameters() if "experts" in name]
    assert {p.dtype for p in experts} == {torch.bfloat16}
    assert line.endswith(f"stay in bf16, {size(sum(p.nbytes for p in experts))}")
    train.run(recipe_of(base, tmp_path / "run", model={"dtype": "bf16"}), dry_run=True)
    assert "packs linear layers" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "spread", [{"coverage": "matrix"}, {"coverage": "model"}, {"neurons": 0.5}, {"tile": 8}]
)
@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "random", "lift"])
def test_every_spread_and_criterion_chooses_among_experts(
    criterion: str, spread: dict[str, Any], tmp_path: Path
) -> None:
    base = saved("mixtral", tmp_path / "base")
    section = {"criterion": criterion, "k": K, "targets": ["gate_up_proj", "down_proj"], **spread}
    selection = read_selection(select.run(recipe_of(base, tmp_path / "run", select=section), quiet=True))
    loaded = AutoModelForCausalLM.from_pretrained(base)
    for name, index_OK in selection.indices.items():
        assert len(index_OK) == neurons(loaded, name, "mixtral").shape[0]
    rows = sum(len(neurons(loaded, name, "mixtral")) for name, p in loaded.named_parameters() if p.ndim == 3)
    assert selection.connections == pytest.approx(K * rows, abs=64)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"method": "lora"}, "peer": {"rank": 2}}, r"exclude: \[gate_up_proj, down_proj\]"),
        ({"select": {"criterion": "activation"}}, "looks at what goes into a linear layer"),
    ],
)
def test_what_knows_no_experts_is_refused_by_name(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = saved("mixtral", tmp_path / "base")
    with pytest.raises(RecipeError, match=message):
        train.run(recipe_of(base, tmp_path / "run", **sections), quiet=True)
