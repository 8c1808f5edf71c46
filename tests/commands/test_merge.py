"""Merging: what is written is what was trained, everything else is the base, and nothing is half written."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from privilege import lock_folder, unprivileged
from safetensors.torch import load_file, save_file
from tiny_choice import selected
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertModel,
    FunnelConfig,
    FunnelForSequenceClassification,
    GPT2Model,
    PreTrainedModel,
)

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.commands import merge
from neuroada_cli.delta import model as delta
from neuroada_cli.errors import ModelError, NumericsError, OutputError, ResourceError, UserError
from neuroada_cli.merging.folder import merged_config
from neuroada_cli.selection.file import Selection

AUTO = {
    "causal-lm": AutoModelForCausalLM,
    "sequence-classification": AutoModelForSequenceClassification,
}
FUNNEL = FunnelConfig(
    vocab_size=96, d_model=32, d_inner=48, n_head=4, d_head=8, block_sizes=[1, 1], initializer_std=0.5
)
TOKENS = torch.arange(40).view(2, 20) % 90


@dataclasses.dataclass
class Trained:
    """A base folder, an adapter folder, and the model that training would have ended with."""

    base: Path
    folder: Path
    model: PreTrainedModel
    adapter: Adapter


def train(
    base: Path,
    task: str = "causal-lm",
    dtype: str = "fp32",
    targets: Sequence[str] = ("all-linear",),
    k: int = 2,
    size: float = 0.5,
    num_labels: int | None = None,
    settings: dict[str, object] | None = None,
) -> Trained:
    """What a run leaves behind, with random deltas in place of trained ones."""
    selection = selected(base, targets, k, task=task, num_labels=num_labels)
    loaded = hub.load_model(base, task, dtype, num_labels=num_labels, seed=1)
    generator = torch.Generator().manual_seed(5)
    deltas = {
        name: size * torch.randn(index.shape, generator=generator)
        for name, index in selection.indices.items()
    }
    delta.attach(loaded.model, selection.indices, deltas)
    parameters = dict(loaded.model.named_parameters())
    whole = {name: parameters[name].detach().float() for name in loaded.fresh}
    adapter = Adapter(
        selection=selection, deltas=deltas, whole=whole, base=str(base), revision=None, task=task,
        settings={"dtype": dtype} | (settings or {}),
    )  # fmt: skip
    folder = base.parent / "adapter"
    with files.atomic_folder(folder, overwrite=True) as temporary:
        adapters.write_adapter(temporary, adapter)
    return Trained(base, folder, loaded.model, adapter)


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def effective(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameter name -> value that the attached model computes with."""
    return {
        name: tensor.detach()
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if not name.endswith(".delta")
    }


def assert_merged_equals_trained(out: Path, trained: Trained, dtype: str) -> PreTrainedModel:
    """Plain transformers loads it; every parameter and every logit is the trained one, bit for bit."""
    model, info = AUTO[trained.adapter.task].from_pretrained(out, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == hub.TORCH_DTYPES[dtype]
    expected = effective(trained.model)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, trained.model.eval()(TOKENS).logits)
    return model


# -- the three architectures


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("build", [pico_llama, pico_gpt2], ids=["llama", "gpt2"])
def test_merged_is_trained_and_the_rest_is_the_base(tmp_path: Path, build, shard: str, dtype: str) -> None:
    model = build().to(hub.TORCH_DTYPES[dtype])
    trained = train(save(model, tmp_path / "base", max_shard_size=shard), dtype=dtype)
    result = merge.run(trained.folder, tmp_path / "out", quiet=True)
    assert_merged_equals_trained(tmp_path / "out", trained, dtype)
    base, merged = hub.open_weights(trained.base), hub.open_weights(tmp_path / "out")
    assert [f.name for f in merged.files] == [f.name for f in base.files]
    assert merged.names == base.names
    chosen = {f"{name}.weight": index for name, index in trained.adapter.selection.indices.items()}
    for name in base:
        same = merged.tensor(name) == base.tensor(name)
        if name not in chosen:
            assert same.all(), name
            continue
        same_OI = same.T if build is pico_gpt2 else same
        selected_OI = torch.zeros_like(same_OI).scatter_(1, chosen[name].long(), True)
        assert same_OI[~selected_OI].all(), name
        assert not same_OI[selected_OI].all(), name
    assert result.stats.tensors == len(chosen)
    assert result.stats.entries == sum(index.numel() for index in chosen.values())
    assert result.stats.changed + result.stats.lost == result.stats.entries


