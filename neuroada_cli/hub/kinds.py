"""Which of transformers' classes a task needs of a model, and which of the two cannot go together, and why.

What a class can do is read off transformers' own tables and the model's config, so that no list of models has
to be kept here.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from neuroada_cli.errors import ModelError

ModelTask = Literal[
    "causal-lm", "seq2seq-lm", "image-text-to-text", "sequence-classification", "image-classification"
]
# the class that loads it, and transformers' table of the model types that have one
CLASSES: dict[ModelTask, tuple[str, str]] = {
    "causal-lm": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "seq2seq-lm": ("AutoModelForSeq2SeqLM", "SEQ_TO_SEQ_CAUSAL_LM"),
    "image-text-to-text": ("AutoModelForImageTextToText", "IMAGE_TEXT_TO_TEXT"),
    "sequence-classification": ("AutoModelForSequenceClassification", "SEQUENCE_CLASSIFICATION"),
    "image-classification": ("AutoModelForImageClassification", "IMAGE_CLASSIFICATION"),
}
CLASSIFIERS: tuple[ModelTask, ...] = ("sequence-classification", "image-classification")
# transformers' tables of what else a model may be, and how to say so
OTHERWISE = {
    "SPEECH_SEQ_2_SEQ": "listens to speech",
    "CTC": "listens to speech",
    "AUDIO_CLASSIFICATION": "listens to sounds",
    "TEXT_TO_WAVEFORM": "makes sounds",
    "VIDEO_CLASSIFICATION": "looks at videos",
    "TIME_SERIES_PREDICTION": "predicts time series",
    "IMAGE_TEXT_TO_TEXT": "writes about pictures",
    "IMAGE_CLASSIFICATION": "looks at pictures",
    "OBJECT_DETECTION": "looks at pictures",
    "SEMANTIC_SEGMENTATION": "looks at pictures",
    "DEPTH_ESTIMATION": "looks at pictures",
    "SEQ_TO_SEQ_CAUSAL_LM": "is an encoder-decoder of texts",
    "MASKED_LM": "is an encoder of texts",
    "CAUSAL_LM": "writes texts",
}


class Work(NamedTuple):
    """What a task asks of a model. kind: generation, classification or regression; pictures: of rows with
    pictures.
    """

    kind: str = "generation"
    pictures: bool = False

    def __str__(self) -> str:
        if self.pictures:
            return "writes about pictures" if self.kind == "generation" else "classifies pictures"
        return {"generation": "writes texts", "regression": "scores texts"}.get(self.kind, "classifies texts")


def as_task(name: str) -> ModelTask:
    """The class of model of this name. Raises ValueError for any other text."""
    for task in CLASSES:
        if task == name:
            return task
    raise ValueError(f"no class of model: {name}")


def task_of(config: Any, work: Work, where: str) -> ModelTask:
    """The class of model that does this work, by the model's config.

    Raises ModelError, naming the model's type and why, where none can.
    """
    if not work.pictures and work.kind != "generation":
        return _if_known(config, "sequence-classification", work, where)
    if work.pictures and work.kind == "generation" and getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model type {config.model_type} reads pictures by an encoder apart from its texts, which is not "
            "supported",
            where,
            "choose a model whose prompts hold the pictures (LLaVA, Qwen2.5-VL, SmolVLM)",
        )
    if work.pictures:
        wanted: ModelTask = "image-text-to-text" if work.kind == "generation" else "image-classification"
        return _if_known(config, wanted, work, where)
    if getattr(config, "is_encoder_decoder", False):
        return _encoder_decoder(config, work, where)
    if not _has(config, "causal-lm") and _has(config, "image-text-to-text"):
        return "image-text-to-text"  # a text alone is one of its inputs
    if _is_encoder(config):
        raise ModelError(
            f"model type {config.model_type} reads a text in both directions, so it would see the words that "
            "it is to write",
            where,
            "choose a task that classifies, or a model that writes",
        )
    return _if_known(config, "causal-lm", work, where)


def _encoder_decoder(config: Any, work: Work, where: str) -> ModelTask:
    """Never a causal model, though transformers may have a class for its decoder alone."""
    task = _if_known(config, "seq2seq-lm", work, where)
    if getattr(config, "decoder_start_token_id", None) is None:
        raise ModelError(
            f"config.json of the {config.model_type} names no decoder_start_token_id, so nobody can tell how "
            "its answers begin",
            where,
            "name it there, as the model was trained",
        )
    return task


def _is_encoder(config: Any) -> bool:
    """Whether the class for causal models would run an encoder: transformers only warns of it."""
    both = config.model_type in _table("CAUSAL_LM") and config.model_type in _table("MASKED_LM")
    return both and not getattr(config, "is_decoder", False) and not getattr(config, "causal", False)


def _if_known(config: Any, task: ModelTask, work: Work, where: str) -> ModelTask:
    if _has(config, task):
        return task
    is_a = next((words for table, words in OTHERWISE.items() if config.model_type in _table(table)), None)
    raise ModelError(
        f"model type {config.model_type} {is_a or 'is none that works on texts or pictures'}, and "
        f"transformers has no {CLASSES[task][0].removeprefix('AutoModelFor')} for it",
        where,
        f"choose a model that {work}",
    )


def _has(config: Any, task: ModelTask) -> bool:
    name, table = CLASSES[task]
    return config.model_type in _table(table) or name in (getattr(config, "auto_map", None) or {})


def _table(name: str) -> dict[str, Any]:
    from transformers.models.auto import modeling_auto

    return dict(getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}))
