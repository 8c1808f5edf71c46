"""The model types that are swept, and how a tiny model of each is made from its config.

Sizes are given by the names that most configs share; what a type calls otherwise, or needs beside them,
stands with it. Where a type has layers of several kinds (experts, state-space, attention) there is one each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_families import SIZES
from tiny_pairs import pairs_tokenizer
from tiny_pictures import WRITERS, ViTImageProcessorPil, tiny_writer_folder
from tiny_run import tiny_tokenizer
from transformers import CONFIG_MAPPING, PreTrainedModel

VOCABULARY, SIDE = 259, 32
LOADERS = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "image-text-to-text": "AutoModelForImageTextToText",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
TASKS = {"sequence-classification": "rte", "image-classification": "shapes"}


@dataclass(frozen=True)
class Swept:
    """task the class that loads it;  sizes of its config;  pictures whether its rows hold some"""

    name: str
    task: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = False

    def make(self, folder: Path) -> None:
        """A folder as transformers writes it, with a tokenizer or an image processor."""
        if self.pictures:
            tiny_writer_folder(folder, self.name)
            return
        torch.manual_seed(0)
        self.model().save_pretrained(folder)
        if self.task == "image-classification":
            ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
        elif self.task == "seq2seq-lm":
            pairs_tokenizer("bart").save_pretrained(folder)
        else:
            tiny_tokenizer().save_pretrained(folder)

    def model(self) -> PreTrainedModel:
        """Random weights, fp32, in evaluation mode."""
        if self.pictures:
            return WRITERS[self.name]()
        config = CONFIG_MAPPING[self.name](**self.sizes)
        made: PreTrainedModel = loader(self.task).from_config(config).eval()
        return made

    def recipe(self) -> dict[str, Any]:
        """On the folder `base`; rows of texts to classify lie in `sets`."""
        named = "shapes_vqa" if self.pictures else TASKS.get(self.task, "due_dates")
        return {
            "name": "tiny", "run_dir": "run", "device": "cpu",
            "model": {"path": "base", "dtype": "fp32"},
            "select": {"k": 2},
            "data": {"task": named, "data_dir": "sets", "limit": 6, "validation_limit": 2, "max_length": 256},
            "optim": {"lr": 1e-2},
            "train": {"max_steps": 2, "batch_size": 2, "micro_batch_size": 1},
            "eval": {"limit": 3, "max_new_tokens": 4},
        }  # fmt: skip


def loader(task: str) -> Any:
    import transformers

    return getattr(transformers, LOADERS[task])


def write_sets(folder: Path) -> None:
    """Sentence pairs with a label, in the published form."""
    rows = [{"sentence1": f"a{n} is {n}", "sentence2": f"{n} it is", "label": n % 2} for n in range(8)]
    for split in ("train", "validation"):
        file = folder / "glue_rte" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---------------------------------------------------------------------------------------------------
# Texts that go on

TEXT: dict[str, Any] = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 256}


def alike(names: str, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names.split(), sizes)


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in TEXT.items() if name not in names}


LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
ROUTED = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
STATES = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16,
    "mamba_expand": 2,
}  # fmt: skip
GATED = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
PLAIN = """
    afmoe apertus aria_text biogpt bitnet bloom cohere cohere2 cohere2_moe diffllama doge ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon_mamba flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2
    gpt_bigcode gpt_neox gpt_oss granite granitemoe granitemoeshared hunyuan_v1_moe jetmoe llama
    llama4_text mamba minimax minimax_m2 mistral mixtral modernbert-decoder mpt nanochat nemotron olmo
    olmo2 olmo3 olmo_hybrid olmoe openai-gpt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe
    rwkv smollm3 stablelm starcoder2 vaultgemma xlm
"""
WRITES: dict[str, dict[str, Any]] = alike(PLAIN, TEXT) | {
    "bamba": TEXT | STATES | {"attn_layer_indices": [1]},
    "codegen": TEXT | {"rotary_dim": 4},
    "ctrl": TEXT | {"dff": 48},
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": VOCABULARY,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        "pad_token_id": 0, "eos_token_id": 2,
    },
    "deepseek_v2": without("head_dim") | LATENT | ROUTED | {"topk_method": "greedy"},
    "deepseek_v3": without("head_dim") | LATENT | ROUTED,
    "dots1": TEXT | ROUTED,
    "falcon": without("head_dim"),
    "falcon_h1": TEXT | STATES | {"mamba_d_ssm": 64},
    "gemma3n_text": TEXT | SLIDING | {
        "num_kv_shared_layers": 0, "laurel_rank": 8, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY, "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": TEXT | SLIDING | {
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 8,
        "num_kv_shared_layers": 0,
    },
    "gpt_neo": TEXT | {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": TEXT | {"rotary_dim": 4},
    "granitemoehybrid": TEXT | STATES | {
        "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16,
    },
    "jamba": TEXT | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "mamba_dt_rank": 4,
    },
    "lfm2": TEXT | {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": TEXT | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": TEXT | {
        "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8, "chunk_size": 16,
    },
    "nemotron_h": TEXT | {
        "layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4,
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 16,
        "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 16,
    },
    "opt": TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3_5_text": TEXT | GATED,
    "qwen3_next": TEXT | GATED,
    "recurrent_gemma": TEXT | {
        "num_hidden_layers": 3, "lru_width": 32, "block_types": ["recurrent", "recurrent", "attention"],
    },
    "xglm": TEXT | {"ffn_dim": 48, "d_model": 32, "num_layers": 2, "attention_heads": 4},
    "xlnet": without("max_position_embeddings", "head_dim") | {
        "d_model": 32, "n_head": 4, "d_inner": 48, "n_layer": 2,
    },
    "zamba": TEXT | {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4,
        "n_mamba_heads": 2, "mamba_d_state": 4, "mamba_dt_rank": 4,
    },
    "zamba2": TEXT | {
        "layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8,
        "mamba_ngroups": 1, "chunk_size": 16, "adapter_rank": 4, "num_mem_blocks": 1,
    },
    "bert": TEXT,  # an encoder: refused
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------
# Texts from texts

PAIR: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": VOCABULARY,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "init_std": 0.2,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
TRANSLATES: dict[str, dict[str, Any]] = {
    **alike("bart blenderbot blenderbot-small m2m_100 marian mbart mvp pegasus plbart", PAIR),
    **{name: T5 for name in ("longt5", "mt5", "t5", "umt5")},
    "bigbird_pegasus": PAIR | {"attention_type": "original_full"},
    "fsmt": {name: value for name, value in PAIR.items() if name != "vocab_size"} | {
        "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["en", "de"],
    },
    "led": PAIR | {
        "attention_window": 8, "max_encoder_position_embeddings": 256, "max_decoder_position_embeddings": 256,
    },
    "nllb-moe": PAIR | {
        "num_experts": 4, "expert_capacity": 16, "encoder_sparse_step": 2, "decoder_sparse_step": 2,
    },
    "pegasus_x": PAIR,
    "prophetnet": {name: value for name, value in PAIR.items() if not name.endswith("coder_layers")} | {
        "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    },
    "switch_transformers": T5 | {
        "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
    },
    "t5gemma": {
        "encoder": TEXT, "decoder": TEXT, "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2,
        "bos_token_id": 1, "decoder_start_token_id": 1,
    },
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------
# Classes of texts and of pictures

ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
NARROW = ENCODER | {"embedding_size": 16}
READS = """
    bert big_bird deberta deberta-v2 esm eurobert fnet modernbert mpnet nystromformer roberta
