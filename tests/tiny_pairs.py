"""Tiny encoder-decoders with random weights, and a tokenizer that marks rows as theirs do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_run import BYTES, SPECIAL, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = len(SPECIAL) + len(BYTES)
UNK, BOS, EOS = 0, 1, 2


def pico_t5(**changes: Any) -> PreTrainedModel:
    """Relative positions, answers that begin with the padding token, a gated feed-forward."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "pad_token_id": UNK, "eos_token_id": EOS,
        "decoder_start_token_id": UNK, "initializer_factor": 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**(settings | changes))).eval()


def pico_bart(**changes: Any) -> PreTrainedModel:
    """Learnt positions, answers that begin with the end token, a bias on the logits, tied embeddings."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "max_position_embeddings": 256, "dropout": 0.0, "init_std": 0.2, "pad_token_id": UNK,
        "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": EOS, "forced_eos_token_id": EOS,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**(settings | changes))).eval()
    torch.nn.init.normal_(model.final_logits_bias)
    return model


PAIRS = {"t5": pico_t5, "bart": pico_bart}
MARKS = {"t5": "$A </s>", "bart": "<s> $A </s>"}


def pairs_tokenizer(name: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    marks = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=MARKS[name], special_tokens=marks)
    return tokenizer


def tiny_pairs_folder(folder: Path, name: str, **changes: Any) -> Path:
    PAIRS[name](**changes).save_pretrained(folder)
    pairs_tokenizer(name).save_pretrained(folder)
    return folder
