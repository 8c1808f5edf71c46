"""Which class of model a task gets, and which combinations are refused by name and why."""

from __future__ import annotations

import pytest
from transformers import (
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

from neuroada_cli.errors import ModelError
from neuroada_cli.hub.kinds import Work, task_of

WRITES, CLASSIFIES = Work("generation"), Work("classification")
SEES, SORTS = Work("generation", pictures=True), Work("classification", pictures=True)


@pytest.mark.parametrize(
    ("config", "work", "task"),
    [
        (LlamaConfig(), WRITES, "causal-lm"),
        (GPT2Config(), CLASSIFIES, "sequence-classification"),
        (BertConfig(is_decoder=True), WRITES, "causal-lm"),
        (BertConfig(), CLASSIFIES, "sequence-classification"),
        (BertConfig(), Work("regression"), "sequence-classification"),
        (BartConfig(), WRITES, "seq2seq-lm"),
        (BartConfig(), CLASSIFIES, "sequence-classification"),
        (T5Config(decoder_start_token_id=0), WRITES, "seq2seq-lm"),
        (T5Config(), CLASSIFIES, "sequence-classification"),
        (LlavaConfig(), SEES, "image-text-to-text"),
        (LlavaConfig(), WRITES, "image-text-to-text"),
        (Qwen2_5_VLConfig(), SEES, "image-text-to-text"),
        (ViTConfig(), SORTS, "image-classification"),
    ],
)
def test_the_class_for_the_work(config: PreTrainedConfig, work: Work, task: str) -> None:
    assert task_of(config, work, "here") == task


@pytest.mark.parametrize(
    ("config", "work", "said"),
    [
        (
            BertConfig(),
            WRITES,
            "here: model type bert reads a text in both directions, so it would see the words",
        ),
        (RobertaConfig(), WRITES, "model type roberta reads a text in both directions"),
        (
            T5Config(decoder_start_token_id=None),
            WRITES,
            "config.json of the t5 names no decoder_start_token_id",
        ),
        (
            WhisperConfig(),
            WRITES,
            "model type whisper listens to speech, and transformers has no Seq2SeqLM for it",
        ),
        (Wav2Vec2Config(), CLASSIFIES, "wav2vec2 listens to speech, and transformers has no SequenceClass"),
        (ViTConfig(), WRITES, "model type vit looks at pictures, .*; choose a model that writes texts"),
        (ViTConfig(), CLASSIFIES, "no SequenceClassification for it; choose a model that classifies"),
        (ViTConfig(), SEES, "choose a model that writes about pictures"),
        (
            LlamaConfig(),
            SEES,
            "model type llama writes texts, and transformers has no ImageTextToText for it",
        ),
        (LlamaConfig(), SORTS, "llama writes texts, .* choose a model that classifies pictures"),
        (LlavaConfig(), SORTS, "llava writes about pictures, and transformers has no ImageClassification"),
        (LlavaConfig(), CLASSIFIES, "llava writes about pictures, and transformers has no SequenceClassif"),
        (BartConfig(), SEES, "bart reads pictures by an encoder apart"),
    ],
)
def test_what_cannot_go_together_is_told(config: PreTrainedConfig, work: Work, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        task_of(config, work, "here")


def test_a_class_of_its_own_code_counts() -> None:
    config = PreTrainedConfig(auto_map={"AutoModelForCausalLM": "modeling.Own"})
    config.model_type = "own"
    assert task_of(config, WRITES, "here") == "causal-lm"
    with pytest.raises(ModelError, match="model type own is none that works on texts or pictures"):
        task_of(config, CLASSIFIES, "here")
