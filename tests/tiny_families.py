"""Tiny models of many families, from their configs alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# experts in one tensor: [E, O, I]; [E, I, O], gate and up interleaved; [E, I, O]; and called in other ways
MIXTURES = ["mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "granitemoe", "jetmoe", "phimoe"]


def tiny(model_type: str, **changes: Any) -> PreTrainedModel:
    """A causal model of this type with random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config).eval()
