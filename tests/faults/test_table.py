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
import yaml
from safetensors.torch import load_file, save_file
from tiny_run import tiny_llama_folder
from trees import tree

from neuroada_cli import cli, files
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
    "data: malformed JSON": (lambda r: end_with(r, b'{"instruction": \n'), 3, r"rows.jsonl:13"),
    "data: bad UTF-8": (lambda r: end_with(r, b'{"instruction": "\xff"}\n'), 3, r"rows.jsonl:13"),
    "data: NUL": (lambda r: end_with(r, b'{"instruction": "\0", "output": "b"}\n'), 3, r"rows.jsonl:13"),
    "data: missing field": (lambda r: end_with(r, b'{"instruction": "a"}\n'), 3, r"rows.jsonl.*13"),
    "data: empty set": (with_rows(""), 3, r"rows.jsonl.*(no rows|empty)"),
    "data: the prompt alone fills max_length": (with_values(data={"max_length": 8}), 3, r"(nothing to learn|no target|max_length)"),
    "data: no chat template": (no_template, 3, r"chat template"),
    "data: file missing": (with_values(data={"train": "nowhere.jsonl"}), 3, r"nowhere.jsonl"),
    "model: missing shard": (missing_shard, 4, r"model-00002-of-00002.safetensors"),
    "model: truncated": (truncated_weights, 4, r"model.safetensors"),
    "model: only pickles": (only_pickles, 4, r"(pickle|safetensors)"),
    "model: remote code": (model_config(model_type="strange", auto_map={"AutoModelForCausalLM": "x.Y"}), 4, r"trust_remote_code"),
    "model: folder missing": (with_values(model={"path": "./nowhere"}), 4, r"nowhere"),
    "eval: truncated task file": (bad_test_rows, 3, r"test.json"),
}  # fmt: skip
TRAINED: dict[str, tuple[Callable[[Room], list[str]], int, str]] = {
    "adapter: wrong base": (another_base, 4, r"base"),
    "adapter: index out of range": (
        lambda r: r.damage_adapter(lambda t: first(t, "indices")[2].fill_(9999)), 4, r"row 2"
    ),
    "adapter: duplicate index": (
        lambda r: r.damage_adapter(lambda t: t.update({
            n: v.repeat(1, 2) for n, v in t.items()})), 4, r"(row 0|columns per row)"
    ),
    "adapter: wrong dtype": (
        lambda r: r.damage_adapter(lambda t: t.update({n: v.half() for n, v in t.items() if "values" in n})),
        4, r"expected torch.float32",
    ),
    "adapter: module missing": (
        lambda r: r.damage_adapter(lambda t: t.pop(next(n for n in t if "values" in n))), 4, r"is not once in each"
    ),
    "adapter: NaN": (
        lambda r: r.damage_adapter(lambda t: first(t, "values")[3].fill_(torch.nan)), 4, r"row 3 holds NaN"
    ),
    "adapter: truncated": (truncated_adapter, 4, r"adapter_model.safetensors"),
    "adapter: one flipped bit": (flipped_bit, 4, r"adapter_model.safetensors"),
    "adapter: newer format": (lambda r: r.damage_config(format=99), 4, r"has format 99.*update neuroada"),
    "adapter: names an import": (lambda r: r.damage_config(auto_mapping={"x": "os.system"}), 4, r"auto_mapping"),
    "adapter: a module name that is a path": (
        lambda r: r.damage_config(target_modules=["../../etc/passwd"]), 4, r"adapter"
    ),
    "adapter: a link that leaves the folder": (link_outside, 4, r"link"),
    "adapter: changes nothing": (
        lambda r: r.damage_adapter(lambda t: [v.zero_() for n, v in t.items() if "values" in n]), 4,
        r"every delta is zero",
    ),
    "merge: overflow in the target type": (
        lambda r: [*r.damage_adapter(lambda t: first(t, "values")[1].fill_(1e6)), "--dtype", "fp16"], 5, r"row 1"
    ),
    "merge: out holds something": (taken_out, 7, r"merged"),
    "merge: merged twice": (merged_twice, 4, r"again|merged"),
    "merge: dtype that is none": (lambda r: [*r.merge, "--dtype", "int8"], 2, r"int8"),
    "selection: wrong base": (of_another_base, 4, r"base"),
    "train: the folder holds a run": (lambda r: r.train, 7, r"--resume"),
    "train: the recipe changed since the save": (changed_recipe, 7, r"optim.lr"),
    "train: the data changed since the save": (changed_data, 7, r"(data|rows)"),
}  # fmt: skip


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_in_the_output(tmp_path: Path, model: Path) -> None:
    room = Room(tmp_path, model)
    room.run.mkdir(mode=0o500)
    check(room.train, tmp_path, 6, "run")


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
