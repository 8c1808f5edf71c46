"""What turns rows into the inputs of one model: its tokenizer, and what else it brings for that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada_cli.errors import ModelError
from neuroada_cli.hub.kinds import ModelTask
from neuroada_cli.hub.loading import load_tokenizer, read_auto_config
from neuroada_cli.hub.pictures import load_image_processor, load_processor


@dataclass(frozen=True)
class Reader:
    """tokenizer      a PreTrainedTokenizerBase; None for a model that reads no text
    decoder_start  of an encoder-decoder that writes: its decoder's first token
    pictures       of a model that classifies pictures: its image processor
    processor      of a model that writes about pictures: its processor of both
    """

    tokenizer: Any
    decoder_start: int | None = None
    pictures: Any = None
    processor: Any = None


def load_reader(
    folder: Path, task: ModelTask, trust_remote_code: bool = False, pictures: bool = False
) -> Reader:
    """The reader of a checked folder's model.

    pictures  rows come with pictures: a model that writes about them may be asked without any
    Raises ModelError for what is missing or broken, ResourceError for a package that it needs.
    """
    if task == "image-classification":
        return Reader(None, pictures=load_image_processor(folder, trust_remote_code))
    tokenizer = load_tokenizer(folder, trust_remote_code)
    if pictures and task == "image-text-to-text":
        return Reader(tokenizer, processor=load_processor(folder, tokenizer, trust_remote_code))
    return Reader(tokenizer, decoder_start(folder, task, trust_remote_code))


def decoder_start(folder: Path, task: ModelTask, trust_remote_code: bool = False) -> int | None:
    """The decoder's first token of an encoder-decoder that writes; None for any other model."""
    if task != "seq2seq-lm":
        return None
    start = getattr(read_auto_config(folder, trust_remote_code), "decoder_start_token_id", None)
    if start is None:
        raise ModelError("names no decoder_start_token_id", f"{folder}/config.json", "add it")
    return int(start[0] if isinstance(start, list) else start)
