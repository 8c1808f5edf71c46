"""A folder with a model, rows, a recipe and perhaps a run, and the ways in which they are damaged.

A case takes a Room, damages it, and returns the command line that has to refuse it.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from neuroada_cli import files, hub
from neuroada_cli.cli import app as cli
from neuroada_cli.files.manifest import seal

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
        if "eos_token" in names:  # the model's own configs would tell it
            for name in ("config.json", "generation_config.json"):
                file = room.model / name
                settings = json.loads(file.read_text(encoding="utf-8")) | {"eos_token_id": None}
                file.write_text(json.dumps(settings), encoding="utf-8")
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


def ended(words: list[str]) -> tuple[int, str]:
    """(exit code, standard error) of the command line, run in this process."""
    caught = io.StringIO()
    with contextlib.redirect_stderr(caught), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(words)
        except SystemExit as stop:
            return int(stop.code or 0), caught.getvalue()
    raise AssertionError("the command line did not end")
