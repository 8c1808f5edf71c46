"""What a model folder says that nobody acts upon: told, since its author may have meant something by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from neuroada_cli import files
from neuroada_cli.errors import UserError
from neuroada_cli.foreign_text import short
from neuroada_cli.hub.packed_base import is_known, method_of
from neuroada_cli.hub.plausible import unasked_blocks
from neuroada_cli.hub.resolve import read_config
from neuroada_cli.hub.weights import open_weights, weights_passed_over

# Names of no tokenizer in particular: whichever is read from tokenizer.json is one.
ANY_TOKENIZER = {
    "PreTrainedTokenizer", "PreTrainedTokenizerBase", "PreTrainedTokenizerFast", "PythonBackend",
    "TokenizersBackend",
}  # fmt: skip
CODE = "its own Python code (auto_map in {file}) is not run"


def ignored_of_model(
    folder: Path, trust_remote_code: bool = False, graph: nn.Module | None = None
) -> Iterator[str]:
    """One line each about config.json and, where the model that it makes is at hand, about the weights that
    find no place in it. Raises ModelError for a config that cannot be read.
    """
    config = read_config(folder)
    if "auto_map" in config and not trust_remote_code:
        kind = short(config.get("model_type")).strip("'")
        yield f"{CODE.format(file='config.json')}: transformers' own {kind} is used"
    weights = open_weights(folder)
    others = weights_passed_over(weights)
    if others is not None:
        yield others
    if graph is not None:
        yield from unasked_blocks(graph, weights)
    yield from _quantization(config)


def ignored_of_tokenizer(tokenizer: Any, trust_remote_code: bool = False) -> Iterator[str]:
    """One line each about the tokenizer_config.json that a tokenizer was loaded from."""
    file = Path(str(tokenizer.name_or_path)) / "tokenizer_config.json"
    try:
        config = files.read_json(file)
    except UserError:  # there is none: nothing was said
        return
    if "auto_map" in config and not trust_remote_code:
        yield f"{CODE.format(file=file.name)} for the tokenizer"
    name, taken = config.get("tokenizer_class"), type(tokenizer).__name__
    if isinstance(name, str) and name not in ANY_TOKENIZER and not _is_of(tokenizer, name):
        yield f"{file.name} names the class {short(name)}, which is not used: the tokenizer is a {taken}"


def _is_of(tokenizer: Any, name: str) -> bool:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    named = tokenizer_class_from_name(name)
    return type(tokenizer).__name__ == name or (isinstance(named, type) and isinstance(tokenizer, named))


def _quantization(config: Mapping[str, Any]) -> Iterator[str]:
    found = config.get("quantization_config")
    if not isinstance(found, Mapping) or (method := method_of(found)) is None:
        return  # loading says what is wrong with it
    if not is_known(method):
        yield (
            f"quantization_config in config.json is of a kind that transformers does not know "
            f"({short(method)}) and is ignored: the weights are taken as they are stored"
        )
