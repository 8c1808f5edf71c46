"""What was made for an engine is compared with the model: both compute, and neither is replaced here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from neuroada_cli.errors import ModelError, NumericsError
from neuroada_cli.export import ctranslate2_file, engines
from neuroada_cli.export.answers import Pair, check
from neuroada_cli.export.engines import UNKNOWN, Order

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
T5 = {
    "vocab_size": 512, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip


def pico_llama_512(**changes: object) -> Any:
    return pico_llama(vocabulary=512, max_position_embeddings=256, **changes)


def pico_mistral(window: int) -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**_sizes(), num_key_value_heads=2, sliding_window=window))


def pico_t5(v11: bool) -> Any:
    torch.manual_seed(0)
    newer = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if v11 else {}
    return T5ForConditionalGeneration(T5Config(**T5, **newer))


def pico_mt5() -> Any:
    torch.manual_seed(0)
    return MT5ForConditionalGeneration(MT5Config(**T5))


def pico_bart() -> Any:
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": number for side in ("encoder", "decoder")
             for name, number in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    settings = {"vocab_size": 512, "d_model": 32, "max_position_embeddings": 128, "init_std": 0.2}
    return BartForConditionalGeneration(BartConfig(**settings, **sizes, decoder_start_token_id=2))


def pico_encoder() -> Any:
    torch.manual_seed(0)
    return BertModel(BertConfig(**_sizes()))


def _sizes() -> dict[str, Any]:
    return {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip


def for_mlx(model: Any, place: Path, older_names: bool = True) -> Pair:
    """mlx-lm computes from a folder like the model's own; a tokenizer is not asked for."""
    model.save_pretrained(place / "model")
    change = engines._with_old_rotary if older_names else lambda _, settings: settings
    with engines.staged(place / "model", "config.json", change) as folder:
        shutil.copytree(folder, place / "out")
    return Pair("mlx", place / "model", place / "out", "fp32")


def for_ctranslate2(model: Any, place: Path, shared: Path, dtype: str = "fp32") -> Pair:
    shutil.copytree(shared / "models" / "stories260K", place / "model")
    model.save_pretrained(place / "model")
    kind = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    ctranslate2_file.convert(str(place / "model"), str(place / "out"), kind, False, [])
    return Pair("ctranslate2", place / "model", place / "out", dtype)


@pytest.mark.parametrize(
    "scaling",
    [{}, {"rope_type": "linear", "factor": 4.0}, LLAMA3, {"rope_type": "yarn", "factor": 4.0}],
    ids=["base", "linear", "llama3", "yarn"],
)
def test_mlx_turns_as_the_model_does_by_the_older_names_alone(
    scaling: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("mlx_lm")
    model = pico_llama_512(rope_parameters={"rope_type": "default", "rope_theta": 5e5} | scaling)
    assert check(for_mlx(model, tmp_path / "with")) == ""
    with pytest.raises(NumericsError, match="answers otherwise than the model"):
        check(for_mlx(model, tmp_path / "without", older_names=False))


def test_mlx_turns_by_both_bases_of_gemma_3(tmp_path: Path) -> None:
    """Its larger sizes scale the angles of the layers that see everything."""
    pytest.importorskip("mlx_lm")
    turned = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    sizes = _sizes() | {
        "num_hidden_layers": 6,
        "head_dim": 8,
        "num_key_value_heads": 2,
        "sliding_window": 512,
    }
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, query_pre_attn_scalar=8, rope_parameters=turned))
    assert check(for_mlx(model, tmp_path / "with")) == ""
    with pytest.raises(NumericsError, match="answers otherwise"):
        check(for_mlx(model, tmp_path / "without", older_names=False))


def test_the_setting_that_mlx_passes_over_is_named(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    with pytest.raises(NumericsError, match='as the model would without hidden_act="gelu": at 100% of'):
        check(for_mlx(pico_llama_512(hidden_act="gelu"), tmp_path / "gelu"))
    with pytest.raises(NumericsError, match="as the model would without sliding_window=24"):
        check(for_mlx(pico_mistral(window=24), tmp_path / "window"))


def test_a_window_that_texts_outgrow_later_is_tried_by_a_shorter_one(tmp_path: Path) -> None:
    """mlx-lm's Mistral knows none; what it makes is right for texts of one window."""
    pytest.importorskip("mlx_lm")
    said = check(for_mlx(pico_mistral(window=4096), tmp_path))
    assert said == "mlx passes over sliding_window=4096: it answers longer texts otherwise than the model"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: pico_llama_512(rope_parameters=LLAMA3), lambda: pico_t5(v11=False), lambda: pico_t5(v11=True),
        pico_mt5, pico_bart, pico_encoder,
    ],
    ids=["llama3", "t5", "t5 v1.1", "mt5", "bart", "bert"],
)  # fmt: skip
def test_ctranslate2_computes_what_the_model_does(
    build: Callable[[], Any], dtype: str, shared: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ctranslate2")
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert check(for_ctranslate2(build().to(dtypes[dtype]), tmp_path, shared, dtype)) == ""


def test_the_setting_that_ctranslate2_passes_over_is_named(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    with pytest.raises(NumericsError, match='as the model would without hidden_act="gelu"'):
        check(for_ctranslate2(pico_llama_512(hidden_act="gelu"), tmp_path, shared))


def test_what_shows_in_longer_texts_only_is_said(shared: Path, tmp_path: Path) -> None:
    """Where CTranslate2 has a window it gives the logits of one window at most."""
    pytest.importorskip("ctranslate2")
    said = check(for_ctranslate2(pico_mistral(window=24), tmp_path, shared))
    assert (
        said
        == "compared with the model over 24 tokens: whether ctranslate2 heeds sliding_window=24 shows later"
    )


def test_an_engine_that_cannot_run_here_says_nothing_of_its_file(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    pair = for_mlx(pico_llama_512(), tmp_path)
    (tmp_path / "out" / "model.safetensors").unlink()
    assert check(pair) == f"{UNKNOWN}: mlx raised FileNotFoundError here"


def test_numbers_that_are_none_are_not_compared(tmp_path: Path) -> None:
    model = pico_llama_512()
    model.lm_head.weight.data[3] = torch.inf
    assert "no finite numbers" in check(for_mlx(model, tmp_path))


def test_a_model_that_memory_does_not_hold_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pico_llama().save_pretrained(tmp_path)
    monkeypatch.setattr(engines, "available_memory", lambda: 100_000)
    monkeypatch.setattr(engines.subprocess, "run", lambda *_, **__: pytest.fail("it was loaded"))
    engines._compare("mlx", Order(tmp_path, tmp_path, "tuned", "bf16"))
    assert "more than there is now" in capsys.readouterr().err


def test_a_comparison_that_is_ended_from_outside_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal ends it by a code of its own; any other end tells nothing of the result."""
    pico_llama().save_pretrained(tmp_path)
    ended = engines.subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(engines.subprocess, "run", lambda *_, **__: ended)
    order = Order(tmp_path, tmp_path, "tuned", "bf16")
    engines._compare("mlx", order)
    assert "not compared with the model: the comparison ended with -9" in capsys.readouterr().err
    refused = engines.subprocess.CompletedProcess([], NumericsError.exit_code, "", "it answers otherwise")
    monkeypatch.setattr(engines.subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(ModelError, match="mlx cannot convert tuned: it answers otherwise"):
        engines._compare("mlx", order)
