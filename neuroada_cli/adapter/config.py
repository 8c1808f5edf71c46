"""What adapter_config.json says, and the strict check of it.

PEFT's own keys come first, so that its tools recognise the folder; ours say what the adapter was trained on
and for. All of it may come from a stranger: no value is a path to open or code to run, except the base
model's name, which is shown, and given to `hub.resolve_model` when the user merges or evaluates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.errors import ModelError
from neuroada_cli.foreign_text import short
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.schema import PeerSection
from neuroada_cli.selection.file import check_format

# PEFT knows no other: where it has no word for the task, settings.model_task says it
PEFT_TASKS: dict[hub.ModelTask, str] = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
}
TASKS: dict[str, hub.ModelTask] = {name: task for task, name in PEFT_TASKS.items()}
OWN_TASKS: tuple[hub.ModelTask, ...] = ("image-text-to-text", "image-classification")
CONFIG_KEYS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "target_modules", "inference_mode",
    "format", "k", "criterion", "fingerprint", "tied", "settings", "modules_to_save",
}  # fmt: skip
MAX_LABELS = 1 << 16
MAX_POSITIONS = 1 << 20


def _is_text(value: Any) -> bool:
    """One line that can be shown and encoded: also what may become a file name or a hub id."""
    return isinstance(value, str) and value.isprintable() and len(value) <= 4096


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_peer(value: Any) -> bool:
    """The recipe's section of that name, to the letter; its rank is checked with the tensors."""
    try:
        peer = value if value is None else PeerSection.model_validate(value, strict=True)
    except ValidationError:
        return False
    return peer is None or peer.positions <= MAX_POSITIONS


def _is_mapping(value: Any) -> bool:
    """The class that PEFT met and the library it came from, which are read by nothing here."""
    if value is None:
        return True
    named = isinstance(value, dict) and value.keys() == {"base_model_class", "parent_library"}
    return named and all(text is None or _is_text(text) for text in value.values())


# PEFT's own, in what our plug-in for it writes; each may be missing
OF_PEFT: dict[str, Callable[[Any], bool]] = {
    "auto_mapping": _is_mapping,
    "peft_version": lambda value: value is None or _is_text(value),
}
# What the reader takes.
CONFIG_VALUES: dict[str, Callable[[Any], bool]] = {
    "task_type": lambda value: value is None or (isinstance(value, str) and value in TASKS),
    "base_model_name_or_path": lambda value: _is_text(value) and value != "",
    "revision": lambda value: value is None or _is_text(value),
    "inference_mode": lambda value: isinstance(value, bool),
    "settings": lambda value: isinstance(value, dict),
    "target_modules": _is_texts,
}
# Settings that merging, evaluating and model cards act upon; any may be missing, and there are no others.
SETTINGS: dict[str, Callable[[Any], bool]] = {
    "dtype": lambda value: isinstance(value, str) and value in hub.TORCH_DTYPES,
    "quantization": lambda value: value is None or _is_text(value),
    "num_labels": lambda value: value is None or (type(value) is int and 1 <= value <= MAX_LABELS),
    "labels": lambda value: _is_texts(value) and len(value) <= MAX_LABELS,
    "left_out": _is_texts,
    "pad_token_id": lambda value: value is None or (type(value) is int and 0 <= value < 2**31),
    "method": lambda value: isinstance(value, str) and value in METHODS,
    "peer": _is_peer,
    "model_task": lambda value: isinstance(value, str) and value in OWN_TASKS,
    **{key: _is_text for key in ("task", "protocol", "loss_mask")},
}


def check_config(config: Any, place: str) -> hub.ModelTask:
    """The task of a config that is what the writer writes. Raises ModelError naming the key.

    k, criterion, fingerprint and tied are checked with the indices (`selections.checked_selection`).
    """
    if not isinstance(config, dict) or config.get("peft_type") != "NEUROADA":
        kind = str(config.get("peft_type"))[:40] if isinstance(config, dict) else None
        raise ModelError(f"is an adapter of type {kind}, not NEUROADA", place)
    check_format(config, place)
    if odd_keys := (set(config) - OF_PEFT.keys()) ^ CONFIG_KEYS:
        odd = sorted(odd_keys)[0]
        raise ModelError(f"{odd[:80]} is {'not a key' if odd in config else 'missing'}", place)
    for key, is_right in (CONFIG_VALUES | OF_PEFT).items():
        if key in config and not is_right(config[key]):
            raise ModelError(f"{key} is {short(config[key])}, which cannot be", place)
    for key, value in config["settings"].items():
        if key not in SETTINGS:
            raise ModelError(f"settings.{key[:80]} is not a key", place)
        if not SETTINGS[key](value):
            raise ModelError(f"settings.{key} is {short(value)}, which cannot be", place)
    named, own = config["task_type"], config["settings"].get("model_task")
    if (named is None) == (own is None):
        raise ModelError("task_type and settings.model_task do not name one task", place)
    return TASKS[named] if own is None else own