"""
SORTS: dict[str, dict[str, Any]] = {
    **alike(READS, ENCODER),
    **{name: NARROW for name in ("albert", "convbert", "electra", "rembert", "roformer")},
    "mobilebert": NARROW | {"initializer_range": 0.02},  # nothing is normalised, and more makes it sure
    "distilbert": {
        "vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 256, "pad_token_id": 0,
    },
    "funnel": {
        "vocab_size": VOCABULARY, "d_model": 32, "d_inner": 48, "n_head": 4, "d_head": 8,
        "block_sizes": [1, 1], "pad_token_id": 0,
    },
    "longformer": ENCODER | {"attention_window": 8},
    "squeezebert": ENCODER | {"embedding_size": 32},
    "gpt2": TEXT,
    "llama": TEXT,
    "qwen3": TEXT,
    "mixtral": TEXT,
}  # fmt: skip
VISION: dict[str, Any] = {
    "image_size": SIDE, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.2,
}  # fmt: skip
LOOKS: dict[str, dict[str, Any]] = {
    **alike("beit data2vec-vision dinov2 dinov2_with_registers ijepa vit vit_msn", VISION),
    "clip": {"vision_config": VISION, "text_config": ENCODER},
    "convnext": {
        "image_size": SIDE, "hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4,
    },
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "segformer": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    "siglip": {"vision_config": VISION},
    "swin": {
        "image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
        "window_size": 4,
    },
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------
# Pictures and texts

MARKS = {"image_token_id": 5, "image_token_index": 5, "video_token_id": 6, "vision_start_token_id": 7}
LLAMA = {name: TEXT[name] for name in TEXT if "expert" not in name} | {"model_type": "llama"}
TURNED = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
TOWER = VISION | {
    "depth": 2, "embed_dim": 32, "num_heads": 4, "out_hidden_size": 32, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
}  # fmt: skip
QWEN = TEXT | {"rope_parameters": TURNED}
ANSWERS: dict[str, dict[str, Any]] = {
    "aya_vision": {"vision_config": VISION, "text_config": TEXT | {"model_type": "cohere2"}},
    "gemma3": {"vision_config": VISION | {"model_type": "siglip_vision_model"}, "text_config": TEXT,
               "mm_tokens_per_image": 4},
    "idefics3": {"vision_config": VISION, "text_config": LLAMA, "scale_factor": 2},
    "internvl": {"vision_config": VISION | {"image_size": [SIDE, SIDE], "patch_size": [8, 8]},
                 "text_config": TEXT | {"model_type": "qwen2"}},
    "llava_next": {"vision_config": VISION | {"model_type": "clip_vision_model"}, "text_config": LLAMA},
    "mistral3": {"vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
                 "text_config": TEXT | {"model_type": "mistral"}},
    "qwen2_vl": {"vision_config": TOWER | {"hidden_size": 32, "mlp_ratio": 2}, "text_config": QWEN},
    "qwen3_vl": {"vision_config": TOWER | {"deepstack_visual_indexes": [0]}, "text_config": QWEN},
    "qwen3_vl_moe": {"vision_config": TOWER | {"deepstack_visual_indexes": [0]}, "text_config": QWEN},
}  # fmt: skip

SWEPT = [
    *(Swept(name, "causal-lm", sizes) for name, sizes in sorted(WRITES.items())),
    *(Swept(name, "seq2seq-lm", sizes) for name, sizes in sorted(TRANSLATES.items())),
    *(Swept(name, "sequence-classification", sizes) for name, sizes in sorted(SORTS.items())),
    *(Swept(name, "image-classification", sizes) for name, sizes in sorted(LOOKS.items())),
    *(Swept(name, "image-text-to-text", {**MARKS, **sizes}) for name, sizes in sorted(ANSWERS.items())),
    *(Swept(name, "image-text-to-text", pictures=True) for name in sorted(WRITERS)),
]
