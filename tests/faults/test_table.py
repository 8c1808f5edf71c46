"""Every kind of bad input and of trouble, at the command line: exit code, one line, and nothing changed."""

# ruff: noqa: E501  (a table reads better with a case per line)

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import training_cases
from privilege import lock_folder, unprivileged
from rooms import (
    Room,
    another_base,
    bad_test_rows,
    broken_base,
    changed_data,
    changed_recipe,
    disagreeing_index,
    end_with,
    ended,
    extra_module,
    first,
    flipped_bit,
    hidden_adapter,
    huge_rank,
    link_outside,
    merged_twice,
    missing_shard,
    model_config,
    nan_norm,
    no_template,
    of_another_base,
    only_pickles,
    taken_out,
    too_wide,
    truncated_adapter,
    truncated_weights,
    with_recipe,
    with_rows,
    with_values,
    without_tokens,
)
from tiny_run import tiny_llama_folder
from trees import tree

from neuroada_cli import files
from neuroada_cli.recipe.load import load_recipe

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
        r"holds only pickled weights \(pytorch_model.bin\), which can run code when opened; convert them once: neuroada convert",
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
    "adapter: names an import": (lambda r: r.damage_config(auto_mapping={"x": "os.system"}), 4, r"adapter_config.json: auto_mapping is .*os.system.*, which cannot be"),
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
        broken_base, 5, r"model.embed_tokens.weight of the base holds NaN or infinity in row 0; download the base again"
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


@pytest.fixture(autouse=True)
def no_other_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUROADA_DATA", raising=False)  # it would be among the places that a line names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Room:
    from neuroada_cli.commands import train

    room = Room(tmp_path_factory.mktemp("trained"), model)
    train.run(load_recipe(room.recipe), quiet=True)
    return room


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
    assert "cut at 168 tokens, so that their end is never learnt: 1 of 12 rows" in " ".join(text.split())


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


def test_nan_in_the_base_is_told_before_a_step(tmp_path: Path, model: Path) -> None:
    room = Room(tmp_path, model)
    code, text = ended(nan_norm(room))
    assert code == 4, text
    assert re.search(
        r"error: .*model: model\.norm\.weight, row 0 holds NaN or infinity; download it again", text
    )
    assert not list(room.run.glob("checkpoint-*"))
