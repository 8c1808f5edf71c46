"""docs/extending.md: its examples are run as they stand there, and then used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli import adapted, adapter
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import merge, select, train
from neuroada_cli.data.task import PROTOCOLS
from neuroada_cli.data.tasks import TASKS
from neuroada_cli.delta.selection import CRITERIA
from neuroada_cli.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
REGISTRIES = (CRITERIA, TASKS, PROTOCOLS, METHODS)


@pytest.fixture(autouse=True)
def extended() -> Iterator[None]:
    before = [dict(registry) for registry in REGISTRIES]  # type: ignore[call-overload]
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()  # type: ignore[attr-defined]
        registry.update(entries)  # type: ignore[attr-defined]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama_folder(tmp_path / "llama")


def test_the_criterion_chooses(tmp_path: Path, model: Path) -> None:
    file = select.run(
        tiny_recipe(model, tmp_path / "run", select={"criterion": "outlier", "k": 2}), quiet=True
    )
    selection = adapter.read_selection(file)
    assert selection.criterion == "outlier"
    name, index_OK = next(iter(selection.indices.items()))
    weight_OI = adapted.load(str(model), dtype="fp32").model.get_submodule(name).weight.detach()
    score_OI = (weight_OI - weight_OI.mean(dim=1, keepdim=True)).abs()
    assert torch.equal(index_OK.long(), score_OI.topk(2, dim=1).indices.sort(dim=1).values)


def test_task_and_protocol_train_and_score(tmp_path: Path, model: Path) -> None:
    rows = tmp_path / "capitals.jsonl"
    pairs = [("France", "Paris"), ("Peru", "Lima"), ("Mali", "Bamako"), ("Cuba", "Havana")] * 3
    rows.write_text("".join(json.dumps({"country": a, "city": b}) + "\n" for a, b in pairs), encoding="utf-8")
    data = {
        "task": "capitals",
        "protocol": "short",
        "limit": 8,
        "validation_limit": None,
        "data_dir": str(tmp_path),
    }
    recipe = tiny_recipe(model, tmp_path / "run", data={**data, "train": str(rows), "max_length": 64})
    result = train.run(recipe, quiet=True)
    found = evaluate.run(str(result.run_dir), quiet=True, data_dir=str(tmp_path), tasks=["capitals"])
    assert found.results["capitals"].n == 12
    assert (
        json.loads((result.run_dir / "eval" / "results.json").read_text())["capitals"]["protocol"] == "short"
    )


def test_the_peer_trains_and_merges(tmp_path: Path, model: Path) -> None:
    recipe = tiny_recipe(model, tmp_path / "run", train={"method": "norms"})
    result = train.run(recipe, quiet=True)
    out = merge.run(result.run_dir, tmp_path / "merged", quiet=True).out
    base, merged = (adapted.load(str(p), dtype="fp32").model.state_dict() for p in (model, out))
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "norm" in name}
