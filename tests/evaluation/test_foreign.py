"""Predictions of other tools: which rule scores them, what is refused, and what is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from neuroada_cli.cli.app import app
from neuroada_cli.commands import predictions
from neuroada_cli.errors import DataError, OutputError
from neuroada_cli.tasks.registry import get_task


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_foreign_predictions(tmp_path: Path) -> None:
    rows = [
        {"instruction": "1 + 1?", "prediction": "it is 1 + 1 = 2", "answer": "2.0"},
        {"instruction": "2 + 2?", "prediction": "5", "answer": 4},
        {"instruction": "3 + 3?", "prediction": "six", "answer": "6"},
    ]
    file = write_rows(tmp_path / "theirs.jsonl", rows)
    for task in ("gsm8k", "gsm8k_cot"):
        result = predictions.run(file, task, "reft", quiet=True).results[task]
        assert (result.n, result.score, result.unparsed) == (3, pytest.approx(1 / 3), 1)
    rows = [{"instruction": "?", "prediction": "the correct answer is true", "answer": "true"}]
    for protocol in ("reft", "llm-adapters"):
        found = predictions.run(write_rows(file, rows), "boolq", protocol, quiet=True)
        assert found.results["boolq"].score == 1
    rows = [{"instruction": "?", "prediction": " 2024-01-05\n", "answer": "2024-01-05"}]
    assert predictions.run(write_rows(file, rows), "due_dates", "reft", quiet=True).results


ONE = {"instruction": "Which?", "prediction": "the correct answer is (B) 2"}


@pytest.mark.parametrize(
    ("answers", "task", "said"),
    [
        (["4", 5, 6.5, "-1,234"], "math", "numbers"),
        (["A", "E", " C "], "AQuA", "letters A to E"),
        (["answer5", "answer1"], "commonsense", "options like answer1 or true"),
        (["true", "false", "solution2", "option1", "ending4"], "commonsense", "options"),
    ],
)
def test_the_answers_tell_which_rule_scores_them(
    tmp_path: Path, answers: list[Any], task: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "theirs.jsonl", [ONE | {"answer": answer} for answer in answers])
    app(["eval", "--predictions", str(file), "--protocol", "reft"], standalone_mode=False)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "scored by the rule of" in line]
    assert line.startswith(f"all answers are {said}")
    assert line.endswith(f"so they are scored by the rule of {task}")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            ["4", "5", "A"],
            r":3: which rule .*\(2 numbers, 1 letters A to E; here 'A'\); name one",
        ),
        (["A", "answer1"], r":2: which rule .*1 letters A to E, 1 options like answer1 or true"),
        (["Paris", "Lima"], r":1: which rule .*\(2 others; here 'Paris'\)"),
        (["F"], "1 others; here 'F'"),
        (["answer6"], "1 others"),
    ],
)
def test_answers_that_do_not_tell_it(tmp_path: Path, answers: list[str], message: str) -> None:
    file = write_rows(tmp_path / "theirs.jsonl", [ONE | {"answer": answer} for answer in answers])
    with pytest.raises(DataError, match=message):
        predictions.run(file, None, "reft")


@pytest.mark.parametrize(
    ("answer", "task", "message"),
    [
        (None, "SVAMP", r":2: answer is null, not text or a number; mend or remove it"),
        ([4], "SVAMP", r":2: answer is list"),
        ({"a": 4}, "SVAMP", r":2: answer is dict"),
        (True, "boolq", r":2: answer is bool"),
        ("four", "SVAMP", r":2: answer 'four' is none of the numbers of task SVAMP"),
        ("four", "gsm8k_cot", r":2: answer 'four' is none of the numbers"),
        ("", "SVAMP", r":2: answer '' is none of the numbers"),
        ("inf", "SVAMP", r":2: answer 'inf' is none of the numbers"),
        ("4", "AQuA", r":2: answer '4' is none of the letters A to E of task AQuA"),
        ("B) 2", "AQuA", r":2: answer 'B\) 2' is none"),
        ("True", "boolq", r":2: answer 'True' is none of the options \(true\|false\) of task boolq"),
        ("answer1", "piqa", r":2: answer 'answer1' is none of the options"),
    ],
)
def test_answers_that_could_only_be_wrong_are_refused(
    tmp_path: Path, answer: Any, task: str, message: str
) -> None:
    good = {"SVAMP": "4", "gsm8k_cot": "2 + 2\n#### 4", "AQuA": "B", "boolq": "true", "piqa": "solution1"}
    rows = [ONE | {"answer": good[task]}, ONE | {"answer": answer}]
    with pytest.raises(DataError, match=message):
        predictions.run(write_rows(tmp_path / "theirs.jsonl", rows), task, "reft", out="o")
    assert not Path("o").exists()
    rows.append(rows[-1])
    with pytest.raises(DataError, match=r":2: .* \(2 of 3 rows are bad\)"):
        predictions.run(write_rows(tmp_path / "theirs.jsonl", rows), task, "reft")


@pytest.mark.parametrize(
    ("task", "prediction", "extracted"),
    [
        ("AQuA", "Bob and Dave: which?\nC", "C"),
        ("AQuA", "  Bob and Dave: which? Bob and Dave: which?", "B"),  # one copy, not two
        ("AQuA", "C: Bob and Dave: which?", "C"),
        ("SVAMP", "How many of 7?", ""),
        ("SVAMP", "How many of 7? 3", "3"),
        ("gsm8k_cot", "How many of 7?", ""),
        ("boolq", "Is it?\nthe correct answer is true", "true"),
    ],
)
def test_a_repeated_prompt_is_not_searched_for_answers(
    tmp_path: Path, task: str, prediction: str, extracted: str
) -> None:
    questions = {"AQuA": "Bob and Dave: which?", "boolq": "Is it?"}
    question = questions.get(task, "How many of 7?")
    answer = {"AQuA": "C", "boolq": "true"}.get(task, "3")
    whole = get_task(task).example(
        {"instruction": question, "question": question, "answer": f"#### {answer}"}, 0, "reft"
    )
    repeated = (
        prediction.replace(question, whole.prompt, 1) if prediction.startswith(question) else prediction
    )
    for text in (prediction, repeated):
        rows = [{"instruction": question, "prediction": text, "answer": answer}]
        file = write_rows(tmp_path / "theirs.jsonl", rows)
        [found] = predictions.run(file, task, "reft", quiet=True).predictions[task]
        assert found.extracted == extracted


def test_foreign_results_are_kept(tmp_path: Path) -> None:
    rows = [ONE | {"answer": "B"}, ONE | {"answer": "C"}]
    file = write_rows(tmp_path / "theirs.jsonl", rows)
    words = ["eval", "--predictions", str(file), "--out", "o"]
    app(words, standalone_mode=False)
    entry = json.loads(Path("o/results.json").read_text())["AQuA"]
    assert (entry["protocol"], entry["score"], entry["n"], entry["model"]) == ("reft", 0.5, 2, None)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert entry["data"] == {"source": f"{tmp_path.name}/theirs.jsonl", "rows": "all rows", "sha256": sha256}
    lines = Path("o/predictions/AQuA.jsonl").read_text().splitlines()
    assert [json.loads(line)["reference"] for line in lines] == ["B", "C"]
    with pytest.raises(OutputError, match=r"AQuA\.jsonl: exists; add --overwrite"):
        app(words, standalone_mode=False)
    app([*words, "--overwrite"], standalone_mode=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no rows"),
        ([{"instruction": "a", "prediction": "b", "answer": "true"}, {}], ":2: has no field 'instruction'"),
        ([{"instruction": "a", "prediction": 4, "answer": "c"}], ":1: .*prediction must be text"),
    ],
)
def test_foreign_predictions_that_cannot_be_scored(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        predictions.run(write_rows(tmp_path / "theirs.jsonl", rows), "boolq", "reft")
