"""Adapter folders between the command line and PEFT: the same tensors, the same answers, both ways.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from packaging.version import Version
from tiny_choice import selected
from tiny_tokenizer import byte_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BitsAndBytesConfig,
)
from transformers.integrations.peft import MIN_PEFT_VERSION

from neuroada_cli import files, hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter, read_adapter, write_adapter
from neuroada_cli.commands import merge
from neuroada_cli.delta.quantized import keep_layout
from neuroada_cli.errors import ModelError
from neuroada_cli.selection.file import write_selection

pytest.importorskip("peft")
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    get_peft_model,
)

from neuroada_cli.peft_plugin import NeuroAdaConfig

TOKENS = torch.arange(40).view(2, 20)
AUTO = {
    "causal-lm": AutoPeftModelForCausalLM,
    "sequence-classification": AutoPeftModelForSequenceClassification,
}
BASES = {"llama": pico_llama, "gpt2": pico_gpt2, "bert": lambda: pico_bert().bert}


def adapter_on(
    base: Path, out: Path, seed: int = 3, ragged: bool = False, **changes: Any
) -> tuple[Path, Adapter]:
    """A folder as `neuroada train` leaves it, with random deltas; of a base without a head, with a head."""
    classifier = "bert" in base.name
    task: hub.ModelTask = "sequence-classification" if classifier else "causal-lm"
    chance = torch.Generator().manual_seed(seed)
    selection = selected(base, k=3, task=task, num_labels=2 if classifier else None)
    deltas = {n: 0.3 * torch.randn(i.shape, generator=chance) for n, i in selection.indices.items()}
    if ragged:
        for name, index_OK in selection.indices.items():
            index_OK[::2, 2], deltas[name][::2, 2] = -1, 0
    settings: dict[str, Any] = {"dtype": "fp32", "method": "neuroada"} | changes
    whole = {}
    if classifier:
        settings |= {"num_labels": 2, "labels": ["no", "yes"], "pad_token_id": 0}
        whole = {"classifier.weight": torch.randn(2, 32, generator=chance), "classifier.bias": torch.ones(2)}
    adapter = Adapter(selection, deltas, whole, str(base), None, task, settings)
    with files.atomic_folder(out) as folder:
        write_adapter(folder, adapter)
    return out, adapter


@pytest.fixture(scope="module", params=BASES)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Adapter]:
    place = tmp_path_factory.mktemp("peft")
    base = place / request.param
    BASES[request.param]().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    return adapter_on(base, place / "adapter", ragged=request.param == "llama")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("base") / "llama"
    pico_llama().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    return base


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=TOKENS).logits
    return found


def loaded(folder: Path, **options: Any) -> Any:
    task = read_adapter(folder).task
    return AUTO[task].from_pretrained(folder, dtype=torch.float32, **options)


def same(one: Adapter, other: Adapter) -> None:
    assert one.deltas.keys() == other.deltas.keys()
    for name, delta_OK in one.deltas.items():
        assert torch.equal(delta_OK, other.deltas[name])
        assert torch.equal(one.selection.indices[name], other.selection.indices[name])
    assert one.whole.keys() == other.whole.keys()
    assert all(torch.equal(tensor, other.whole[name]) for name, tensor in one.whole.items())
    for key in ("base", "revision", "task"):
        assert getattr(one, key) == getattr(other, key)
    for key in ("k", "criterion", "fingerprint", "tied"):
        assert getattr(one.selection, key) == getattr(other.selection, key)


def test_the_command_lines_adapter_answers_the_same_in_peft(stored: tuple[Path, Adapter]) -> None:
    folder, _ = stored
    ours = adapted.load(str(folder)).model
    assert torch.equal(logits(loaded(folder)), logits(ours))
    config = PeftConfig.from_pretrained(folder)
    assert isinstance(config, NeuroAdaConfig)
    assert (config.k, config.criterion) == (3, "magnitude")
    slim = loaded(folder, low_cpu_mem_usage=True)
    assert torch.equal(logits(slim), logits(ours))


def test_what_peft_saves_the_command_line_reads_to_the_bit(
    stored: tuple[Path, Adapter], tmp_path: Path
) -> None:
    folder, adapter = stored
    model = loaded(folder)
    logits(model)
    model.save_pretrained(tmp_path / "saved")
    again = read_adapter(tmp_path / "saved")
    same(again, adapter)
    assert again.settings == adapter.settings
    assert torch.equal(logits(adapted.load(str(tmp_path / "saved")).model), logits(model))
    merge.run(tmp_path / "saved", tmp_path / "merged", quiet=True)
    kind = AutoModelForCausalLM if adapter.task == "causal-lm" else AutoModelForSequenceClassification
    merged = kind.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(logits(merged), logits(model))
    assert torch.equal(logits(model.merge_and_unload()), logits(merged))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "import neuroada_cli.peft_plugin" in card


def test_a_new_adapter_chooses_and_trains_as_the_command_line_does(llama: Path, tmp_path: Path) -> None:
    for criterion in ("magnitude", "random", "reverse"):
        base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        model = get_peft_model(base, NeuroAdaConfig(k=2, criterion=criterion, task_type="CAUSAL_LM"))
        chosen = selected(llama, k=2, criterion=criterion, seed=42)
        for name, index_OK in chosen.indices.items():
            layer = model.base_model.model.get_submodule(name)
            assert torch.equal(layer.neuroada_indices["default"], index_OK)
    assert model.get_nb_trainable_parameters()[0] == chosen.connections
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "saved")
    found = read_adapter(tmp_path / "saved")
    assert found.selection.fingerprint == hub.fingerprint(llama)
    assert found.settings == {"method": "neuroada", "dtype": "fp32"}
    merge.run(tmp_path / "saved", tmp_path / "merged", quiet=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(logits(merged), logits(model))


def test_a_fresh_head_is_saved_and_read(tmp_path: Path) -> None:
    pico_bert().bert.save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=3)
    model = get_peft_model(base, NeuroAdaConfig(k=1, task_type="SEQ_CLS"))
    model(input_ids=TOKENS, labels=torch.tensor([0, 2])).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    model.save_pretrained(tmp_path / "saved")
    adapter = read_adapter(tmp_path / "saved")
    assert set(adapter.whole) == {"classifier.weight", "classifier.bias"}
    assert adapter.settings["num_labels"] == 3
    assert torch.equal(logits(adapted.load(str(tmp_path / "saved")).model), logits(model))


@pytest.mark.parametrize("named", [None, ["pooler"], ["bert.pooler.dense"]])
def test_a_fresh_pooler_that_is_not_saved_is_said(named: list[str] | None, tmp_path: Path) -> None:
    """PEFT saves `classifier` and `score` by itself. A masked language model has no pooler."""
    pico_bert().bert.save_pretrained(tmp_path / "whole")
    BertForMaskedLM(pico_bert().config).save_pretrained(tmp_path / "mlm")
    settings = {} if named is None else {"modules_to_save": named}

    def warned(folder: str) -> list[str]:
        base = BertForSequenceClassification.from_pretrained(tmp_path / folder, num_labels=3)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = get_peft_model(base, NeuroAdaConfig(k=1, task_type="SEQ_CLS", **settings))
        model.save_pretrained(tmp_path / "saved")
        again = BertForSequenceClassification.from_pretrained(tmp_path / folder, num_labels=3)
        loaded = PeftModel.from_pretrained(again, tmp_path / "saved")
        found = [str(each.message) for each in said if "is random" in str(each.message)]
        assert torch.equal(logits(loaded), logits(model)) == (not found)
        return found

    assert warned("whole") == []
    lost = warned("mlm")
    assert [line.partition(" ")[0] for line in lost] == (["bert.pooler.dense"] if named is None else [])


def test_several_adapters_from_folders_and_training_on(llama: Path, tmp_path: Path) -> None:
    one, _ = adapter_on(llama, tmp_path / "one", seed=1)
    two, _ = adapter_on(llama, tmp_path / "two", seed=2)
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, one, adapter_name="one", is_trainable=True)
    model.load_adapter(two, adapter_name="two")
    expected = {name: logits(adapted.load(str(tmp_path / name)).model) for name in ("one", "two")}
    for name in ("two", "one"):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    assert not torch.equal(logits(model), expected["one"])
    model.set_adapter("two")
    assert torch.equal(logits(model), expected["two"])
    model.save_pretrained(tmp_path / "both")
    same(read_adapter(tmp_path / "both" / "two"), read_adapter(two))


def test_transformers_own_peft_support_loads_it(llama: Path, tmp_path: Path) -> None:
    folder, _ = adapter_on(llama, tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    plain = logits(model)
    model.load_adapter(str(folder))
    assert torch.equal(logits(model), logits(adapted.load(str(folder)).model))
    if Version(version("peft")) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"transformers' disable_adapters asks for peft {MIN_PEFT_VERSION}, which is newer")
    model.disable_adapters()
    assert torch.equal(logits(model), plain)


def test_a_selection_made_by_the_command_line(llama: Path, tmp_path: Path) -> None:
    selection = selected(llama, ["q_proj", "down_proj"], k=2, criterion="random")
    write_selection(tmp_path / "s.safetensors", selection)
    config = {"selection": str(tmp_path / "s.safetensors"), "task_type": "CAUSAL_LM"}
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model = get_peft_model(base, NeuroAdaConfig(target_modules=["q_proj", "down_proj"], **config))
    for name, index_OK in selection.indices.items():
        layer = model.base_model.model.get_submodule(name)
        assert torch.equal(layer.neuroada_indices["default"], index_OK)
    model.save_pretrained(tmp_path / "saved")
    assert read_adapter(tmp_path / "saved").selection.criterion == "random"
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"chooses nothing in model\.layers\.0"):
        get_peft_model(base, NeuroAdaConfig(**config))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_both_ways_and_merged(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "llama"
    pico_llama(hidden_size=64, intermediate_size=128).to(torch.bfloat16).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)

    def packed() -> Any:
        return hub.load_model(base, "causal-lm", "bf16", quantization=kind).model

    folder, _ = adapter_on(base, tmp_path / "adapter", dtype="bf16", quantization=kind)
    model = PeftModel.from_pretrained(packed(), folder)
    assert torch.equal(logits(model), logits(adapted.load(str(folder)).model))
    fresh = get_peft_model(packed(), NeuroAdaConfig(k=1, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    fresh.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    torch.optim.SGD([p for p in fresh.parameters() if p.requires_grad], lr=1.0).step()
    fresh.save_pretrained(tmp_path / "saved")
    assert read_adapter(tmp_path / "saved").settings["quantization"] == kind
    tuned = logits(fresh)
    assert torch.equal(tuned, logits(adapted.load(str(tmp_path / "saved")).model))
    with pytest.warns(UserWarning, match="2 layers were quantised and are merged in bfloat16"):
        merged = fresh.merge_and_unload()
    assert torch.equal(logits(merged), tuned)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(again.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert type(again.model.layers[0].self_attn.k_proj) is not torch.nn.Linear
    keep_layout(again)  # as every way of ours to load it does
    torch.testing.assert_close(logits(again), tuned, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_keeps_its_head_out_of_4_bits(tied: bool, tmp_path: Path) -> None:
    """A list of layers that stay as they are takes the place of transformers' own, which holds the head."""
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "llama"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": tied}
    pico_llama(**sizes).to(torch.bfloat16).save_pretrained(base)
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    packed = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=bits)
    config = NeuroAdaConfig(k=1, task_type="CAUSAL_LM", target_modules=["q_proj"])
    with pytest.warns(UserWarning, match="2 layers were quantised"):
        merged = get_peft_model(packed, config).merge_and_unload()
    expected = logits(merged)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(again.lm_head) is torch.nn.Linear
    keep_layout(again)
    torch.testing.assert_close(logits(again), expected, rtol=0.02, atol=0.05)


