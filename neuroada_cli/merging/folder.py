"""What a merged folder holds beside its weights: config, tokenizer, generation config, model card."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuroada_cli import files, hub
from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.folder import RECIPE, TEMPLATES, Adapter, AdapterFolder, how_trained
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.companions import companions, looked_for
from neuroada_cli.hub.known import known
from neuroada_cli.hub.tokenizer_class import brings_code, read_for
from neuroada_cli.merging.merge import Merge
from neuroada_cli.methods import METHODS
from neuroada_cli.show.numbers import describe_dtype, share

TEMPLATE = "chat_template.jinja"
# where else a folder may hold templates
HOLD_TEMPLATE, OLD_TEMPLATE = ("tokenizer_config.json", "processor_config.json"), "chat_template.json"
PROBE = "Wie viel?\n 12 + 30 = 42, naïve — 日本 <s> [INST]"  # what two tokenizers must read alike
# the hub's words for what a model does; for an encoder-decoder it has several, and its config tells which
PIPELINES: dict[hub.ModelTask, str] = {
    "causal-lm": "text-generation",
    "sequence-classification": "text-classification",
    "image-text-to-text": "image-text-to-text",
    "image-classification": "image-classification",
}


SMALL_BYTES = 256 << 10  # of recipe, card and manifest, and of what is longer than in the base


def copy_companions(base: Path, folder: Path, trust_remote_code: bool = False) -> list[str]:
    """Copy what goes along with the weights, byte for byte, and check that it loads: before gigabytes are
    written beside it. Returns the names of what stays behind.

    folder  holds the merged config
    Raises ModelError for a tokenizer that does not load from there, or reads otherwise than the base's.
    """
    sought = looked_for(base, trust_remote_code)
    carried, left = companions(base, sought)
    for name in carried:
        (folder / name).parent.mkdir(exist_ok=True)
        files.copy_file(base / name, folder / name)

    def check() -> bool:
        reads, again = (hub.load_tokenizer(place, trust_remote_code) for place in (base, folder))
        if any(_facts(reads)[key] != value for key, value in _facts(again).items()):
            raise ModelError(
                f"its tokenizer reads otherwise once its files are carried over ({', '.join(carried)})",
                str(base),
                "look for files that its tokenizer needs and no config of it names",
            )
        return True

    if sought.reads and brings_code(base):
        check()
    elif sought.reads:  # it follows from the bytes of both folders' files
        known("carried", [*read_for(base), *read_for(folder)], None, check, lambda fine: [fine], _as_fine)
    return left


def _as_fine(record: Any) -> bool:
    if record != [True]:
        raise ValueError("no record")
    return True


def _facts(tokenizer: Any) -> dict[str, Any]:
    """By which two tokenizers are told apart."""
    return {
        "size": len(tokenizer),
        "templates": tokenizer.chat_template,
        "special": tokenizer.special_tokens_map,
        "reads": tokenizer(PROBE, verbose=False)["input_ids"],
    }


def room_beside_weights(base: Path) -> int:
    """Bytes that a folder takes beside its weights: companions, config, index, recipe, card, manifest."""
    written = [name for name in ("config.json", hub.INDEX, "README.md") if (base / name).is_file()]
    carried, _ = companions(base, looked_for(base))
    return sum((base / name).stat().st_size for name in [*carried, *written]) + SMALL_BYTES


def carry_recipe(adapter: AdapterFolder, folder: Path) -> None:
    """Copy the recipe of a checked adapter folder: what the merged model was trained on, and how.

    A recipe that the adapter's manifest does not name is somebody else's and stays behind.
    """
    recipe = adapter.file(RECIPE)
    if recipe is not None:
        files.copy_file(recipe, folder / RECIPE)


def carry_template(adapter: AdapterFolder, folder: Path) -> None:
    """The chat template of one's own that an adapter was trained under, in place of all of the base's.

    transformers reads the file before an entry of the configs, and llama.cpp's converter the entry before the
    file; a further template for tools would be taken where the trained one was.
    """
    template = adapter.file(TEMPLATE)
    if template is None:
        return
    files.copy_file(template, folder / TEMPLATE)
    for name in HOLD_TEMPLATE:
        settings = files.read_json(folder / name) if (folder / name).is_file() else {}
        if settings.pop("chat_template", None) is not None:
            files.write_json(folder / name, settings)
    (folder / OLD_TEMPLATE).unlink(missing_ok=True)
    if (folder / TEMPLATES).is_dir():
        files.remove_folder(folder / TEMPLATES)


def merged_config(
    config: dict[str, Any], dtype: torch.dtype, adapter: Adapter, skeleton: nn.Module
) -> dict[str, Any]:
    """The base's config with what the merge changes: the true data type, no quantisation, and for a
    classifier its class, labels and problem type, and the padding token where it cannot do without.
    """
    merged = _with_dtype({k: v for k, v in config.items() if k != "quantization_config"}, dtype)
    if not {"dtype", "torch_dtype"} & set(merged):
        merged["dtype"] = describe_dtype(dtype)
    if adapter.task in hub.CLASSIFIERS:
        merged["architectures"] = [type(skeleton).__name__]
        merged |= _labels(adapter, skeleton)
        pad = adapter.settings.get("pad_token_id")
        if merged.get("pad_token_id") is None and isinstance(pad, int) and hub.reads_padding(skeleton):
            merged["pad_token_id"] = pad
    return merged


def _with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Every dtype entry, also of nested parts, set to the true one."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in {"dtype", "torch_dtype"} and (value is None or isinstance(value, str)):
            changed[key] = describe_dtype(dtype)
        elif isinstance(value, dict) and key.endswith("_config"):
            changed[key] = _with_dtype(value, dtype)
        else:
            changed[key] = value
    return changed


def _labels(adapter: Adapter, skeleton: nn.Module) -> dict[str, Any]:
    count = int(skeleton.config.num_labels)  # type: ignore[union-attr,arg-type]
    given = adapter.settings.get("labels")
    names = given if isinstance(given, list) and len(given) == count else [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): str(name) for i, name in enumerate(names)},
        "label2id": {str(name): i for i, name in enumerate(names)},
        "problem_type": "regression" if count == 1 else "single_label_classification",
    }


def model_card(
    adapter: Adapter,
    merge: Merge,
    day: datetime.date | None = None,
    parts: Sequence[tuple[float, str]] = (),
) -> str:
    """README.md of the merged folder, with the front matter that the hub reads.

    adapter  as it was trained, even where the merge went by whole weights (LoRA)
    day      what its chat template was told in training, if that asks for it
    parts    (weight, name) of the adapters that it is the sum of
    """
    stats = merge.stats
    matter = ["library_name: transformers"]
    if hub.is_hub_id(adapter.base):
        matter += [f"base_model: {adapter.base}", "base_model_relation: finetune"]
    if adapter.task in PIPELINES:
        matter.append(f"pipeline_tag: {PIPELINES[adapter.task]}")
    matter += ["tags:", "- neuroada"]
    sparse = stats.entries > 0 and METHODS[method_of(adapter.settings)].chosen
    matter += ["- sparse-fine-tuning"] * sparse
    head = "\n".join(["---", *matter, "---"])
    rounded = " (rounded to the data type above, as for training)" if merge.cast else ""
    same = f"Every other weight of the adapted layers is the base model's, bit for bit{rounded}.\n"
    changed = f"""| weights that could change | {stats.entries:,} of {merge.parameters:,} \
({share(stats.entries, merge.parameters)}) |
| weights that did change | {stats.changed:,} |
"""
    more = f"| merged onto | {merge.onto} |\n" if merge.onto else ""
    more += f"| sum of | {', '.join(f'{weight:g} × {name}' for weight, name in parts)} |\n" if parts else ""
    if merge.onto is None:
        largest = f"{stats.largest_difference:.3g} at most" if merge.target != merge.trained else "none"
        more += f"| difference to what was trained | {largest} |\n"
    more += f"| day told to the chat template | {day.isoformat()} |\n" if day else ""
    return f"""{head}

# {_display_name(adapter.base)}, fine-tuned

A plain Hugging Face checkpoint: it loads with `transformers` alone and costs nothing over its base.

| | |
|---|---|
| base model | {_display_name(adapter.base)} |
| training | {how_trained(adapter)} |
{changed if sparse else ""}| tensors replaced whole | {stats.whole} |
| data type | {describe_dtype(merge.target)} |
{more}
{same if sparse else ""}"""


def _display_name(base: str) -> str:
    """A hub id as it is; of a local path only the last part, since paths say something about a machine."""
    return base if hub.is_hub_id(base) else Path(base).name