def test_an_index_without_metadata_is_merged_like_any(tmp_path: Path) -> None:
    """transformers would not load such a base; it loads what is merged."""
    trained = train(save(pico_llama(), tmp_path / "base", max_shard_size="20KB"))
    file = trained.base / hub.INDEX
    index = json.loads(file.read_text())
    del index["metadata"]
    file.write_text(json.dumps(index))
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    assert_merged_equals_trained(tmp_path / "out", trained, "fp32")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("encoder_only", [True, False])
def test_a_classifier_with_a_fresh_head(tmp_path: Path, encoder_only: bool, dtype: str) -> None:
    """An encoder's files lack the prefix and the head; the result is what save_pretrained would write."""
    model = BertModel(pico_bert().config) if encoder_only else pico_bert()
    base = save(model, tmp_path / "base")
    trained = train(base, "sequence-classification", dtype, num_labels=3)
    assert set(trained.adapter.whole) == {"classifier.weight", "classifier.bias"}
    result = merge.run(trained.folder, tmp_path / "out", quiet=True)
    merged = assert_merged_equals_trained(tmp_path / "out", trained, dtype)
    assert merged.config.num_labels == 3
    assert type(merged).__name__ == "BertForSequenceClassification"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["problem_type"] == "single_label_classification"
    assert config["label2id"] == {name: int(number) for number, name in config["id2label"].items()}
    merged.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again/model.safetensors")) == set(hub.open_weights(tmp_path / "out"))
    assert result.stats.whole == 2


def test_regression_and_label_names(tmp_path: Path) -> None:
    base = save(pico_llama(), tmp_path / "base")
    train(base, "sequence-classification", num_labels=1, settings={"pad_token_id": 3})
    merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["problem_type"], config["id2label"], config["pad_token_id"]) == (
        "regression", {"0": "LABEL_0"}, 3,
    )  # fmt: skip
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert "lm_head.weight" not in hub.open_weights(tmp_path / "out")  # as save_pretrained would write it


def test_a_merged_encoder_gets_no_padding_token(tmp_path: Path) -> None:
    """Funnel sets that row of its embedding to 0 whenever it loads, and computes nothing else by the key."""
    torch.manual_seed(0)
    base = save(FunnelForSequenceClassification(FUNNEL).funnel, tmp_path / "base")
    trained = train(base, "sequence-classification", num_labels=2, settings={"pad_token_id": 0})
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    assert json.loads((tmp_path / "out/config.json").read_text())["pad_token_id"] is None
    merged = assert_merged_equals_trained(tmp_path / "out", trained, "fp32")
    assert merged.funnel.embeddings.word_embeddings.weight[0].any()


def test_base_model_files_without_the_prefix(tmp_path: Path) -> None:
    """GPT-2 lies on the hub as `h.0...`: the names stay, and the language model loads."""
    trained = train(save(GPT2Model(pico_gpt2().config), tmp_path / "base"))
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    assert hub.open_weights(tmp_path / "out").names == hub.open_weights(trained.base).names
    assert_merged_equals_trained(tmp_path / "out", trained, "fp32")


# -- tied weights


