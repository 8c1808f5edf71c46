"""Several processes score as one does: the same predictions in the same order, also when gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forked_ranks import in_ranks
from tiny_run import one_thread, tiny_bert_folder, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli import hub
from neuroada_cli.commands import eval as command
from neuroada_cli.evaluation.generate import generate
from neuroada_cli.evaluation.records import Records
from neuroada_cli.evaluation.rounds import in_rounds
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.tasks.task import Decoding

TIMED = ("seconds",)  # what no two evaluations have in common


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("llama"))


def score_in(size: int, recipe: Recipe, out: Path, **options: Any) -> list[Any]:
    def work(ranks: Ranks) -> Any:
        found = command.run(recipe.model.path, recipe=recipe, out=out, quiet=True, ranks=ranks, **options)
        return {name: result.score for name, result in found.results.items()}

    return [work(ALONE)] if size == 1 else in_ranks(size, out.with_name(f"{out.name}-told"), work)


def files_of(out: Path) -> dict[str, Any]:
    """Every prediction byte by byte, and the results without their times."""
    found: dict[str, Any] = {p.name: p.read_text() for p in (out / "predictions").iterdir()}
    results = json.loads((out / "results.json").read_text())
    return found | {task: {k: v for k, v in r.items() if k not in TIMED} for task, r in results.items()}


@pytest.mark.parametrize("size", [2, 3])
def test_answers_are_those_of_one_process(llama: Path, tmp_path: Path, size: int) -> None:
    recipe = tiny_recipe(llama, tmp_path / "run", eval={"batch_size": 2, "max_new_tokens": 6})
    for count in (1, size):
        told = score_in(count, recipe, tmp_path / f"out{count}", limit=9)
    assert files_of(tmp_path / "out1") == files_of(tmp_path / f"out{size}")
    assert all(each == told[0] for each in told)


def test_drawn_answers_are_those_of_one_process(llama: Path, tmp_path: Path) -> None:
    model, tokenizer = hub.load_model(llama, "causal-lm", "fp32").model, hub.load_tokenizer(llama)
    prompts = [f"{'x' * number} = " for number in range(7)]

    def draw(ranks: Ranks) -> list[str]:
        drawn = Decoding(temperature=0.9, top_p=0.9, top_k=40)
        return generate(model, tokenizer, prompts, 8, 2, decoding=drawn, seed=5, ranks=ranks)

    assert in_ranks(3, tmp_path, draw) == [draw(ALONE)] * 3


def test_classes_are_those_of_one_process(shared: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny_bert_folder(tmp_path / "bert"), tmp_path / "run", data={"task": "rte"}, eval={"batch_size": 3}
    )
    for count in (1, 2):
        score_in(count, recipe, tmp_path / f"out{count}", data_dir=str(shared / "data"), limit=14)
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")


def test_an_evaluation_goes_on_in_another_number_of_processes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(llama, tmp_path / "run", eval={"batch_size": 2, "max_new_tokens": 6})
    score_in(1, recipe, tmp_path / "whole", limit=13)
    original = Records.add

    def tired(self: Records, *given: Any) -> None:
        original(self, *given)
        partial = next((tmp_path / "parts/predictions").glob("*.partial.jsonl"))
        if len(partial.read_text().splitlines()) > 2:
            raise KeyboardInterrupt

    for size in (2, 3):
        with monkeypatch.context() as stopping:
            stopping.setattr(Records, "add", tired)
            told = score_in(size, recipe, tmp_path / "parts", limit=13)
            assert told[0]["code"] == 130
            assert {each["code"] for each in told[1:]} == {8}
    score_in(2, recipe, tmp_path / "parts", limit=13)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")


def test_what_is_done_already_is_not_done_again(llama: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(llama, tmp_path / "run", eval={"batch_size": 2, "max_new_tokens": 3})
    score_in(2, recipe, tmp_path / "out", limit=4)
    told = score_in(2, recipe, tmp_path / "out", limit=4)
    assert [each["code"] for each in told] == [7, 7]


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_every_item_is_worked_on_once_and_known_to_all(tmp_path: Path, count: int) -> None:
    def work(ranks: Ranks) -> Any:
        own: list[int] = []

        def double(item: int) -> int:
            own.append(item)
            return 2 * item

        return [list(in_rounds(range(count), double, ranks)), own]

    told = in_ranks(3, tmp_path, work)
    for number, (every, own) in enumerate(told):
        assert every == [[item, 2 * item] for item in range(count)]
        assert own == list(range(count))[number::3]
