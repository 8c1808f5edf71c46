"""What adapter_config.json says, and the strict check of it.

PEFT's own keys come first, so that its tools recognise the folder; ours say what the adapter was trained on
and for. All of it may come from a stranger: no value is a path to open or code to run, except the base
model's name, which is shown, and given to `hub.resolve_model` when the user merges or evaluates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from neuroada_cli import hub
from neuroada_cli.errors import ModelError
from neuroada_cli.selections import check_format

CONFIG = "adapter_config.json"
PEFT_TASKS: dict[hub.Task, str] = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}
TASKS: dict[str, hub.Task] = {name: task for task, name in PEFT_TASKS.items()}
CONFIG_KEYS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "target_modules", "inference_mode",
    "format", "k", "criterion", "fingerprint", "tied", "settings", "modules_to_save",
}  # fmt: skip
MAX_LABELS = 1 << 16


def _is_text(value: Any) -> bool:
    """One line that can be shown and encoded: also what may become a file name or a hub id."""
    return isinstance(value, str) and value.isprintable() and len(value) <= 4096


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


# What the reader takes.
CONFIG_VALUES: dict[str, Callable[[Any], bool]] = {
    "task_type": lambda value: isinstance(value, str) and value in TASKS,
    "base_model_name_or_path": lambda value: _is_text(value) and value != "",
    "revision": lambda value: value is None or _is_text(value),
    "inference_mode": lambda value: isinstance(value, bool),
    "settings": lambda value: isinstance(value, dict),
    "target_modules": _is_texts,
}
# Settings that merging and evaluating act upon; any of them may be missing.
SETTINGS: dict[str, Callable[[Any], bool]] = {
    "dtype": lambda value: isinstance(value, str) and value in hub.TORCH_DTYPES,
    "quantization": lambda value: value is None or _is_text(value),
    "num_labels": lambda value: value is None or (type(value) is int and 1 <= value <= MAX_LABELS),
    "labels": lambda value: _is_texts(value) and len(value) <= MAX_LABELS,
    "pad_token_id": lambda value: value is None or (type(value) is int and 0 <= value < 2**31),
    **{key: _is_text for key in ("method", "task", "protocol", "loss_mask")},
}


def check_config(config: Any, place: str) -> hub.Task:
    """The task of a config that is what the writer writes. Raises ModelError naming the key.

    k, criterion, fingerprint and tied are checked with the indices (`selections.checked_selection`).
    """
    if not isinstance(config, dict) or config.get("peft_type") != "NEUROADA":
        kind = str(config.get("peft_type"))[:40] if isinstance(config, dict) else None
        raise ModelError(f"is an adapter of type {kind}, not NEUROADA", place)
    check_format(config, place)
    if set(config) != CONFIG_KEYS:
        odd = sorted(set(config) ^ CONFIG_KEYS)[0]
        raise ModelError(f"{odd[:80]} is {'not a key' if odd in config else 'missing'}", place)
    for key, is_right in CONFIG_VALUES.items():
        if not is_right(config[key]):
            raise ModelError(f"{key} is {short(config[key])}, which cannot be", place)
    for key, is_right in SETTINGS.items():
        if key in config["settings"] and not is_right(config["settings"][key]):
            raise ModelError(f"settings.{key} is {short(config['settings'][key])}, which cannot be", place)
    return TASKS[config["task_type"]]


def short(value: Any) -> str:
    """A foreign value for a message: of a megabyte only the beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def modules_to_save(whole: Iterable[str]) -> list[str] | None:
    """PEFT's key of that name: the modules of the parameters that are trained whole, or None."""
    return sorted({name.rpartition(".")[0] for name in whole}) or None
