"""docs/extending.md: its examples are run as they stand there, and then used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from extended_registries import extended
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli import hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.benchmarking.shapes import build
from neuroada_cli.commands import bench, merge, select, train, validate
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.hub import Reader, load_tokenizer
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.file import read_selection
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.training import space
from neuroada_cli.training.preflight import check
from neuroada_cli.training.rows import prepare


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with extended():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama_folder(tmp_path / "llama")


def test_the_criterion_chooses(tmp_path: Path, model: Path) -> None:
    file = select.run(
        tiny_recipe(model, tmp_path / "run", select={"criterion": "outlier", "k": 2}), quiet=True
    )
    selection = read_selection(file)
    assert selection.criterion == "outlier"
    name, index_OK = next(iter(selection.indices.items()))
    weight_OI = adapted.load(str(model), dtype="fp32").model.get_submodule(name).weight.detach()
    score_OI = (weight_OI - weight_OI.mean(dim=1, keepdim=True)).abs()
    assert torch.equal(index_OK.long(), score_OI.topk(2, dim=1).indices.sort(dim=1).values)


def test_a_training_chooses_by_the_criterion(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(model, tmp_path / "run", select={"criterion": "outlier", "k": 2})
    validate.run(recipe)
    assert "K=2 by outlier" in capsys.readouterr().out
    stored = read_selection(select.run(recipe, tmp_path / "mine.safetensors", quiet=True))
    result = train.run(recipe, quiet=True)
    used = read_selection(result.run_dir / "selection.safetensors")
    assert used.criterion == "outlier"
    assert all(torch.equal(used.indices[name], stored.indices[name]) for name in stored.indices)
    with pytest.raises(RecipeError, match=r"select.criterion=outliers is not known"):
        train.run(tiny_recipe(model, tmp_path / "other", select={"criterion": "outliers"}), quiet=True)


def test_the_task_trains_and_scores(tmp_path: Path, model: Path) -> None:
    rows = tmp_path / "capitals.jsonl"
    pairs = [("France", "Paris"), ("Peru", "Lima"), ("Mali", "Bamako"), ("Cuba", "Havana")] * 3
    rows.write_text("".join(json.dumps({"country": a, "city": b}) + "\n" for a, b in pairs), encoding="utf-8")
    data = {
        "task": "capitals",
        "limit": 8,
        "validation_limit": None,
        "data_dir": str(tmp_path),
    }
    recipe = tiny_recipe(model, tmp_path / "run", data={**data, "train": str(rows), "max_length": 64})
    result = train.run(recipe, quiet=True)
    found = evaluate.run(str(result.run_dir), quiet=True, data_dir=str(tmp_path), tasks=["capitals"])
    assert found.results["capitals"].n == 12


def test_the_protocol_trains_and_scores_a_task_of_ours(tmp_path: Path, model: Path) -> None:
    (tmp_path / "boolq").mkdir()
    rows = tmp_path / "boolq" / "test.jsonl"
    asked = [{"instruction": f"Is {n} even?", "answer": str(n % 2 == 0).lower()} for n in range(8)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    data = {"task": "boolq", "protocol": "short", "train": str(rows), "limit": 8, "validation_limit": None}
    recipe = tiny_recipe(model, tmp_path / "run", data={**data, "max_length": None})
    assert recipe.data.max_length is None
    checked = prepare(recipe.data, get_task("boolq"), Reader(load_tokenizer(model)), 0)
    assert checked.max_length == 64
    first = checked.data.train[0]
    learnt = [i for i, label in zip(first.input_ids, first.labels, strict=True) if label != -100]
    assert load_tokenizer(model).decode(learnt).strip().startswith(("true", "false"))
    result = train.run(recipe, quiet=True)
    out = tmp_path / "eval"
    found = evaluate.run(str(result.run_dir), quiet=True, data_dir=str(tmp_path), tasks=["boolq"], out=out)
    assert found.results["boolq"].n == 8
    assert all(p.prompt.startswith("Q: Is ") for p in found.predictions["boolq"])
    assert json.loads((out / "results.json").read_text())["boolq"]["protocol"] == "short"
    with pytest.raises(RecipeError, match="protocol short has no rules for task gsm8k"):
        evaluate.run(str(result.run_dir), quiet=True, tasks=["gsm8k"], out=tmp_path / "other")


def test_the_method_is_planned_trained_merged_and_measured(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(model, tmp_path / "run", train={"method": "norms"})
    gains = {n: p for n, p in hub.skeleton(model, "causal-lm").named_parameters() if "norm" in n}
    expected = sum(parameter.numel() for parameter in gains.values())
    planned = train.run(recipe, dry_run=True)
    told = capsys.readouterr()
    assert planned.trainable == expected
    assert planned.peak_bytes > 0
    assert f"{expected:,} of" in told.out
    assert f"{expected:,} of" in told.err
    checked = check(recipe, overwrite=False)
    connections = checked.choice.connections  # places of all targets are stored, whatever trains
    assert space.checkpoint_bytes(checked) >= 8 * connections + 3 * 4 * expected
    result = train.run(recipe, quiet=True)
    assert result.trainable == expected
    assert result.last is not None
    saved = sum(file.stat().st_size for file in result.last.rglob("*") if file.is_file())
    assert saved <= space.checkpoint_bytes(checked)
    out = merge.run(result.run_dir, tmp_path / "merged", quiet=True).out
    base, merged = (adapted.load(str(p), dtype="fp32").model.state_dict() for p in (model, out))
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "norm" in name}
    rows = bench.run(
        model="pico", compare=("norms",), batch=2, sequence=16, rounds=1, warmup=0, quiet=True
    ).rows
    (measured,) = [row for row in rows if row.method == "norms"]
    built = build("pico").model
    assert measured.trainable == sum(p.numel() for n, p in built.named_parameters() if "norm" in n)
    assert measured.predicted_bytes is not None


def test_a_method_that_no_checkpoint_can_hold_is_not_merged(tmp_path: Path, model: Path) -> None:
    METHODS["norms"] = dataclasses.replace(METHODS["norms"], unmergeable="was trained by norms, for a test")
    result = train.run(tiny_recipe(model, tmp_path / "run", train={"method": "norms"}), quiet=True)
    with pytest.raises(ModelError, match="was trained by norms, for a test"):
        merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    assert not (tmp_path / "merged").exists()
