"""The paper's tables: facts that add up, our results beside them, and why some cannot be compared."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from neuroada_cli.commands.paper import paper
from neuroada_cli.data.sources import load_rows
from neuroada_cli.errors import DataError
from neuroada_cli.evaluation import published
from neuroada_cli.recipe.load import bundled_recipes, load_recipe, to_yaml
from neuroada_cli.tasks import arithmetic, commonsense
from neuroada_cli.tasks.leakage import leaked, questions
from neuroada_cli.tasks.registry import TASKS
from neuroada_cli.tasks.task import PROTOCOLS, Decoding

ODD = {"llama7b_commonsense_k1": 80.4}  # the paper prints 80.0
FACTS = json.loads(published.FILE.read_text(encoding="utf-8"))
SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000}


def test_every_row_is_a_recipe_and_its_scores_give_its_average(tmp_path: Path) -> None:
    tables = published.tables(tmp_path)
    assert [len(rows) for rows in tables.values()] == [8, 8]
    for row in (row for rows in tables.values() for row in rows):
        assert row.recipe in bundled_recipes()
        assert set(row.published) <= set(TASKS)
        mean = statistics.fmean(row.published.values())
        assert mean == pytest.approx(ODD.get(row.recipe, row.average), abs=0.11)
        assert row.own_average == (pytest.approx(ODD[row.recipe]) if row.recipe in ODD else None)
        assert row.ours is None


def test_the_facts_are_those_of_the_protocol_and_of_the_recipes() -> None:
    rules = PROTOCOLS[FACTS["protocol"]]
    assert (FACTS["loss_mask"], FACTS["decoding"]) == (rules.loss_mask, str(Decoding(rules.beams)))
    recipes = [load_recipe(row["recipe"]) for rows in FACTS["tables"].values() for row in rows]
    assert {recipe.model.path for recipe in recipes} == set(FACTS["sizes"])
    assert {recipe.data.protocol for recipe in recipes} == {FACTS["protocol"]}
    assert set(FACTS["test_rows"]) == {*commonsense.ALL, *arithmetic.ALL}


def test_the_real_sets_have_the_papers_rows_and_leaks(shared: Path) -> None:
    seen = questions(load_rows("math_10k", "train", shared / "data"))
    for task, count in FACTS["test_rows"].items():
        rows = load_rows(task, "test", shared / "data")
        assert len(rows) == count or rows.partial, task
        if task in arithmetic.ALL:
            assert (len(leaked(rows, seen)) > count / 2) == (task in FACTS["leaked"]["math"]), task


def ours(
    folder: Path, run: str = "llama7b_math", tasks: tuple[str, ...] = ("MultiArith",), **changes: Any
) -> Path:
    """A run's result file as `eval` writes it: all rows of each task, score 50 %."""
    file = folder / run / "eval" / "results.json"
    file.parent.mkdir(parents=True)
    entries = {
        task: {
            "score": 0.5, "n": FACTS["test_rows"][task], "protocol": "reft", "loss_mask": "target only",
            "decoding": "greedy", "model": {"config": SIZES}, "data": {"rows": "all rows"},
        }
        | changes
        for task in tasks
    }  # fmt: skip
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def row_of(folder: Path, table: str = "math") -> published.PaperRow:
    (row,) = (row for row in published.tables(folder)[table] if row.ours)
    return row


