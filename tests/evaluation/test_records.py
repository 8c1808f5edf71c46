"""The files of an evaluation: continued after any cut, refused under other settings."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from forked import child, code_of

from neuroada_cli import files
from neuroada_cli.errors import DataError, OutputError
from neuroada_cli.evaluation.records import Records
from neuroada_cli.evaluation.results import Prediction
from neuroada_cli.evaluation.run import summarise
from neuroada_cli.tasks.registry import TASKS

ABOUT = {"protocol": "reft", "batch_size": 2}
ROWS = [Prediction(n, f"p{n}\u2028", "é\n", "x", "x", n % 2 == 0, None) for n in range(6)]


def test_batches_come_back_with_their_time(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.resume("boolq", ABOUT).done == {}
    records.add("boolq", ROWS[4:], 1.5, 10)
    records.add("boolq", ROWS[:2], 2.5, 25)
    progress = records.resume("boolq", ABOUT)
    assert progress.done == {row.row: row for row in (*ROWS[:2], *ROWS[4:])}
    assert (progress.seconds, progress.tokens) == (2.5, 25)


def test_other_settings_start_afresh(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.resume("boolq", ABOUT)
    records.add("boolq", ROWS, 1.0, 1)
    assert records.resume("boolq", ABOUT | {"protocol": "llm-adapters"}).done == {}
    assert records.resume("boolq", ABOUT).done == {}, "the work file is the other one's now"


def test_a_cut_at_any_byte_loses_only_what_it_tore(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.resume("boolq", ABOUT)
    file = tmp_path / "predictions" / "boolq.partial.jsonl"
    sizes = [file.stat().st_size]
    for n in range(3):
        records.add("boolq", ROWS[2 * n : 2 * n + 2], n, n)
        sizes.append(file.stat().st_size)
    whole = file.read_bytes()
    for cut in range(0, len(whole) + 1, 13):
        file.write_bytes(whole[:cut])
        batches = sum(cut >= size for size in sizes[1:])
        assert len(records.resume("boolq", ABOUT).done) == 2 * batches
        records.add("boolq", ROWS[4:], 9.0, 9)  # goes on behind whole lines only
        assert records.resume("boolq", ABOUT).tokens == 9


def test_a_finished_task_is_taken_over_or_refused(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.finished("boolq", ABOUT) is None
    scores = summarise(TASKS["boolq"], ROWS, 2.0, 12)
    records.resume("boolq", ABOUT)
    records.finish("boolq", ROWS, scores, ABOUT)
    assert sorted(p.name for p in (tmp_path / "predictions").iterdir()) == ["boolq.jsonl"]
    assert records.finished("boolq", ABOUT) == (ROWS, scores)
    entry = json.loads((tmp_path / "results.json").read_text())["boolq"]
    assert (entry["score"], entry["n"], entry["protocol"]) == (0.5, 6, "reft")
    with pytest.raises(OutputError, match="made under other settings"):
        records.finished("boolq", ABOUT | {"batch_size": 3})
    with pytest.raises(OutputError, match="exists"):
        records.refuse_finished(["boolq"])
    records.refuse_finished(["boolq", "piqa"])  # one is left to do


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.resume("boolq", ABOUT)
    records.finish("boolq", ROWS, summarise(TASKS["boolq"], ROWS, 2.0, 12), ABOUT)
    records.finished_file("boolq").write_text('{"row": 1}\n')
    with pytest.raises(OutputError, match="is not what eval wrote"):
        records.finished("boolq", ABOUT)
    for text in ("[1]", '{"boolq": 1}', "{"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(DataError, match=r"results\.json"):
            records.refuse_finished(["piqa"])


def killed_half_way(target: Path) -> None:
    with files.atomic_file(target) as file:
        file.write_text("half", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_writers_left_is_cleaned(tmp_path: Path) -> None:
    """Real ones, killed in the middle of a file: at the start of a task, and when it is finished."""
    scores = summarise(TASKS["boolq"], ROWS, 2.0, 12)
    records = Records(tmp_path)
    for act in (
        lambda: records.resume("boolq", ABOUT),
        lambda: records.finish("boolq", ROWS, scores, ABOUT),
    ):
        (tmp_path / "predictions").mkdir(exist_ok=True)
        for name in ("results.json", "predictions/boolq.jsonl"):
            assert code_of(child(lambda name=name: killed_half_way(tmp_path / name))) == -signal.SIGKILL
        assert len(list(tmp_path.rglob(".*.tmp-*"))) == 2
        act()
        assert not list(tmp_path.rglob(".*"))


def test_overwriting_never_leaves_rows_of_one_evaluation_with_scores_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, about = Records(tmp_path), ABOUT | {"protocol": "llm-adapters"}
    records.finish("boolq", ROWS, summarise(TASKS["boolq"], ROWS, 2.0, 12), ABOUT)
    monkeypatch.setattr(files, "write_text", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        records.finish("boolq", ROWS[:2], summarise(TASKS["boolq"], ROWS[:2], 1.0, 6), about)
    assert records.finished("boolq", about) is None