def as_config(
    *, task_type: str | None, base: str | None, revision: str | None, targets: Iterable[str], number: int,
    k: int, criterion: str, fingerprint: dict[str, Any], tied: dict[str, list[str]], whole: Iterable[str],
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What the file holds. task_type is PEFT's name of it; number the format; whole the parameters' names."""
    return {
        "peft_type": "NEUROADA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "target_modules": sorted(targets),
        "inference_mode": True,
        "format": number,
        "k": k,
        "criterion": criterion,
        "fingerprint": fingerprint,
        "tied": tied,
        "modules_to_save": modules_to_save(whole),
        "settings": settings,
    }


def plain_task(model_class: str) -> str | None:
    """PEFT's task type by the name of a model's class, for whoever did not state one."""
    if model_class.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if model_class.endswith(("ForCausalLM", "LMHeadModel")) else None


HEADS = ("classifier", "score")  # which PEFT adds to modules_to_save of every classifier of texts


def method_problem(
    settings: Mapping[str, Any],
    indices: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    inputs: Mapping[str, int] | None = None,
) -> str | None:
    """Why the tensors cannot be what the method of an adapter's checked settings trains; None: they can.

    Asked before anything is built: a rank may only take memory if tensors of that rank are there.
    inputs  module (LoReFT: block) -> what goes into it, where the base is known
    """
    method = method_of(settings)
    facts = METHODS[method]
    if settings.get("quantization") is not None and not facts.quantized:
        return f"{method} does not train on a quantised base"
    loose = next((module for module, delta_OK in deltas.items() if delta_OK.any()), None)
    if not facts.chosen and loose is not None:
        return f"{loose} has deltas, which {method} does not train"
    if facts.added is None:
        return None
    rank = PeerSection.model_validate(settings.get("peer") or {}).rank
    try:
        expected = facts.added(rank, {name: len(index_OK) for name, index_OK in indices.items()}, inputs)
    except ValueError as error:
        return str(error)
    for name, shape in expected.items():
        if name not in whole:
            return f"{name} is missing, which {method} trains"
        found = tuple(whole[name].shape)
        fits = len(found) == len(shape) and all(
            0 < there == (n or there) for n, there in zip(shape, found, strict=True)
        )
        if not fits:
            wanted = ", ".join(str(n or "*") for n in shape)
            return f"{name} is {list(found)}, rank {rank} makes it [{wanted}]"
    odd = next((name for name in whole if str(facts.marks) in name and name not in expected), None)
    return None if odd is None else f"{odd} belongs to no target of {method}"


def method_of(settings: Mapping[str, Any]) -> str:
    """The method that an adapter's checked settings name; the first adapters did not."""
    return str(settings.get("method", "neuroada"))


def modules_to_save(whole: Iterable[str]) -> list[str] | None:
    """PEFT's key of that name: the modules of the parameters that are trained whole, or None.

    A head of several layers is one module where PEFT's classifiers take it for one.
    """
    return sorted({_saved_module(name) for name in whole}) or None


def names_what_is_saved(modules: object, whole: Iterable[str]) -> bool:
    """Whether `modules` are these; the first adapters named every layer of a head."""
    return modules in (modules_to_save(whole), sorted({name.rpartition(".")[0] for name in whole}) or None)


def _saved_module(parameter: str) -> str:
    """PEFT saves a module of a name in HEADS as a whole, told or not, and nothing within it apart from it."""
    parts = parameter.split(".")[:-1]
    within = next((place for place, part in enumerate(parts) if part in HEADS), len(parts))
    return ".".join(parts[: within + 1])
