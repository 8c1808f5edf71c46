"""What rows mean: prompts and targets to the letter of the protocols, and every task by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import byte_tokenizer

from neuroada_cli.data.batch import Example
from neuroada_cli.data.encoding import encode
from neuroada_cli.data.sources import load_rows
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.evaluation.run import score_one
from neuroada_cli.tasks import arithmetic, commonsense, glue
from neuroada_cli.tasks.registry import GROUPS, TASKS, expand, get_protocol, get_task
from neuroada_cli.tasks.task import PROTOCOLS, decoding_of, examples_of, under

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nHow many?\n\n### Response:\n"
)


def one(task: str, row: dict[str, Any], protocol: str = "reft") -> Example:
    return get_task(task).example(row, 3, protocol)


def test_commonsense() -> None:
    row = {"instruction": "Is it?", "output": "the correct answer is true", "answer": "true"}
    assert one("boolq", row) == Example("Is it?\n", "the correct answer is true", "true", 3)
    other = one("boolq", row, "llm-adapters")
    assert other.prompt == ALPACA.replace("How many?", "Is it?")
    assert other.target == "the correct answer is true"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_math(protocol: str) -> None:
    row = {"instruction": "How many?", "output": "2 + 2 = 4", "answer": 4.0}
    assert one("math", row, protocol) == Example(ALPACA, "2 + 2 = 4", "4.0", 3)


def test_gsm8k_by_itself() -> None:
    row = {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}
    asked = (
        "How many?\nAnswer the above question. First think step by step and then answer the final number.\n"
    )
    assert one("gsm8k_cot", row) == Example(asked, "2 + 2 = <<2+2=4>>4\nThe final answer is:  4", "4", 3)


def test_protocols() -> None:
    reft, adapters = PROTOCOLS["reft"], PROTOCOLS["llm-adapters"]
    assert (reft.loss_on_prompt, reft.max_length, reft.beams) == (False, 512, 1)
    assert (adapters.loss_on_prompt, adapters.max_length, adapters.beams) == (True, 256, 4)
    names = ("boolq", "SVAMP", "gsm8k_cot")
    assert [get_task(name).scoring["reft"].max_new_tokens for name in names] == [32, 512, 256]
    with pytest.raises(RecipeError, match="choose reft, llm-adapters"):
        get_protocol("refd")


def test_tasks_by_name_alias_and_group() -> None:
    assert get_task("arc_e") is get_task("arc-easy") is TASKS["ARC-Easy"]
    assert get_task("OBQA").name == "openbookqa"
    assert [t.name for t in expand(["commonsense-all", "boolq"])] == list(commonsense.ALL)
    assert [t.name for t in expand(["math"])] == list(arithmetic.ALL)
    assert len(expand(["commonsense-all", "math-all", "glue-all"])) == 8 + 7 + 8
    assert all(name in TASKS for group in GROUPS.values() for name in group)
    with pytest.raises(RecipeError, match="bolq is not a task; did you mean boolq"):
        get_task("bolq")
    with pytest.raises(RecipeError, match="known: commonsense"):
        get_task("zzzz")
    with pytest.raises(RecipeError, match=r"commonsense-all is a group .*choose boolq, piqa") as wrong:
        get_task("commonsense-all")
    assert "did you mean" not in str(wrong.value)


def test_decoding_as_the_protocols_state_it() -> None:
    def said(task: str, protocol: str, named: Any = None) -> str:
        return str(decoding_of(get_task(task), PROTOCOLS[protocol], named))

    assert (said("boolq", "reft"), said("boolq", "llm-adapters")) == ("greedy", "4 beams")
    assert said("boolq", "llm-adapters", "greedy") == said("gsm8k_cot", "reft", "greedy") == "greedy"
    assert said("boolq", "reft", "sampling") == "sampling (T 0.1, top-p 0.75, top-k 40, 4 beams)"
    for name in ("SVAMP", "AQuA", "gsm8k"):
        assert said(name, "reft", "sampling") == "sampling (T 0.3, top-p 0.75, top-k 40, 4 beams)"
    assert said("gsm8k_cot", "reft", "sampling") == "sampling (T 0.1, top-p 0.95, top-k 40)"
    for name in ("boolq", "SVAMP", "gsm8k_cot"):
        with pytest.raises(RecipeError, match=f"protocol llm-adapters has none for {name}"):
            said(name, "llm-adapters", "sampling")
    with pytest.raises(RecipeError, match="rte writes no text"):
        said("rte", "reft", "greedy")


def test_bad_rows_are_named_by_line_and_counted() -> None:
    rows = [{"instruction": "a", "answer": "b"}, {"instruction": "a"}, {"instruction": 7, "answer": "b"}]
    with pytest.raises(DataError, match=r"f\.jsonl:12: has no field 'answer' \(2 of 3 rows are bad\)"):
        examples_of(TASKS["boolq"], rows, "reft", "f.jsonl", [10, 12, 14])
    with pytest.raises(
        DataError, match=r"f\.jsonl, row 31: cannot be used: instruction is int, not text; mend such rows"
    ):
        examples_of(TASKS["boolq"], rows[::2], "reft", "f.jsonl", numbers=[30, 31])
    with pytest.raises(DataError, match="answer has no ####"):
        examples_of(TASKS["gsm8k_cot"], [{"question": "a", "answer": "4"}], "reft", "f")


@pytest.mark.parametrize("label", [-1, 2, "1", True, None, float("nan")])
def test_labels_that_are_none(label: object) -> None:
    with pytest.raises(DataError, match="label"):
        examples_of(TASKS["rte"], [{"sentence1": "a", "sentence2": "b", "label": label}], "reft", "f")


def test_training_rows_without_a_solution_are_refused() -> None:
    """Test rows of the arithmetic sets have none; learning from them would teach to say nothing."""
    rows = examples_of(TASKS["math"], [{"instruction": "a", "answer": "4"}], "reft", "f")
    with pytest.raises(DataError, match="no answer to learn"):
        encode(rows, byte_tokenizer(), 512)


@pytest.mark.parametrize(("size", "chosen"), [(277, 138), (5000, 2500), (5463, 1000), (9815, 1000)])
def test_glue_validation_rows_choose_or_report_never_both(size: int, chosen: int) -> None:
    rows: list[dict[str, Any]] = [{}] * size
    selection, report = (glue.half_of_validation(rows, half) for half in ("selection", "report"))
    assert len(selection) == chosen
    assert sorted(selection + report) == list(range(size))


def test_glue_tasks() -> None:
    assert {n: TASKS[n].metrics[0] for n in glue.ALL} == dict.fromkeys(glue.ALL, "accuracy") | {
        "cola": "matthews",
        "stsb": "pearson",
    }
    assert (TASKS["mnli"].num_labels, TASKS["stsb"].num_labels, TASKS["stsb"].kind) == (3, 1, "regression")
    row = {"premise": "p", "hypothesis": "h", "label": 2}
    assert one("mnli", row) == Example("p", "", 2, 3, "h")


# ---------------------------------------------------------------------------------------------------
# Real rows


@pytest.mark.parametrize(
    ("task", "source"),
    [
        ("commonsense", "commonsense_15k:validation"),
        ("gsm8k_cot", "gsm8k_openai:test"),
        ("math", "math_10k:train_no_test_overlap"),
    ],
)
def test_the_gold_answers_score_full_marks(shared: Path, task: str, source: str) -> None:
    """Prompt, target, extraction and scoring of a protocol fit each other."""
    rows = load_rows(source, "test", shared / "data")
    examples = examples_of(TASKS[task], rows.rows, "reft", rows.source, rows.lines)
    scoring = TASKS[task].scoring["reft"]
    wrong = [
        e.row
        for e in examples
        if e.answer not in tuple("ABCDE")  # AQuA's rows in math_10k: letters, which `math` does not score
        and not scoring.correct(scoring.extract(e.prompt, e.target), str(e.answer))
    ]
    assert not wrong


@pytest.mark.parametrize(
    "name", [n for n, task in TASKS.items() if "test" in task.sets and not task.pictures]
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_task_reads_its_published_rows(shared: Path, name: str, protocol: str) -> None:
    task = TASKS[name]
    if name in ("sst2", "qqp", "mnli"):
        pytest.skip(f"the rows of {name} are not among the shared ones")
    if task.kind == "generation" and protocol not in task.scoring:
        with pytest.raises(RecipeError, match="has no rules for task"):
            under(task, PROTOCOLS[protocol])
        return
    rows = load_rows(task.sets["test"], "test", shared / "data")
    examples = examples_of(task, rows.rows, protocol, rows.source, rows.lines)
    assert len(examples) == len(rows) > 100
    assert all(e.prompt for e in examples)
    if task.kind == "generation":
        empty = score_one(task.scoring[protocol], examples[0], "")
        assert (empty.extracted, empty.correct) == ("", False)
