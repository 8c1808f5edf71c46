"""Predictions that repeat their prompt: no answer is found in the question, whatever stands around it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from neuroada_cli.commands import predictions
from neuroada_cli.evaluation.repeated import without_prompt
from neuroada_cli.tasks.registry import TASKS
from neuroada_cli.tasks.task import PROTOCOLS
from neuroada_cli.tasks.templates import alpaca

HEADS = (
    "", " \n", "<s> ", "<s>", "<|begin_of_text|>", "<bos>", "[CLS] ", "<｜begin▁of▁sentence｜>", "<s>[INST] ",
    "<pad><pad><s>", "user\n", "Question: ", "### Instruction:\n",
    "<|im_start|>user\n", "<|im_start|>system\nYou are of use.<|im_end|>\n<|im_start|>user\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "system\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nuser\n\n",
    "<s>[INST] <<SYS>>\nYou have 3 hats.\n<</SYS>>\n\n", "<bos><start_of_turn>user\n",
)  # fmt: skip
TAILS = ("", "</s>", "<|im_end|>\n", "<|eot_id|><|end_of_text|>", " <eos><pad><pad>", "<end_of_turn>\n")
QUESTION = "What is 3+4, Bob ?"
OTHERS = ("C: {}", "the answer is 4: {}", "-{}", "<s> 4. {}", "4\nuser\n{}")  # words of an answer in front


@pytest.mark.parametrize(("head", "tail"), itertools.product(HEADS, TAILS))
def test_the_prompt_goes_whatever_a_decoder_puts_around_it(head: str, tail: str) -> None:
    for prompt in (f"{QUESTION}\n", alpaca(QUESTION)):
        for repeated in (prompt, prompt.replace(" ?", "?").replace("\n\n", "\n")):
            found = without_prompt(f"{head}{repeated}I do not know.{tail}", (prompt, QUESTION))
            assert found.strip() == "I do not know."
    assert without_prompt(f"It is 7.{tail}", (QUESTION,)).rstrip() == "It is 7."


@pytest.mark.parametrize(
    "role",
    [
        "\nassistant\n\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        " [/INST]",
        "</s> Assistant:",
        "<end_of_turn>\n<start_of_turn>model\n",
    ],
)
def test_so_does_the_name_of_who_answers(role: str) -> None:
    assert without_prompt(f"user\n{QUESTION}{role}4", (QUESTION,)).strip() == "4"
    assert without_prompt(f"{QUESTION} model 4 of them", (QUESTION,)) == " model 4 of them"


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_answered_before_the_question_is_repeated_stays(form: str) -> None:
    written = form.format(QUESTION)
    assert without_prompt(written, (QUESTION,)) == written.removeprefix("<s>")


def test_only_one_copy_goes_and_an_answer_without_a_prompt_stays() -> None:
    assert without_prompt(QUESTION * 2, (QUESTION,)) == QUESTION
    assert without_prompt(" 4 \n", (QUESTION, "", "  ")) == " 4 \n"
    assert len(without_prompt(" \n" * 50_000 + "x", (QUESTION,))) == 100_001


WRITES = [
    (task.name, protocol)
    for task in TASKS.values()
    for protocol in PROTOCOLS
    if task.kind == "generation" and (protocol in task.scoring or task.family in PROTOCOLS[protocol].rules)
]


@pytest.mark.parametrize(("task", "protocol"), WRITES)
@pytest.mark.parametrize("head", ["", "<s> ", "<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\n"])
def test_every_task_scores_its_answer_alike_with_and_without_its_prompt(
    tmp_path: Path, task: str, protocol: str, head: str
) -> None:
    """A right answer counts, and nothing that stands in the question is taken for one."""
    right = {"commonsense": "true", "boolq": "true", "AQuA": "A", "due_dates": "2024-01-05"}.get(task)
    right = right or {"piqa": "solution1", "winogrande": "option1", "hellaswag": "ending1"}.get(task)
    right = right or ("answer1" if TASKS[task].family == "commonsense" else "4")
    question = f"Is it {right} or 2024-01-05? The answer is: {right}"
    says = f"the correct answer is {right}" if TASKS[task].family == "commonsense" else right
    says = f"The answer is: {right}" if task == "metamath" else says
    written = {"right": says, "nothing": "I do not know."}
    for kind, answer in written.items():
        for asked in ("", question + "\n", _prompt(task, protocol, question)):
            row = {"instruction": question, "prediction": f"{head}{asked}{answer}</s>", "answer": right}
            file = tmp_path / "theirs.jsonl"
            file.write_text(json.dumps(row) + "\n")
            if not asked and "system" in head:
                continue  # a conversation without its question
            [found] = predictions.run(file, task, protocol, quiet=True).predictions[task]
            assert found.correct == (kind == "right"), (kind, asked, found)


def _prompt(task: str, protocol: str, question: str) -> str:
    if task == "metamath":
        return f"Question: {question} Think step by step.\nAnswer:"
    if task == "gsm8k_cot":
        lines = "Answer the above question. First think step by step and then answer the final number."
        return f"{question}\n{lines}\n"
    return alpaca(question) if TASKS[task].family != "due_dates" else f"{question}\nDate (YYYY-MM-DD): "


def test_own_questions_are_scored_from_the_command_line(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Who?", "prediction": "<s>Who? A parrot</s>", "answer": "A parrot"},
        {"instruction": "Where?", "prediction": "Elba", "answer": "Elbe"},
    ]
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = predictions.run(file, "instruct", "reft", quiet=True)
    assert [row.correct for row in result.predictions["instruct"]] == [True, False]