def test_an_adapter_of_another_base_is_refused(llama: Path, tmp_path: Path) -> None:
    folder, _ = adapter_on(llama, tmp_path / "adapter")
    other = pico_llama(rms_norm_eps=1e-3)
    other.save_pretrained(tmp_path / "other")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is not the base that was selected and trained on"):
        PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(next(iter(t))), "has no values and indices for"),
        (lambda t: t.update({n: x[:3] for n, x in t.items()}), "does not fit this model"),
        (lambda t: t.update({n: x + 99 for n, x in t.items() if "indices" in n}), "columns outside 0.."),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: Any, words: str, llama: Path, tmp_path: Path) -> None:
    folder, _ = adapter_on(llama, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors, metadata = files.read_tensors(file)
    change(tensors)
    files.write_tensors(file, tensors, metadata)
    base = AutoModelForCausalLM.from_pretrained(llama)
    with pytest.raises(ValueError, match=words):
        PeftModel.from_pretrained(base, folder)


def test_a_model_made_in_memory_has_no_base_that_could_be_named(tmp_path: Path) -> None:
    model = get_peft_model(pico_llama(), NeuroAdaConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelError, match="base_model_name_or_path"):
        read_adapter(tmp_path / "saved")


def test_without_the_manifest_only_a_folder_that_peft_wrote_is_read(llama: Path, tmp_path: Path) -> None:
    folder, _ = adapter_on(llama, tmp_path / "adapter")
    (folder / files.MANIFEST).unlink()
    with pytest.raises(ModelError, match=r"has no manifest\.json"):
        read_adapter(folder)


def test_the_task_is_told_by_the_class_where_nobody_said_it(llama: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    get_peft_model(base, NeuroAdaConfig()).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert read_adapter(tmp_path / "saved").task == "causal-lm"


def test_a_config_without_an_adapter_is_saved_and_read(tmp_path: Path) -> None:
    config = NeuroAdaConfig(k=4, criterion="lift", target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.save_pretrained(str(tmp_path / "config"))
    again = PeftConfig.from_pretrained(tmp_path / "config")
    assert isinstance(again, NeuroAdaConfig)
    assert again.to_dict() == config.to_dict()
