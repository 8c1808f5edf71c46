"""Every kind of bad input and of trouble, at the command line: exit code, one line, and nothing changed."""

# ruff: noqa: E501  (a table reads better with a case per line)

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases
import yaml
from privilege import lock_folder, unprivileged
from safetensors.torch import load_file, save_file
from tiny_run import tiny_llama_folder
from trees import tree

from neuroada_cli import cli, files, hub
from neuroada_cli.files.manifest import seal
from neuroada_cli.recipe import load_recipe

ROWS = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(12)]


class Room:
    """A folder with a model, rows, a recipe and, after `trained`, a run; what a case then damages."""

    def __init__(self, folder: Path, model: Path, run: Path | None = None) -> None:
        self.folder, self.model, self.run = folder, folder / "model", folder / "run"
        shutil.copytree(model, self.model)
        if run is not None:
            shutil.copytree(run, self.run, symlinks=True)
        self.rows = folder / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        self.recipe = folder / "tiny.yaml"
        self.values: dict[str, Any] = {
            "name": "tiny",
            "run_dir": str(self.run),
            "device": "cpu",
            "model": {"path": str(self.model), "dtype": "fp32"},
            "data": {"task": "instruct", "train": str(self.rows), "max_length": 256},
            "select": {"k": 2},
            "train": {"epochs": 1, "batch_size": 4},
        }
        self.write()

    def write(self, **changes: dict[str, Any]) -> None:
        for section, values in changes.items():
            self.values[section] = {**self.values.get(section, {}), **values}
        self.recipe.write_text(yaml.safe_dump(self.values), encoding="utf-8")

    def text(self, text: str) -> None:
        self.recipe.write_text(text, encoding="utf-8")

    @property
    def train(self) -> list[str]:
        return ["train", str(self.recipe)]

    @property
    def adapter(self) -> Path:
        return self.run / "last"

    @property
    def merge(self) -> list[str]:
        return ["merge", str(self.adapter), str(self.folder / "merged")]

    def change_tensors(self, file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    def hide_damage(self) -> None:
        """A manifest that agrees with what was changed: the reader itself has to see it."""
        folder = self.adapter.resolve()
        (folder / files.MANIFEST).unlink()
        seal(folder)

    def damage_adapter(self, change: Callable[[dict[str, torch.Tensor]], object]) -> list[str]:
        self.change_tensors(self.adapter.resolve() / "adapter_model.safetensors", change)
        self.hide_damage()
        return self.merge

    def damage_config(self, **changes: object) -> list[str]:
        file = self.adapter.resolve() / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | changes
        file.write_text(json.dumps(config), encoding="utf-8")
        self.hide_damage()
        return self.merge

    def damage_settings(self, zeroed: bool = False, **changes: object) -> list[str]:
        """zeroed: so are all deltas, as those of methods that train none."""
        file = self.adapter.resolve() / "adapter_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))["settings"] | changes
        if zeroed:
            self.damage_adapter(lambda t: [v.zero_() for n, v in t.items() if "values" in n])
        return self.damage_config(settings=settings)

    def trained_whole(self, name: str, tensor: torch.Tensor) -> list[str]:
        """Zero deltas, and one tensor that was trained whole instead."""
        self.damage_config(modules_to_save=[name.removesuffix(".weight")])
        self.damage_adapter(lambda t: [v.zero_() for n, v in t.items() if "values" in n])
        return self.damage_adapter(lambda t: t.update({f"base_model.model.{name}": tensor}))


def end_with(room: Room, data: bytes) -> list[str]:
    room.rows.write_bytes(room.rows.read_bytes() + data)
    return room.train


def with_recipe(text: str) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        room.text(text.replace("MODEL", str(room.model)).replace("RUN", str(room.run)))
        return room.train

    return case


def with_values(**changes: dict[str, Any]) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        room.write(**changes)
        return room.train

    return case


def with_rows(text: str) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        room.rows.write_text(text, encoding="utf-8")
        return room.train

    return case


def model_config(**changes: object) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        file = room.model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
        return room.train

    return case


def missing_shard(room: Room) -> list[str]:
    weights = load_file(room.model / "model.safetensors")
    (room.model / "model.safetensors").unlink()
    names = {name: f"model-{1 + n % 2:05d}-of-00002.safetensors" for n, name in enumerate(weights)}
    save_file(
        {n: t for n, t in weights.items() if names[n].startswith("model-00001")},
        room.model / "model-00001-of-00002.safetensors",
        metadata={"format": "pt"},
    )
    index = {"metadata": {}, "weight_map": names}
    (room.model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return room.train


def disagreeing_index(room: Room, extra: str | None = None) -> list[str]:
    """Both shards are there; the index has one tensor in the other shard, or one that is in none."""
    weights = load_file(room.model / "model.safetensors")
    missing_shard(room)
    file = room.model / "model.safetensors.index.json"
    names = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    for shard in sorted(set(names.values())):
        held = {n: t for n, t in weights.items() if names[n] == shard}
        save_file(held, room.model / shard, metadata={"format": "pt"})
    names[extra or "lm_head.weight"] = "model-00002-of-00002.safetensors"
    file.write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    return room.train


def hidden_adapter(room: Room) -> list[str]:
    (room.model / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    return room.train


def truncated_weights(room: Room) -> list[str]:
    file = room.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return room.train


def only_pickles(room: Room) -> list[str]:
    (room.model / "model.safetensors").rename(room.model / "pytorch_model.bin")
    return room.train


def no_template(room: Room) -> list[str]:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    room.rows.write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    return room.train


def without_tokens(*names: str) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        file = room.model / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        kept = {key: value for key, value in settings.items() if key not in names}
        file.write_text(json.dumps(kept), encoding="utf-8")
        return room.train

    return case


def nan_norm(room: Room) -> list[str]:
    room.change_tensors(room.model / "model.safetensors", lambda t: t["model.norm.weight"].fill_(torch.nan))
    return room.train


def another_base(room: Room) -> list[str]:
    room.change_tensors(
        room.model / "model.safetensors", lambda t: t["model.layers.0.mlp.up_proj.weight"].add_(0.01)
    )
    return room.merge


def first(tensors: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    return next(tensor for name, tensor in tensors.items() if name.endswith(kind))


def too_wide(room: Room) -> list[str]:
    """Every row has one column more than the layer has inputs."""
    room.damage_config(k=49, format=2)
    name = "base_model.model.model.layers.0.mlp.down_proj.neuroada_"
    wide = {
        f"{name}indices": torch.arange(49, dtype=torch.int32).repeat(32, 1),
        f"{name}values": torch.ones(32, 49),
    }
    return room.damage_adapter(lambda t: t.update(wide))


def extra_module(room: Room) -> list[str]:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        for kind in ("indices", "values"):
            tensors[f"base_model.model.model.layers.7.mlp.up_proj.neuroada_{kind}"] = first(
                tensors, kind
            ).clone()

    file = room.adapter.resolve() / "adapter_config.json"
    names = json.loads(file.read_text(encoding="utf-8"))["target_modules"]
    room.damage_config(target_modules=[*names, "model.layers.7.mlp.up_proj"])
    return room.damage_adapter(add)


def huge_rank(room: Room) -> list[str]:
    """Tensors of rank 2, and settings that say ten million."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("indices")]:
            module, rows = name.removesuffix(".neuroada_indices"), len(tensors[name])
            tensors[f"{module}.lora_A.default.weight"] = torch.ones(2, 48)
            tensors[f"{module}.lora_B.default.weight"] = torch.ones(rows, 2)

    room.damage_adapter(add)
    file = room.adapter.resolve() / "adapter_config.json"
    names = json.loads(file.read_text(encoding="utf-8"))["target_modules"]
    saved = sorted(f"{name}.lora_{each}.default" for name in names for each in "AB")
    room.damage_config(modules_to_save=saved)
    return room.damage_settings(method="lora", peer={"rank": 10_000_000}, zeroed=True)


def broken_base(room: Room) -> list[str]:
    """NaN in the embedding of a token that no text has; the adapter was made for this very base."""
    room.change_tensors(
        room.model / "model.safetensors", lambda t: t["model.embed_tokens.weight"][0, 3].fill_(torch.nan)
    )
    return room.damage_config(fingerprint=hub.fingerprint(room.model))


def flipped_bit(room: Room) -> list[str]:
    file = room.adapter.resolve() / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(bytes(data))
    return room.merge


def truncated_adapter(room: Room) -> list[str]:
    file = room.adapter.resolve() / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    room.hide_damage()
    return room.merge


def link_outside(room: Room) -> list[str]:
    file = room.adapter.resolve() / "adapter_model.safetensors"
    file.rename(room.folder / "elsewhere.safetensors")
    file.symlink_to(room.folder / "elsewhere.safetensors")
    return room.merge


def of_another_base(room: Room) -> list[str]:
    room.change_tensors(room.model / "model.safetensors", lambda t: t["model.norm.weight"].add_(1))
    return [
        *room.train,
        "--selection",
        str(room.run / "selection.safetensors"),
        "--out",
        str(room.folder / "new"),
    ]


def taken_out(room: Room) -> list[str]:
    (room.folder / "merged").mkdir()
    (room.folder / "merged" / "thesis.txt").write_text("mine", encoding="utf-8")
    return room.merge


def changed_recipe(room: Room) -> list[str]:
    room.write(optim={"lr": 0.5})
    return [*room.train, "--resume"]


def changed_data(room: Room) -> list[str]:
    room.rows.write_text(room.rows.read_text(encoding="utf-8").replace("Say 3.", "Tell 3."), encoding="utf-8")
    return [*room.train, "--resume"]


def merged_twice(room: Room) -> list[str]:
    code, _ = ended(room.merge)
    assert code == 0
    return ["merge", str(room.folder / "merged"), str(room.folder / "again")]


def bad_test_rows(room: Room) -> list[str]:
    task = room.folder / "boolq"
    task.mkdir()
    (task / "test.json").write_text(
        '[{"instruction": "a", "output": "b", "answer": "true"}, {"inst', encoding="utf-8"
    )
    return [
        "eval",
        str(room.model),
        "--tasks",
        "boolq",
        "--data-dir",
        str(room.folder),
        "--out",
        str(room.folder / "e"),
    ]


BOMB = "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n"
WHOLE = "name: t\nrun_dir: RUN\nmodel: {path: MODEL}\ndata: {task: due_dates}\n"
FRESH: dict[str, tuple[Callable[[Room], list[str]], int, str]] = {
    "recipe: unknown key": (with_recipe(WHOLE + "optim: {warmup_ration: 1}\n"), 2, r"tiny.yaml:5: .*did you mean warmup_ratio"),
    "recipe: wrong type": (with_recipe(WHOLE + "train:\n  epochs: many\n"), 2, r"tiny.yaml:6: train.epochs='many'"),
    "recipe: duplicate key": (with_recipe(WHOLE + "seed: 1\nseed: 2\n"), 2, r"tiny.yaml:6: .*seed is given twice"),
    "recipe: YAML tag": (with_recipe(WHOLE + "seed: !!python/name:os.system 1\n"), 2, r"tiny.yaml:5: the tag"),
    "recipe: anchor bomb": (with_recipe(BOMB), 2, r"tiny.yaml:1: anchors and aliases"),
    "recipe: depth": (with_recipe("a: " + "[" * 5000), 2, r"nested deeper than"),
    "recipe: too large": (with_recipe(WHOLE + "#" * 300_000), 2, r"larger than 256 KiB"),
    "recipe: impossible combination": (
        with_values(train={"batch_size": 4, "micro_batch_size": 3}), 2, r"not a multiple of"
    ),
    "recipe: a target that matches nothing": (with_values(select={"targets": ["q_prj"]}), 2, r"did you mean q_proj"),
    "recipe: K above the inputs": (with_values(select={"k": 4096}), 2, r"select.k=4096, but .* has \d+ inputs"),
    "recipe: unknown method": (with_values(train={"method": "lorra"}), 2, r"did you mean lora"),
    "recipe: unknown protocol": (with_values(data={"protocol": "raft"}), 2, r"raft is not a protocol"),
    "data: malformed JSON": (lambda r: end_with(r, b'{"instruction": \n'), 3, r"rows.jsonl:13: not valid JSON: Expecting value; mend or remove it"),
    "data: bad UTF-8": (lambda r: end_with(r, b'{"instruction": "\xff"}\n'), 3, r"rows.jsonl:13: not UTF-8 text; mend or remove it"),
    "data: NUL": (lambda r: end_with(r, b'{"instruction": "\0", "output": "b"}\n'), 3, r"rows.jsonl:13: holds a NUL byte; mend or remove it"),
    "data: missing field": (lambda r: end_with(r, b'{"instruction": "a"}\n'), 3, r"rows.jsonl:13: has no field 'output'; task instruct needs it in every row"),
    "data: empty set": (with_rows(""), 3, r"rows.jsonl: holds no rows$"),
    "data: the prompt alone fills max_length": (
        with_values(data={"max_length": 8}), 3,
        r"12 of 12 rows have nothing to learn within data.max_length=8: their prompt alone fills it .*; raise data.max_length",
    ),
    "data: every label masked": (
        with_rows('{"instruction": "Say", "output": ""}\n' * 6), 3,
        r"6 of 6 rows have no answer to learn \(the first is row 0\); fill their answers in",
    ),
    "data: no pad, unknown or end token": (without_tokens("unk_token", "eos_token"), 3, r"tokenizer has no end token.*set its eos_token"),
    "data: no chat template": (no_template, 3, r"the model's tokenizer has no chat template; use data.format: prompt-completion"),
    "data: file missing": (with_values(data={"train": "nowhere.jsonl"}), 3, r"nowhere.jsonl: no such data set \(looked at nowhere.jsonl\); name a file"),
    "data: an address with a password": (
        with_values(data={"train": "https://me:pw@127.0.0.1:9/x.json"}), 2,
        r"tiny.yaml:\d+: data.train is an address with a user name, a password or a query.*; name a hub id and set HF_TOKEN",
    ),
    "model: missing shard": (
        missing_shard, 4, r"model: model-00002-of-00002.safetensors is missing; download or copy the model again"
    ),
    "model: index and shards disagree": (
        disagreeing_index, 4,
        r"lm_head.weight is in model-00001-of-00002.safetensors, but model.safetensors.index.json puts it model-00002-of",
    ),
    "model: the index puts a tensor where it is not": (
        lambda r: disagreeing_index(r, "model.extra.weight"), 4,
        r"model.safetensors.index.json puts model.extra.weight in model-00002-of-00002.safetensors, which lacks it",
    ),
    "model: truncated": (
        truncated_weights, 4, r"model.safetensors: was cut short: \d+ bytes, its header says \d+; copy it again"
    ),
    "model: only pickles": (
        only_pickles, 4,
        r"holds only pickled weights \(pytorch_model.bin\), which can run code when opened; convert it with save_pretrained",
    ),
    "model: remote code": (model_config(model_type="strange", auto_map={"AutoModelForCausalLM": "x.Y"}), 4, r"runs Python code that comes with the model; set model.trust_remote_code"),
    "model: attention from the hub": (
        model_config(_attn_implementation="somebody/evil"), 4,
        r"its config has attention computed by code from the hub \(somebody/evil\); take that out of config.json, or set",
    ),
    "model: attention from the hub, for a part of it": (
        model_config(text_config={"attn_implementation": {"": "sdpa", "layers": "somebody/evil"}}), 4,
        r"attention computed by code from the hub \(somebody/evil\)",
    ),
    "model: an adapter hidden beside it": (
        hidden_adapter, 4, r"model: holds an adapter_config.json beside the model.*; remove one of the two"
    ),
    "model: folder missing": (with_values(model={"path": "./nowhere"}), 4, r"./nowhere: no such model folder; check the path"),
    "eval: truncated task file": (bad_test_rows, 3, r"boolq/test.json:1: not valid JSON: Unterminated string"),
}  # fmt: skip
TRAINED: dict[str, tuple[Callable[[Room], list[str]], int, str]] = {
    "adapter: wrong base": (
        another_base, 4,
        r"model: is not the base that was selected and trained on: its weights differ in content; name the right one",
    ),
    "adapter: index out of range": (
        lambda r: r.damage_adapter(lambda t: first(t, "indices")[2, 1:].fill_(9999)), 4,
        r"mlp.down_proj: row 2 has a column outside 0\.\.47",
    ),
    "adapter: duplicate index": (
        lambda r: r.damage_adapter(lambda t: first(t, "indices")[0].fill_(int(first(t, "indices")[0, 0]))), 4,
        r"mlp.down_proj: row 0 repeats a column or is not in ascending order",
    ),
    "adapter: wrong shape": (
        lambda r: r.damage_adapter(lambda t: t.update({n: v[:3] for n, v in t.items() if "values" in n})), 4,
        r"mlp.down_proj: values are torch.float32 \[3, 2\], expected torch.float32 \[32, 2\]",
    ),
    "adapter: other rows than the base": (
        lambda r: r.damage_adapter(lambda t: t.update({n: v[:3] for n, v in t.items()})), 4,
        r"mlp.down_proj: 3 rows, the base has 32",
    ),
    "adapter: K above the inputs": (too_wide, 4, r"mlp.down_proj: 49 columns per row, the base has 48"),
    "adapter: module too many": (
        extra_module, 4, r"model.layers.7.mlp.up_proj is not a linear layer of the base model"
    ),
    "adapter: wrong dtype": (
        lambda r: r.damage_adapter(lambda t: t.update({n: v.half() for n, v in t.items() if "values" in n})),
        4, r"mlp.down_proj: values are torch.float16 \[32, 2\], expected torch.float32 \[32, 2\]",
    ),
    "adapter: module missing": (
        lambda r: r.damage_adapter(lambda t: t.pop(next(n for n in t if "values" in n))), 4,
        r"mlp.down_proj is not once in each of target_modules, values and indices",
    ),
    "adapter: NaN": (
        lambda r: r.damage_adapter(lambda t: first(t, "values")[3].fill_(torch.nan)), 4, r"row 3 holds NaN"
    ),
    "adapter: truncated": (
        truncated_adapter, 4, r"adapter_model.safetensors: was cut short: \d+ bytes, its header says \d+; copy it again"
    ),
    "adapter: one flipped bit": (
        flipped_bit, 4, r"adapter_model.safetensors is not what was written \(its sha256 differs\)"
    ),
    "adapter: newer format": (lambda r: r.damage_config(format=99), 4, r"has format 99.*update neuroada"),
    "adapter: names an import": (lambda r: r.damage_config(auto_mapping={"x": "os.system"}), 4, r"adapter_config.json: auto_mapping is not a key"),
    "adapter: a module name that is a path": (
        lambda r: r.damage_config(target_modules=["../../etc/passwd"]), 4,
        r"\.\./\.\./etc/passwd is not once in each of target_modules, values and indices",
    ),
    "adapter: a tensor name that is a path": (
        lambda r: r.damage_adapter(lambda t: t.update({"base_model.model.../../x.weight": torch.ones(1)})), 4,
        r"'base_model.model.../../x.weight' is not a tensor of an adapter",
    ),
    "adapter: a method that is none": (
        lambda r: r.damage_settings(method="evil"), 4, r"settings.method is 'evil', which cannot be"
    ),
    "adapter: a setting that is none": (
        lambda r: r.damage_settings(auto_map="x.Y"), 4, r"adapter_config.json: settings.auto_map is not a key"
    ),
    "adapter: peer that is no section": (
        lambda r: r.damage_settings(method="lora", peer=[1]), 4, r"settings.peer is \[1\], which cannot be"
    ),
    "adapter: lora without its tensors": (
        lambda r: r.damage_settings(method="lora", zeroed=True), 4,
        r"mlp.down_proj.lora_A.default.weight is missing, which lora trains",
    ),
    "adapter: lora with deltas": (
        lambda r: r.damage_settings(method="lora"), 4, r"mlp.down_proj has deltas, which lora does not train"
    ),
    "adapter: a rank that would fill the memory": (
        lambda r: huge_rank(r), 4,
        r"mlp.down_proj.lora_A.default.weight is \[2, 48\], rank 10000000 makes it \[10000000, \*\]",
    ),
    "adapter: a rank that would fill the memory, to eval": (
        lambda r: [huge_rank(r) and "eval", str(r.adapter), "--tasks", "due_dates", "--out", str(r.folder / "e")], 4,
        r"rank 10000000 makes it \[10000000, \*\]",
    ),
    "adapter: a link that leaves the folder": (
        link_outside, 4, r"adapter_model.safetensors is a link that leaves the folder; copy the file there"
    ),
    "adapter: changes nothing": (
        lambda r: r.damage_adapter(lambda t: [v.zero_() for n, v in t.items() if "values" in n]), 4,
        r"every delta is zero: merging it would copy the base; train it first",
    ),
    "merge: overflow in the target type": (
        lambda r: [*r.damage_adapter(lambda t: first(t, "values")[1].fill_(1e6)), "--dtype", "fp16"], 5,
        r"mlp.down_proj, row 1: the merged weight is not finite in float16; .*choose a wider --dtype",
    ),
    "merge: the result equals the base": (
        lambda r: r.trained_whole("model.norm.weight", torch.ones(32)), 4,
        r"changes nothing: in float32, what was trained whole is the base's own; train it first",
    ),
    "merge: every delta is lost to rounding": (
        lambda r: [*r.damage_adapter(lambda t: [v.fill_(1e-30) for n, v in t.items() if "values" in n])], 5,
        r"no weight changes: all 896 deltas \(largest 1.0e-30\) are too small for float32; train longer",
    ),
    "merge: a whole tensor that the base lacks": (
        lambda r: r.trained_whole("model.extra.weight", torch.ones(3)), 4,
        r"model: the adapter's model.extra.weight is \[3\], this model has none",
    ),
    "merge: a whole tensor of another shape": (
        lambda r: r.trained_whole("model.norm.weight", torch.ones(3)), 4,
        r"model: the adapter's model.norm.weight is \[3\], this model's is \[32\]",
    ),
    "merge: a base that is not finite": (
        broken_base, 5, r"model.embed_tokens.weight of the base holds NaN or infinity; download the base again"
    ),
    "merge: a classifier without a head": (
        lambda r: r.damage_config(task_type="SEQ_CLS"), 4,
        r"model: has no score.weight of shape \[2, 32\], and the adapter brings none; train the adapter with its head",
    ),
    "merge: out holds something": (taken_out, 7, r"merged: exists and is not empty; choose another folder, or add --overwrite"),
    "merge: merged twice": (
        merged_twice, 4, r"merged: is a plain model: there is nothing to merge .*; name a run or adapter folder"
    ),
    "merge: dtype that is none": (lambda r: [*r.merge, "--dtype", "int8"], 2, r"--dtype int8: folding back into 4 or 8 bits would destroy the deltas.*; merge in bf16"),
    "selection: wrong base": (
        of_another_base, 4,
        r"model: is not the base that was selected and trained on: its weights differ in content; name the right one",
    ),
    "train: the folder holds a run": (lambda r: r.train, 7, r"run: is not empty \(.*\); --resume goes on, --overwrite starts again"),
    "train: the recipe changed since the save": (
        changed_recipe, 7,
        r"checkpoint-3: the recipe or data changed since it was saved \(.*optim.lr: 0.0007 -> 0.5\); undo the change",
    ),
    "train: the data changed since the save": (
        changed_data, 7,
        r"the recipe or data changed since it was saved \(.*data hash of train: \w+ -> \w+.*\); undo the change, or start again",
    ),
}  # fmt: skip


FRESH |= training_cases.FRESH
TRAINED |= training_cases.TRAINED


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Room:
    from neuroada_cli.commands import train

    room = Room(tmp_path_factory.mktemp("trained"), model)
    train.run(load_recipe(room.recipe), quiet=True)
    return room


def ended(words: list[str]) -> tuple[int, str]:
    """(exit code, standard error) of the command line, run in this process."""
    caught = io.StringIO()
    with contextlib.redirect_stderr(caught), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(words)
        except SystemExit as stop:
            return int(stop.code or 0), caught.getvalue()
    raise AssertionError("the command line did not end")


def check(words: list[str], folder: Path, code: int, message: str) -> None:
    before = tree(folder)
    found, text = ended(words)
    lines = [line for line in text.splitlines() if line.startswith("error")]
    assert found == code, text[-2000:]
    assert len(lines) == 1, text[-2000:]
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in text
    assert tree(folder) == before


@pytest.mark.parametrize("name", FRESH)
def test_fresh(name: str, tmp_path: Path, model: Path) -> None:
    case, code, message = FRESH[name]
    room = Room(tmp_path, model)
    check(case(room), tmp_path, code, message)


def test_rows_that_are_cut_are_counted_and_shown(tmp_path: Path, model: Path) -> None:
    room = Room(tmp_path, model)
    room.rows.write_text(
        room.rows.read_text(encoding="utf-8").replace("It is 1.", "It is one. " * 9), encoding="utf-8"
    )
    room.write(data={"max_length": 128 + 40})
    code, text = ended([*room.train, "--dry-run"])
    assert code == 0
    assert "1 cut at 168" in text
    assert "cut rows never show the model their end" in text


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, model: Path) -> None:
    room = Room(tmp_path, model)
    room.rows.write_bytes(b"\xef\xbb\xbf" + room.rows.read_bytes())
    code, text = ended([*room.train, "--dry-run"])
    assert code == 0
    assert "12 rows from" in text


@pytest.mark.parametrize("name", TRAINED)
def test_trained(name: str, tmp_path: Path, trained: Room) -> None:
    case, code, message = TRAINED[name]
    folder = tmp_path / "room"
    shutil.copytree(trained.folder, folder, symlinks=True)
    room = Room.__new__(Room)
    room.__dict__ |= trained.__dict__
    room.folder, room.model, room.run = folder, folder / "model", folder / "run"
    room.rows, room.recipe = folder / "rows.jsonl", folder / "tiny.yaml"
    room.values = json.loads(json.dumps(trained.values).replace(str(trained.folder), str(folder)))
    room.write()
    words = case(room)
    check([*words, *(["--base", str(room.model)] if words[0] == "merge" else [])], folder, code, message)


@pytest.mark.parametrize("command", ["train", "select", "merge", "eval"])
def test_no_permission_in_the_output(command: str, tmp_path: Path, trained: Room) -> None:
    locked = tmp_path / "locked"
    lock_folder(locked)
    recipe, out = str(trained.recipe), str(locked / "out")
    words = {
        "train": ["train", recipe, "--out", out],
        "select": ["select", recipe, "--out", f"{out}.safetensors"],
        "merge": ["merge", str(trained.run), out],
        "eval": ["eval", str(trained.run), "--tasks", "due_dates", "--limit", "1", "--out", out],
    }[command]
    before = tree(trained.folder)
    done = unprivileged("-m", "neuroada_cli", *words)
    assert done.returncode == 6, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.search(r"locked.*(Permission denied|may not be written).*choose a folder", lines[0]), lines[0]
    assert list(locked.iterdir()) == []
    assert tree(trained.folder) == before


def test_the_folder_is_in_use(tmp_path: Path, model: Path) -> None:
    room = Room(tmp_path, model)
    with files.Lock(room.run):
        check(room.train, tmp_path, 7, rf"in use by process {os.getpid()}")


def test_nan_in_the_loss_writes_no_checkpoint(tmp_path: Path, model: Path) -> None:
    room = Room(tmp_path, model)
    code, text = ended(nan_norm(room))
    assert code == 5, text
    assert re.search(r"error: .*(NaN|not finite)", text)
    assert "step 1" in text
    assert not list(room.run.glob("checkpoint-*"))
