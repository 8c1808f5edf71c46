"""A Llama in a GGUF file (llama.cpp's format), written as a plain Hugging Face folder.

transformers' own GGUF loader returns a model that cannot be saved and a tokenizer without the pre-tokenizer
that the file names, so the few steps are spelled out here: de-quantise, undo llama.cpp's row order of q and
k, name the tensors as transformers does, rebuild the byte-level BPE tokenizer.

O = output neurons, I = inputs of a weight.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroada_cli import files
from neuroada_cli.errors import ModelError

# llama.cpp's tensor names -> transformers' (the block number stays)
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL: special tokens that never come out of text


def write_model(gguf_file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config, weights, tokenizer and generation config of the GGUF file into an existing folder.

    dtype   of the written weights; the de-quantised values are rounded to it once
    Raises ModelError when the file is not a Llama with a byte-level BPE tokenizer.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    kind = (metadata.get("general.architecture"), metadata.get("tokenizer.ggml.model"))
    if kind != ("llama", "gpt2"):
        raise ModelError(f"holds {kind[0]} with a {kind[1]} tokenizer, not llama with gpt2", str(gguf_file))
    config = _config(metadata, {tensor.name for tensor in reader.tensors}, dtype)
    weights = {_name(tensor.name): _weight(tensor, config).to(dtype) for tensor in reader.tensors}
    files.write_json(folder / "config.json", config)
    files.write_tensors(folder / "model.safetensors", weights, metadata={"format": "pt"})
    stop = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files.write_json(folder / "generation_config.json", stop)
    _write_tokenizer(folder, metadata)


def _config(metadata: dict[str, Any], tensors: set[str], dtype: torch.dtype) -> dict[str, Any]:
    heads = metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": metadata["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # 1e-5 as fp32
        "rope_parameters": {"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": str(dtype).removeprefix("torch."),
    }


def _name(gguf_name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", gguf_name)
    if match is None or match[2] not in TENSOR_NAMES:
        raise ModelError(f"the tensor {gguf_name} is not known here", "GGUF file")
    block = f"model.layers.{match[1]}." if match[1] is not None else ""
    return f"{block}{TENSOR_NAMES[match[2]]}.weight"


def _weight(tensor: Any, config: dict[str, Any]) -> torch.Tensor:
    """The tensor in fp32, with the rows of q and k in transformers' order.

    llama.cpp rotates neighbouring rows of a head, transformers the two halves, so its converter interleaves
    the halves (`permute` in convert_hf_to_gguf.py); this is the inverse.
    """
    from gguf.quants import dequantize

    weight = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    part = tensor.name.split(".")[-2]
    if part in {"attn_q", "attn_k"}:
        heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        rows, inputs = weight.shape
        weight = weight.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)
    return torch.from_numpy(np.ascontiguousarray(weight))


def _write_tokenizer(folder: Path, metadata: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    splits: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if metadata["tokenizer.ggml.pre"] == "smollm":  # llama.cpp's name for "every digit is a token"
        splits.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    files.write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))

    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {
        f"{ours}_token": tokens[metadata[f"tokenizer.ggml.{theirs}_token_id"]]
        for ours, theirs in roles.items()
    }
    # the generic class: GPT2Tokenizer would replace the pre-tokenizer by its own
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": [token for token in special if token not in named.values()],
        **named,
    }
    files.write_json(folder / "tokenizer_config.json", settings)
    if "tokenizer.chat_template" in metadata:
        files.write_text(folder / "chat_template.jinja", metadata["tokenizer.chat_template"])
