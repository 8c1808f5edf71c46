"""Quantised bases from selection to merge: write what training saw, or put the deltas on the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from safetensors.torch import load_file
from tiny_choice import selected
from tiny_tokenizer import byte_tokenizer
from transformers import AutoModelForCausalLM

from neuroada_cli import files
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.commands import merge
from neuroada_cli.delta.quantized import QuantizedDeltaLinear, dequantize, round_trip
from neuroada_cli.errors import RecipeError

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
TOKENS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module", params=["nf4", "fp4", "int8"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(adapter folder, quantisation) of an adapter with random deltas over a quantised pico Llama."""
    place = tmp_path_factory.mktemp(request.param)
    base = place / "base"
    model = pico_llama(hidden_size=64, intermediate_size=128, vocabulary=512)
    model.to(torch.bfloat16).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    selection = selected(base, k=3, quantization=request.param)
    chance = torch.Generator().manual_seed(3)
    deltas = {name: 0.3 * torch.randn(i.shape, generator=chance) for name, i in selection.indices.items()}
    settings = {"dtype": "bf16", "quantization": request.param, "task": "due_dates"}
    adapter = Adapter(selection, deltas, {}, str(base), None, "causal-lm", settings)
    with files.atomic_folder(place / "adapter") as folder:
        adapters.write_adapter(folder, adapter)
    return place / "adapter", request.param


def test_selection_is_of_the_weights_that_train(trained: tuple[Path, str]) -> None:
    subject = adapted.load(str(trained[0]))
    name = "model.layers.0.mlp.up_proj"
    layer = subject.model.get_submodule(name)
    assert isinstance(layer, QuantizedDeltaLinear)
    assert subject.adapter is not None
    weight_OI = dequantize(layer.base, torch.bfloat16).abs().float()
    chosen_OK = weight_OI.gather(1, subject.adapter.selection.indices[name].long())
    assert torch.equal(chosen_OK.sort(1).values, weight_OI.topk(3, 1).values.sort(1).values)


def test_onto_dequantized_equals_what_was_trained(trained: tuple[Path, str], tmp_path: Path) -> None:
    merge.run(trained[0], tmp_path / "out", onto="dequantized", quiet=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).eval()
    subject = adapted.load(str(trained[0]))
    with torch.inference_mode():
        expected = subject.model(TOKENS).logits
        torch.testing.assert_close(plain(TOKENS).logits, expected, rtol=0, atol=0)
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["largest_difference"] == 0
    assert report["same_first_choice"] == 1
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_onto_the_original_changes_only_chosen_entries_and_says_how_far_it_is(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    merge.run(trained[0], tmp_path / "out", quiet=True)
    adapter = adapters.read_adapter(trained[0])
    base = load_file(Path(adapter.base) / "model.safetensors")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in base.items():
        module = name.removesuffix(".weight")
        if module not in adapter.deltas:
            assert torch.equal(merged[name], tensor)
            continue
        index_OK = adapter.selection.indices[module].long()
        expected = tensor.float().scatter_add(1, index_OK, adapter.deltas[module]).bfloat16()
        assert torch.equal(merged[name], expected)
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["onto"] == "original"
    assert 0 < report["mean_difference"] < report["logit_spread"]
    # of absolute values: those with their signs would nearly cancel out
    assert report["mean_difference"] > report["largest_difference"] / 20


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "nf4"}, "would destroy the deltas"), ({"onto": "nf4"}, "neither original nor dequantized")],
)
def test_folding_back_into_few_bits_is_refused(
    trained: tuple[Path, str], tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        merge.run(trained[0], tmp_path / "out", quiet=True, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module", params=["nf4", "int8"])
def qlora(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(adapter folder, quantisation) of a LoRA adapter with random A and B over a quantised pico Llama."""
    pytest.importorskip("peft")
    place = tmp_path_factory.mktemp(f"lora-{request.param}")
    pico_llama(hidden_size=64, intermediate_size=128, vocabulary=512).to(torch.bfloat16).save_pretrained(
        place / "base"
    )
    byte_tokenizer().save_pretrained(place / "base")
    selection = selected(place / "base", ["q_proj", "down_proj"], quantization=request.param)
    chance = torch.Generator().manual_seed(3)
    inputs = {"q_proj": 64, "down_proj": 128}
    whole = {}
    for name in selection.indices:
        for part, shape in (("lora_A", (4, inputs[name.rpartition(".")[2]])), ("lora_B", (64, 4))):
            whole[f"{name}.{part}.default.weight"] = 0.1 * torch.randn(shape, generator=chance)
    deltas = {name: torch.zeros(index_OK.shape) for name, index_OK in selection.indices.items()}
    settings = {
        "dtype": "bf16", "quantization": request.param, "task": "due_dates",
        "method": "lora", "peer": {"rank": 4},
    }  # fmt: skip
    adapter = Adapter(selection, deltas, whole, str(place / "base"), None, "causal-lm", settings)
    with files.atomic_folder(place / "adapter") as folder:
        adapters.write_adapter(folder, adapter)
    return place / "adapter", request.param


@pytest.mark.parametrize("onto", ["original", "dequantized"])
def test_lora_of_a_quantised_base_is_merged_onto_what_is_said(
    qlora: tuple[Path, str], onto: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, kind = qlora
    merge.run(source, tmp_path / "out", onto=onto)
    adapter = adapters.read_adapter(source)
    base = load_file(Path(adapter.base) / "model.safetensors")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name in adapter.selection.indices:
        weight_OI = base[f"{name}.weight"]
        if onto == "dequantized":
            weight_OI = round_trip(weight_OI, kind, torch.bfloat16)
        parts = (adapter.whole[f"{name}.lora_{part}.default.weight"] for part in "BA")
        b_OR, a_RI = parts
        expected_OI = (weight_OI.float() + 2 * b_OR @ a_RI).bfloat16()
        torch.testing.assert_close(merged[f"{name}.weight"], expected_OI, rtol=1e-2, atol=1e-3)
    untouched = "model.layers.0.mlp.up_proj.weight"
    expected_OI = base[untouched]
    if onto == "dequantized":
        expected_OI = round_trip(expected_OI, kind, torch.bfloat16)
    assert torch.equal(merged[untouched], expected_OI)
    said = "original weights" if onto == "original" else f"as {kind} leaves them"
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert said in card
    assert said in " ".join(capsys.readouterr().out.split())
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["onto"] == onto
    assert onto == "original" or report["mean_difference"] < 0.05 * report["logit_spread"]