@pytest.mark.parametrize("stored_twice", [False, True])
def test_a_targeted_tied_head_stays_tied(tmp_path: Path, stored_twice: bool) -> None:
    base = save(pico_llama(tied=True), tmp_path / "base")
    if stored_twice:
        tensors = load_file(base / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    trained = train(base, targets=["all-linear", "lm_head"])
    assert trained.adapter.selection.tied
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    merged = assert_merged_equals_trained(tmp_path / "out", trained, "fp32")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert not torch.equal(merged.lm_head.weight, pico_llama(tied=True).lm_head.weight)


# -- data types


def test_an_fp32_base_trained_in_bf16_is_rounded_first(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"), dtype="bf16", size=0.01)
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    assert_merged_equals_trained(tmp_path / "out", trained, "bf16")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_another_dtype_is_measured(tmp_path: Path) -> None:
    """fp32 files, trained in bf16, written in fp32: W + delta exactly, and the distance to bf16 is told."""
    trained = train(save(pico_llama(), tmp_path / "base"), dtype="bf16")
    result = merge.run(trained.folder, tmp_path / "out", dtype="fp32", quiet=True)
    base, merged = hub.open_weights(trained.base), hub.open_weights(tmp_path / "out")
    largest = 0.0
    for name, index in trained.adapter.selection.indices.items():
        weight = base.tensor(f"{name}.weight").clone()
        weight.scatter_add_(1, index.long(), trained.adapter.deltas[name])
        assert torch.equal(merged.tensor(f"{name}.weight"), weight)
        difference = (weight - effective(trained.model)[f"{name}.weight"].float()).abs().max()
        largest = max(largest, float(difference))
    assert result.stats.largest_difference == pytest.approx(largest, rel=1e-6)
    assert largest > 0
    name = "model.embed_tokens.weight"
    assert torch.equal(merged.tensor(name), base.tensor(name))


def test_odd_tensors_of_a_bf16_base_stay_as_they_are(tmp_path: Path) -> None:
    base = save(pico_llama().bfloat16(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-6
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    trained = train(base, dtype="bf16")
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    assert torch.equal(
        hub.open_weights(tmp_path / "out").tensor("model.norm.weight"), tensors["model.norm.weight"]
    )
    assert hub.open_weights(tmp_path / "out").info("model.norm.weight").dtype == torch.float32


# -- the folder


def test_companions_card_and_config(tmp_path: Path, shared: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (shared / "models/stories260K").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "pytorch_model.bin").write_text("a stale pickle")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    trained = train(base, dtype="bf16")
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    out = tmp_path / "out"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert not (out / "pytorch_model.bin").exists()
    merged = json.loads((out / "config.json").read_text())
    assert {merged["dtype"], merged["torch_dtype"]} == {"bfloat16"}
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "2 trained connections per output neuron" in card
    assert str(tmp_path) not in card
    assert hub.load_tokenizer(out).chat_template == "{{ messages }}"
    files.verify_folder(out)


@pytest.mark.parametrize("method", [None, "neuroada", "mask"])
def test_the_card_says_how_it_was_trained(tmp_path: Path, method: str | None) -> None:
    settings = {"task": "math", "protocol": "llm-adapters", "loss_mask": "prompt and target"}
    trained = train(
        save(pico_llama(), tmp_path / "base"), settings=settings | ({"method": method} if method else {})
    )
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    for card in ((folder / "README.md").read_text() for folder in (trained.folder, tmp_path / "out")):
        assert ("by NeuroAda" in card) == (method != "mask")
        assert ("the baseline method `mask`" in card) == (method == "mask")
        assert "task `math`, protocol `llm-adapters`, loss on prompt and target" in card


def test_config_of_a_composite_or_formerly_quantised_base(tmp_path: Path) -> None:
    config = {
        "model_type": "x", "quantization_config": {"quant_method": "gptq"},
        "text_config": {"torch_dtype": "float32", "hidden_size": 4},
    }  # fmt: skip
    selection = Selection({}, 1, "magnitude", {})
    adapter = Adapter(selection, {}, {}, "somebody/base", None, "causal-lm")
    assert merged_config(config, torch.bfloat16, adapter, pico_llama()) == {
        "model_type": "x", "text_config": {"torch_dtype": "bfloat16", "hidden_size": 4}, "dtype": "bfloat16",
    }  # fmt: skip


def test_max_shard_bytes(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"))
    merge.run(trained.folder, tmp_path / "out", max_shard_bytes=16_000, quiet=True)
    merged = hub.open_weights(tmp_path / "out")
    assert len(merged.files) > 2
    for file in merged.files:
        sizes = [merged.info(name).nbytes for name in merged if merged.info(name).file == file]
        assert sum(sizes) <= 16_000 or len(sizes) == 1
    assert_merged_equals_trained(tmp_path / "out", trained, "fp32")


def test_a_moved_base_is_named(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"))
    trained.base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="--base"):
        merge.run(trained.folder, tmp_path / "out", quiet=True)
    merge.run(trained.folder, tmp_path / "out", base=str(tmp_path / "moved"), quiet=True)
    assert_merged_equals_trained(tmp_path / "out", trained, "fp32")


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"), dtype="bf16")
    merge.run(trained.folder, tmp_path / "out")
    shown = capsys.readouterr().out
    for words in ("tensors folded", "weights changed", "largest |delta|", "bfloat16", "MB in"):
        assert words in shown


# -- what is refused


def refused(
    trained: Trained,
    out: Path,
    error: type[UserError],
    told: str,
    source: Path | None = None,
    **options: object,
) -> None:
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(error, match=told):
        merge.run(source or trained.folder, out, quiet=True, **options)
    assert sorted(path.name for path in out.parent.iterdir()) == before


def test_a_wrong_base(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"))
    other = pico_llama()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[3, 4] += 1
    save(other, tmp_path / "other")
    refused(trained, tmp_path / "out", ModelError, "not the base", base=str(tmp_path / "other"))


def test_a_merged_folder_is_no_source_and_no_base(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"))
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    refused(trained, tmp_path / "twice", ModelError, "merged already", source=tmp_path / "out")
    refused(trained, tmp_path / "twice", ModelError, "not the base", base=str(tmp_path / "out"))


def test_zero_deltas(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"), size=0.0)
    refused(trained, tmp_path / "out", ModelError, "every delta is zero")


def test_deltas_that_rounding_loses(tmp_path: Path) -> None:
    trained = train(save(pico_llama().bfloat16(), tmp_path / "base"), dtype="bf16", size=1e-5)
    refused(trained, tmp_path / "out", NumericsError, "no weight changes.*too small for bfloat16")
    merge.run(trained.folder, tmp_path / "out", dtype="fp32", quiet=True)


def test_overflow_names_module_and_row(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"), size=1e5)
    refused(
        trained, tmp_path / "out", NumericsError, r"_proj, row \d+: .*not finite in float16", dtype="fp16"
    )


def test_overflow_of_an_untouched_tensor(tmp_path: Path) -> None:
    model = pico_llama()
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    trained = train(save(model, tmp_path / "base"))
    refused(trained, tmp_path / "out", NumericsError, "model.norm.weight .*overflow", dtype="fp16")


def test_out_that_is_taken(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    refused(trained, tmp_path / "out", OutputError, "not empty")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="did not write it"):  # --overwrite is for what is ours
        merge.run(trained.folder, tmp_path / "out", overwrite=True, quiet=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    merge.run(trained.folder, tmp_path / "ours", quiet=True)
    refused(trained, tmp_path / "ours", OutputError, "not empty")
    merge.run(trained.folder, tmp_path / "ours", overwrite=True, quiet=True)
    assert_merged_equals_trained(tmp_path / "ours", trained, "fp32")


@pytest.mark.parametrize("place", ["base", "base/merged", "adapter", "adapter/merged", "."])
def test_out_among_the_inputs(tmp_path: Path, place: str) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"))
    with pytest.raises(OutputError):
        merge.run(trained.folder, tmp_path / place, overwrite=True, quiet=True)
    hub.resolve_model(str(trained.base))
    adapters.read_adapter(trained.folder)


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        merge.run(tmp_path / "nowhere", tmp_path / "out", quiet=True)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """The file-size limit of the process stands for a full disk."""
    trained = train(save(pico_llama(), tmp_path / "base"))
    code = (
        "import resource, signal, sys; from neuroada_cli.commands import merge\n"
        "from neuroada_cli.errors import ResourceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "try: merge.run(sys.argv[1], sys.argv[2], quiet=True)\n"
        "except ResourceError as error: print(error); sys.exit(error.exit_code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(trained.folder), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ResourceError.exit_code, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_killed_merge_leaves_no_out(tmp_path: Path) -> None:
    """SIGKILL while a shard is being written: no target, and the next merge succeeds."""
    trained = train(save(pico_llama(), tmp_path / "base"))
    code = (
        "import os, signal, sys; from neuroada_cli.commands import merge\n"
        "from neuroada_cli.merging.merge import Merge\n"
        "fold = Merge._fold\n"
        "def die(*arguments): os.kill(os.getpid(), signal.SIGKILL)\n"
        "Merge._fold = die\n"
        "merge.run(sys.argv[1], sys.argv[2], quiet=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(trained.folder), str(tmp_path / "out")], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    merge.run(trained.folder, tmp_path / "out", quiet=True)
    assert_merged_equals_trained(tmp_path / "out", trained, "fp32")


def test_no_permission(tmp_path: Path) -> None:
    trained = train(save(pico_llama(), tmp_path / "base"))
    lock_folder(tmp_path / "locked")
    out = tmp_path / "locked" / "out"
    done = unprivileged("-m", "neuroada_cli", "merge", str(trained.folder), str(out))
    assert done.returncode == 6
    assert "choose a folder you may write to" in done.stderr
    assert list((tmp_path / "locked").iterdir()) == []