def test_our_results_stand_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours(tmp_path)
    row = row_of(tmp_path)
    assert (row.recipe, row.ours, row.our_average) == ("llama7b_math", {"MultiArith": 50.0}, None)
    assert row.notes == ()
    paper(tmp_path)
    shown = capsys.readouterr().out
    assert "not comparable" not in shown
    assert "7 of 8 rows have no result" in shown


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({"protocol": "llm-adapters"}, ["protocol llm-adapters"]),
        ({"data": {"rows": "the first 600"}}, ["MultiArith: 600 of 600 test rows (the first 600)"]),
        ({"n": 599}, ["MultiArith: 599 of 600 test rows (all rows)"]),
        (
            {"loss_mask": "prompt and target"},
            ["loss on prompt and target, the paper's is on target only"],
        ),
        ({"decoding": "4 beams"}, ["decoding 4 beams, the paper's is greedy"]),
        (
            {"model": {"config": SIZES | {"hidden_size": 576}}},
            ["another model than yahma/llama-7b-hf: hidden_size 576, not 4096"],
        ),
        (
            {"model": None, "loss_mask": None, "decoding": None},
            [
                "loss on unknown tokens, the paper's is on target only",
                "decoding unknown, the paper's is greedy",
                "the model is not known",
            ],
        ),
    ],
)
def test_why_a_result_cannot_be_compared(
    tmp_path: Path, changes: dict[str, Any], notes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ours(tmp_path, **changes)
    assert list(row_of(tmp_path).notes) == notes
    paper(tmp_path)
    shown = capsys.readouterr().out
    assert [note for note in notes if f"llama7b_math: not comparable: {note}" not in shown] == []


def test_a_part_of_hellaswag_is_told_whatever_it_calls_itself(tmp_path: Path) -> None:
    ours(tmp_path, "llama7b_commonsense", ("boolq", "hellaswag"), n=1000)
    assert "hellaswag: 1,000 of 10,042 test rows (all rows)" in row_of(tmp_path, "commonsense").notes


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        ("", []),
        ("model.path=models/llama-7b-hf", []),
        ("model.path=models/other", ["trained with model.path=other, the recipe has llama-7b-hf"]),
        ("data.limit=100", ["trained with data.limit=100, the recipe has none"]),
        ("select.k=4", ["trained with select.k=4, the recipe has 20"]),
        ("train.max_steps=10", ["trained with train.max_steps=10, the recipe has none"]),
        ("optim.lr=1", []),
    ],
)
def test_a_run_that_left_its_recipe_is_told(tmp_path: Path, change: str, notes: list[str]) -> None:
    ours(tmp_path)
    recipe = load_recipe("llama7b_math", [change] if change else [])
    (tmp_path / "llama7b_math/recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert list(row_of(tmp_path).notes) == notes


def test_a_recipe_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    ours(tmp_path)
    (tmp_path / "llama7b_math/recipe.yaml").write_text("name: [", encoding="utf-8")
    assert row_of(tmp_path).notes[0].startswith("what was trained is not known: ")


def test_clean_tasks_have_a_mean_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ours(tmp_path, tasks=("gsm8k", "SVAMP", "AQuA"))
    row = row_of(tmp_path)
    assert row.clean == pytest.approx((36.5 + 53.2 + 22.0) / 3)
    assert (row.our_average, row.our_clean) == (None, 50.0)
    paper(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    [heading] = [line for line in lines if "clean 3" in line and "recipe" in line]
    assert [word for word in heading.split() if word.endswith("*")] == [
        "Multi*",
        "AddSu*",
        "Singl*",
        "mawps*",
    ]
    [theirs] = [line for line in lines if line.split()[:1] == ["llama7b_math"]]
    [own] = [line for line in lines if line.split()[:1] == ["ours"]]
    assert (theirs.split()[-2:], own.split()[-2:]) == (["68.4", "37.2"], ["–", "50.0"])
    assert len(theirs) <= 80
    assert any("clean 3: the mean of gsm8k, AQuA, SVAMP" in line for line in lines)
    assert "llama7b_commonsense_k1: its scores have the mean 80.4, the paper prints 80.0" in lines
    assert sum("the paper prints" in line for line in lines) == 1


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    ours(tmp_path).write_text('{"MultiArith": {"score": "high"}}', encoding="utf-8")
    with pytest.raises(DataError, match="is not what eval wrote"):
        published.tables(tmp_path)
