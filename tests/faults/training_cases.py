"""Rows of the table of `test_table.py` that are about training: recipes, folders, checkpoints, logs."""

# ruff: noqa: E501  (a table reads better with a case per line)

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroada_cli import files

if TYPE_CHECKING:
    from rooms import Room


def written(**changes: dict[str, Any]) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        room.write(**changes)
        return room.train

    return case


def named(**values: str) -> Callable[[Room], list[str]]:
    """Keys outside the sections."""

    def case(room: Room) -> list[str]:
        room.values |= values
        room.write()
        return room.train

    return case


def another_tokenizer(room: Room) -> list[str]:
    """One that knows a word more than the model."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(room.model)
    tokenizer.add_tokens(["Say"])
    tokenizer.save_pretrained(room.model)
    return room.train


def into_a_thesis(option: str) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        room.run.mkdir()
        (room.run / "thesis.txt").write_text("mine", encoding="utf-8")
        return [*room.train, option]

    return case


def where_the_recipe_lies(option: str) -> Callable[[Room], list[str]]:
    """A recipe and a log that no run wrote."""

    def case(room: Room) -> list[str]:
        project = room.folder / "project"
        project.mkdir()
        (project / "recipe.yaml").write_bytes(room.recipe.read_bytes())
        (project / "metrics.jsonl").write_text("mine", encoding="utf-8")
        return ["train", str(project / "recipe.yaml"), "--out", str(project), option]

    return case


def by_its_own_recipe(room: Room, option: str = "--resume") -> list[str]:
    """With nothing changed since the save, whatever folder this is a copy of."""
    return ["train", str(room.run / "recipe.yaml"), "--out", str(room.run), option]


def state_that(change: Callable[[Any], Any]) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        file = room.adapter.resolve() / "state" / "state.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        changed = change(found)
        file.write_text(json.dumps(found if changed is None else changed), encoding="utf-8")
        room.hide_damage()
        return [*room.train, "--resume"]

    return case


def optimizer_of_nothing(room: Room) -> list[str]:
    files.write_tensors(room.adapter.resolve() / "state" / "optimizer.safetensors", {})
    room.hide_damage()
    return by_its_own_recipe(room)


def random_states_of_nothing(room: Room) -> list[str]:
    files.write_tensors(room.adapter.resolve() / "state" / "rng.safetensors", {})
    room.hide_damage()
    return by_its_own_recipe(room)


def other_tokens(room: Room) -> list[str]:
    """The same rows, but in lower case when they are read."""
    file = room.model / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8")) | {"normalizer": {"type": "Lowercase"}}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return [*room.train, "--resume"]


def log_of(change: Callable[[bytes], bytes]) -> Callable[[Room], list[str]]:
    def case(room: Room) -> list[str]:
        file = Path(room.run) / "metrics.jsonl"
        file.write_bytes(change(file.read_bytes()))
        return [*room.train, "--resume"]

    return case


def no_entry(log: bytes) -> bytes:
    first, _, rest = log.partition(b"\n")
    return b"[1]".ljust(len(first)) + b"\n" + rest


FRESH = {
    "recipe: betas that make no mean": (
        written(optim={"betas": [1.0, 2.0]}), 2, r"tiny.yaml:\d+: optim.betas.0=1.0: input should be less than 1"
    ),
    "recipe: infinitely many epochs": (
        written(train={"epochs": math.inf}), 2, r"tiny.yaml:\d+: train.epochs=inf: input should be a finite number"
    ),
    "recipe: more epochs than numbers": (written(train={"epochs": 1e308}), 2, r"train.epochs=1e\+308: choose at most 1,000,000"),
    "recipe: infinite learning rate": (written(optim={"lr": math.inf}), 2, r"optim.lr=inf: input should be a finite number"),
    "recipe: infinite epsilon": (written(optim={"eps": math.inf}), 2, r"optim.eps=inf: input should be a finite number"),
    "recipe: NUL in a path": (named(run_dir="a\0b"), 2, r"tiny.yaml:\d*:?.*(run_dir holds a control character; remove it|NUL|special characters)"),
    "recipe: a name that leads upwards": (named(name=".."), 2, r"tiny.yaml:\d+: name='\.\.': input should be letters, digits"),
    "data: the prompt alone fills max_length, and is learnt": (
        written(data={"max_length": 8, "protocol": "llm-adapters"}), 3,
        r"12 of 12 rows have nothing to learn within data.max_length=8: their prompt alone fills it .*; raise data.max_length",
    ),
    "model: the tokenizer of another one": (
        another_tokenizer, 4, r"model: the tokenizer gives row 0 token 259, but the model has 259 embeddings; put the model's own tokenizer there"
    ),
    "train: --resume in a folder of something else": (
        into_a_thesis("--resume"), 7, r"run: is not empty \(thesis.txt\); it holds no run, so name another folder with --out"
    ),
    "train: --overwrite in a folder of something else": (
        into_a_thesis("--overwrite"), 7, r"run: is not empty \(thesis.txt\); it holds no run, so name another folder with --out"
    ),
    "train: --resume where the recipe lies": (
        where_the_recipe_lies("--resume"), 7, r"project: is not empty \(metrics.jsonl, recipe.yaml\); it holds no run"
    ),
    "train: --overwrite where the recipe lies": (
        where_the_recipe_lies("--overwrite"), 7, r"project: is not empty \(metrics.jsonl, recipe.yaml\); it holds no run"
    ),
}  # fmt: skip
TRAINED = {
    "train: --overwrite by the run's own recipe": (
        lambda r: by_its_own_recipe(r, "--overwrite"), 7,
        r"run/recipe.yaml: belongs to the run that would be removed; name a copy of it elsewhere",
    ),
    "train: the tokenizer changed since the save": (other_tokens, 7, r"data hash of train tokens: \w+ -> \w+"),
    "checkpoint: a state that is a list": (
        state_that(lambda found: [found]), 4,
        r"run: no checkpoint is intact: .*state.json: is not what a save writes: it has not exactly the keys .*; start again with --overwrite",
    ),
    "checkpoint: a state without its random numbers": (
        state_that(lambda found: found.pop("rng") and None), 4, r"no checkpoint is intact: .*state.json: is not what a save writes"
    ),
    "checkpoint: a log of negative length": (
        state_that(lambda found: found.update(log_bytes=-1)), 4, r"no checkpoint is intact: .*: log_bytes is no number of bytes"
    ),
    "checkpoint: of another step": (
        state_that(lambda found: found["progress"].update(step=9)), 4, r"no checkpoint is intact: .*: it is of step 9"
    ),
    "checkpoint: a best step that is a path": (
        state_that(lambda found: found["progress"].update(best=1.0, best_step="../../x")), 4,
        r"no checkpoint is intact: .*: progress.best_step is no step of the run",
    ),
    "checkpoint: newer format": (
        state_that(lambda found: found.update(format=99)), 4, r"checkpoint-3: was written by a newer version; update neuroada"
    ),
    "checkpoint: an optimizer of nothing": (
        optimizer_of_nothing, 4, r"checkpoint-3: does not fit this run: the optimizer's state and the trained parameters differ"
    ),
    "checkpoint: random states of nothing": (
        random_states_of_nothing, 4, r"checkpoint-3: does not fit this run: the state of the random generator python"
    ),
    "log: shorter than at the save": (
        log_of(lambda log: log[:-3]), 4, r"no checkpoint is intact: .*metrics.jsonl: does not hold the [\d,]+ bytes of whole lines"
    ),
    "log: a line that is no entry": (log_of(no_entry), 4, r"no checkpoint is intact: .*metrics.jsonl:1: is no entry of a training"),
}  # fmt: skip
