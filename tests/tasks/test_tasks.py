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
from neuroada_cli.tasks import arithmetic, commonsense, glue, instruct
from neuroada_cli.tasks.registry import GROUPS, TASKS, expand, get_protocol, get_task
from neuroada_cli.tasks.task import PROTOCOLS, decoding_of, examples_of

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
    with pytest.raises(DataError, match=r"f\.jsonl, row 31: cannot be used: instruction is int, not text"):
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
# Instruction data

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TURNS = [
    ("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hi."), ("user", "Why?"), ("assistant", "So."),
]  # fmt: skip


def chat_tokenizer(template: str = CHATML) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"instruction": "How many?", "input": "", "output": "4"}, ALPACA, "4"),
        ({"prompt": "2+2=", "completion": "4"}, "2+2=", "4"),
        ({"text": "all of it"}, "", "all of it"),
    ],
)
def test_formats_are_recognised(row: dict[str, str], prompt: str, target: str) -> None:
    task = instruct.shaped(TASKS["instruct"], [row], None, byte_tokenizer())
    assert task.example(row, 0, "reft") == Example(prompt, target, target, 0)


def test_alpaca_with_an_input() -> None:
    found = one("instruct", {"instruction": "Sum up.", "input": "A text.", "output": "T."})
    assert "### Instruction:\nSum up.\n\n### Input:\nA text.\n\n### Response:\n" in found.prompt


@pytest.mark.parametrize("sharegpt", [False, True])
def test_chats_go_through_the_tokenizers_own_template(sharegpt: bool) -> None:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    row: dict[str, Any] = {"messages": [{"role": r, "content": c} for r, c in TURNS]}
    if sharegpt:
        row = {"conversations": [{"from": names[r], "value": c} for r, c in TURNS]}
    tokenizer = chat_tokenizer()
    found = instruct.shaped(TASKS["instruct"], [row], None, tokenizer).example(row, 0, "reft")
    assert found.prompt.endswith("<|assistant|>Hi.</s>\n<|user|>Why?</s>\n<|assistant|>")
    assert (found.target, found.answer) == ("So.", "So.")
    [encoded], _ = encode([found], tokenizer, 512)
    assert tokenizer.decode(encoded.input_ids).endswith("<|assistant|>So.</s>")


def test_the_end_of_a_turn_is_learnt_as_the_template_writes_it() -> None:
    row = {"messages": [{"role": r, "content": c} for r, c in TURNS[1:3]]}
    tokenizer = chat_tokenizer(CHATML.replace("eos_token", "'<end_of_turn>'"))
    found = instruct.shaped(TASKS["instruct"], [row], "chat", tokenizer).example(row, 0, "reft")
    assert found.target == "Hi.<end_of_turn>"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "not the assistant's"),
        ([{"role": "user", "content": "Hi"}], "not the assistant's"),
        ([{"role": "robot", "content": "Hi"}], "unknown role 'robot'"),
        ([{"role": "assistant", "content": None}], "not text"),
        ([{"role": "assistant"}], "has no field 'content'"),
        (7, "cannot be used"),
        ([{"role": r, "content": "Hi"} for r in ("system", "assistant")], "template refuses it: no"),
    ],
)
def test_chats_that_cannot_be_learnt(messages: object, message: str) -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    rows = [{"messages": messages}]
    task = instruct.shaped(TASKS["instruct"], rows, None, chat_tokenizer(refuse))
    with pytest.raises(DataError, match=message):
        examples_of(task, rows, "reft", "f.jsonl")


def test_formats_that_cannot_be() -> None:
    with pytest.raises(DataError, match="no chat template"):
        instruct.shaped(TASKS["instruct"], [{"messages": []}], None, byte_tokenizer())
    with pytest.raises(DataError, match=r"the first row has none of.*messages"):
        instruct.shaped(TASKS["instruct"], [{"question": "?"}], None, byte_tokenizer())


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


@pytest.mark.parametrize("name", [n for n in TASKS if n not in ("instruct", "math")])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_task_reads_its_published_rows(shared: Path, name: str, protocol: str) -> None:
    task = TASKS[name]
    if name in ("sst2", "qqp", "mnli"):
        pytest.skip(f"the rows of {name} are not among the shared ones")
    rows = load_rows(task.sets["test"], "test", shared / "data")
    examples = examples_of(task, rows.rows, protocol, rows.source, rows.lines)
    assert len(examples) == len(rows) > 100
    assert all(e.prompt for e in examples)
    if task.kind == "generation":
        empty = score_one(task.scoring[protocol], examples[0], "")
        assert (empty.extracted, empty.correct) == ("", False)
