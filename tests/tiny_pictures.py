"""Tiny models that look at pictures, random weights, in folders with what their processors need."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_run import tiny_tokenizer
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from neuroada_cli.data.made_pictures import SIDE

# ---------------------------------------------------------------------------------------------------
# Classifiers


def pico_vit(**changes: Any) -> ViTForImageClassification:
    settings: dict[str, Any] = {
        "image_size": SIDE, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.15, "num_labels": 9,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**(settings | changes))).eval()


def tiny_vit_folder(folder: Path, **changes: Any) -> Path:
    """An encoder without a head, so that a classifier gets a fresh one."""
    pico_vit(**changes).vit.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------------
# Models that write about pictures

MARKS = (
    "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
)  # fmt: skip
TEXT = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# Qwen's and SmolVLM's templates in short: pictures where the message has them, a mark at a turn's end
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def pixel_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return tokenizer


def token(mark: str) -> int:
    return int(pixel_tokenizer().convert_tokens_to_ids(mark))


def pico_llava(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=SIDE, patch_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, initializer_range=0.15, projection_dim=32,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**(TEXT | changes)), image_token_index=token("<image>"),
        tie_word_embeddings=False, initializer_range=0.15,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval()


def pico_qwen_vl(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope, "tie_word_embeddings": False} | changes,
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16,
            "fullatt_block_indexes": [1], "initializer_range": 0.15,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def pico_smolvlm(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = SmolVLMConfig(
        text_config=LlamaConfig(**(TEXT | changes)).to_dict() | {"model_type": "llama"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": SIDE, "patch_size": 8, "initializer_range": 0.15,
        },
        image_token_id=token("<image>"), scale_factor=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return SmolVLMForConditionalGeneration(config).eval()


def pico_paligemma(**changes: Any) -> PreTrainedModel:
    """Its processor adds 1,152 tokens for places and outlines to any tokenizer."""
    torch.manual_seed(0)
    config = PaliGemmaConfig(
        text_config=TEXT | {"model_type": "gemma", "vocab_size": 1536, "head_dim": 8} | changes,
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8,
            "projection_dim": 32, "initializer_range": 0.15,
        },
        projection_dim=32, vocab_size=1536, image_token_index=token("<image>"), initializer_range=0.15,
    )  # fmt: skip
    return PaliGemmaForConditionalGeneration(config).eval()


WRITERS: dict[str, Callable[..., PreTrainedModel]] = {
    "llava": pico_llava, "paligemma": pico_paligemma, "qwen2_5_vl": pico_qwen_vl, "smolvlm": pico_smolvlm,
}  # fmt: skip
PROCESSORS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "llava": (
        lambda: CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        {
            "processor_class": "LlavaProcessor", "patch_size": 8, "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        "<image>",
    ),
    "paligemma": (
        lambda: SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_seq_length=16),
        {"processor_class": "PaliGemmaProcessor"},
        "<image>",
    ),
    "qwen2_5_vl": (
        lambda: Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": SIDE**2, "longest_edge": SIDE**2},
        ),
        {"processor_class": "Qwen2_5_VLProcessor"},
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "smolvlm": (
        lambda: SmolVLMImageProcessorPil(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
        ),
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
        "<image>",
    ),
}  # fmt: skip


def tiny_writer_folder(folder: Path, name: str, **changes: Any) -> Path:
    old = Version(transformers.__version__) < Version("5.18")
    if name == "smolvlm" and old and not find_spec("torchvision"):
        pytest.skip("before transformers 5.18 SmolVLM's image processor is not found without torchvision")
    WRITERS[name](**changes).save_pretrained(folder)
    image_processor, settings, place = PROCESSORS[name]
    image_processor().save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("PLACE", place))
    pixel_tokenizer().save_pretrained(folder)
    return folder
