"""The paper's tables: facts that add up, and our results beside them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from neuroada_cli import published
from neuroada_cli.commands import recipes as command
from neuroada_cli.data.tasks import TASKS
from neuroada_cli.errors import DataError
from neuroada_cli.recipe import bundled_recipes

ODD = {"llama7b_commonsense_k1": 80.4}  # the paper prints 80.0


def test_every_row_is_a_recipe_and_its_scores_give_its_average(tmp_path: Path) -> None:
    tables = published.tables(tmp_path)
    assert [len(rows) for rows in tables.values()] == [8, 8]
    for row in (row for rows in tables.values() for row in rows):
        assert row.recipe in bundled_recipes()
        assert set(row.published) <= set(TASKS)
        mean = statistics.fmean(row.published.values())
        assert mean == pytest.approx(ODD.get(row.recipe, row.average), abs=0.11)
        assert row.ours is None


def ours(folder: Path, **changes: object) -> Path:
    file = folder / "llama7b_math" / "eval" / "results.json"
    file.parent.mkdir(parents=True)
    entry = {"score": 0.5, "n": 600, "protocol": "reft", "data": {"rows": "all rows"}} | changes
    file.write_text(json.dumps({"MultiArith": entry}), encoding="utf-8")
    return file


def test_our_results_stand_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours(tmp_path, protocol="llm-adapters", data={"rows": "the first 600"})
    (row,) = (row for row in published.tables(tmp_path)["math"] if row.ours)
    assert (row.recipe, row.ours, row.our_average) == ("llama7b_math", {"MultiArith": 50.0}, None)
    assert row.notes == ("protocol llm-adapters", "MultiArith: 600 rows (the first 600)")
    command.paper(tmp_path)
    shown = capsys.readouterr().out
    assert "not comparable: protocol llm-adapters" in shown
    assert "7 of 8 rows have no result" in shown


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    ours(tmp_path).write_text('{"MultiArith": {"score": "high"}}', encoding="utf-8")
    with pytest.raises(DataError, match="is not what eval wrote"):
        published.tables(tmp_path)
