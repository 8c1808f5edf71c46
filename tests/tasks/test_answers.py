"""The protocols' extraction and scoring rules on the cases that trip them, and the stricter ones."""

from __future__ import annotations

import threading

import pytest

from neuroada_cli.tasks import answers
from neuroada_cli.tasks.registry import TASKS
from neuroada_cli.tasks.templates import alpaca

TRIGGER = "the correct answer is "


@pytest.mark.parametrize(
    ("completion", "extracted", "reference", "correct"),
    [
        ("the correct answer is true", "true", "true", True),
        ("the correct answer is true \n", "true \n", "true", True),
        ("the correct answer is  true", "true", "true", True),
        ("the correct answer is true.", "true.", "true", False),
        ("the correct answer is True", "True", "true", False),
        (f"so {TRIGGER}true {TRIGGER}false", f"true {TRIGGER}false", "false", False),
        ("the correct answer is", "", "true", False),
        ("The correct answer is true", "", "true", False),
        ("true", "", "true", False),
        ("", "", "true", False),
    ],
)  # fmt: skip
def test_reft_commonsense(completion: str, extracted: str, reference: str, correct: bool) -> None:
    scoring = TASKS["boolq"].scoring["reft"]
    assert scoring.extract("Is it?\n", completion) == extracted
    assert scoring.correct(extracted, reference) is correct


def test_the_first_trigger_counts_even_in_the_prompt() -> None:
    """To the letter: the published code looks at prompt and completion as one text."""
    extracted = TASKS["boolq"].scoring["reft"].extract("Say: the correct answer is true?\n", TRIGGER + "true")
    assert extracted == "true?\nthe correct answer is true"


@pytest.mark.parametrize(
    ("task", "completion", "extracted"),
    [
        ("boolq", "It is false, not true", "false"),
        ("piqa", "solution 1 or solution2", "solution2"),
        ("piqa", "solution3", ""),
        ("hellaswag", "the correct answer is ending4", "ending4"),
        ("ARC-Easy", "answer5", "answer5"),
        ("winogrande", "", ""),
    ],
)
def test_llm_adapters_take_the_first_hit(task: str, completion: str, extracted: str) -> None:
    prompt = "solution1 true answer1 option1"  # what stands there is not an answer
    assert TASKS[task].scoring["llm-adapters"].extract(prompt, completion) == extracted


@pytest.mark.parametrize(
    ("completion", "extracted", "reference", "correct"),
    [
        ("2 + 2 = 4", "4", "4.0", True),
        ("first 3, then 1,234,567", "1234567", "1234567", True),
        ("the answer is 12.", "12.", "12", True),
        ("it falls to -3.5 degrees", "-3.5", "-3.5", True),
        ("10-3", "-3", "-3", True),  # the rule takes the minus for a sign
        ("0.3333", "0.3333", "0.333", True),
        ("0.335", "0.335", "0.333", False),
        ("4.0009", "4.0009", "4", True),
        ("4.001", "4.001", "4", False),  # in binary a little more than 1e-3 apart, as in the published code
        (".5", "5", "0.5", False),
        ("1/2", "2", "0.5", False),
        ("1e3", "3", "1000", False),
        ("٣", "٣", "3", True),  # \d and float() both know other scripts
        ("9" * 400, "9" * 400, "1", False),
        ("the price is $1,000.00 in all", "1000.00", "1,000", True),
        ("no number", "", "4", False),
        ("", "", "4", False),
    ],
)
@pytest.mark.parametrize("protocol", ["reft", "llm-adapters"])
def test_numbers(protocol: str, completion: str, extracted: str, reference: str, correct: bool) -> None:
    scoring = TASKS["SVAMP"].scoring[protocol]
    assert scoring.extract(alpaca("There are 7 of 9. How many?"), completion) == extracted
    assert scoring.correct(extracted, reference) is correct


GSM8K = "Answer the above question. First think step by step and then answer the final number.\n"


@pytest.mark.parametrize(
    ("completion", "extracted", "reference", "correct"),
    [
        ("2 + 2 = <<2+2=4>>4\nThe final answer is:  4", "4", "4", True),
        ("The final answer is:  1,234", "1234", "1,234", True),
        ("The final answer is: 1,234,567.00", "1234567.00", "1234567", True),
        ("The final answer is: -7", "-7", "7", False),
        ("The final answer is: +7", "7", "7", True),
        ("The final answer is: $7", "7", "7", True),
        ("The final answer is: 7, not 8", "8", "7", False),
        ("The final answer is: 7  \n ", "7", "7", True),
        (f"The final answer is: 7\n5 + 5?\n{GSM8K}10", "10", "7", False),  # it went on with another question
        ("", "", "7", False),
    ],
)
def test_gsm8k_by_itself(completion: str, extracted: str, reference: str, correct: bool) -> None:
    scoring = TASKS["gsm8k_cot"].scoring["reft"]
    assert scoring.extract(f"3 + 4?\n{GSM8K}", completion) == extracted
    assert scoring.correct(extracted, reference) is correct


@pytest.mark.parametrize("trigger", ["### Response:", GSM8K.partition(". ")[2]])
def test_what_follows_the_first_trigger_counts_left_stripped(trigger: str) -> None:
    """Its last space or line break belongs to a trigger; a second one is a part of the answer."""
    extract = answers.after(trigger)
    assert extract(f"7?\n{trigger}", " \n  8 ") == "8 "
    assert extract(f"7?\n{trigger}", f"8\n{trigger}  9 \n") == f"8\n{trigger}  9 \n"
    assert extract("7?\n", f"{trigger}8") == "8"
    assert extract(f"7?\n{trigger.strip()[:-1]}", "8") == ""


def test_new_tokens() -> None:
    names = ("boolq", "SVAMP", "AQuA")
    for protocol, tokens in (("reft", [32, 512, 512]), ("llm-adapters", [32, 256, 256])):
        assert [TASKS[name].scoring[protocol].max_new_tokens for name in names] == tokens


def test_without_a_trigger_there_is_no_number() -> None:
    assert TASKS["SVAMP"].scoring["reft"].extract("bare prompt 7", "8") == ""


@pytest.mark.parametrize(
    ("completion", "lenient", "strict"),
    [
        ("The answer is C.", "C", "C"),
        ("Dave thinks the answer is (B)", "D", "B"),
        ("Answer: E", "A", "E"),
        ("B", "B", "B"),
        ("(B)", "B", "B"),
        ("b", "", ""),
        ("the option is A; no, the option is D", "A", "D"),
        ("Apples cost 3 each", "A", ""),
        ("The answer is Apples", "A", ""),
        ("The answer is a number larger than 3.", "", ""),
        ("Answer: A train leaves at 4", "A", ""),
        ("The answer is A because 4 is even", "A", "A"),
        ("the answer is e.g. 4", "", ""),
        ("The answer is E.g. 4", "E", ""),
        ("the answer is b", "", "B"),
        ("The answer is D'Artagnan", "D", ""),
        ("C) 15", "C", "C"),
        ("(C) 15\nsince 3 * 5 = 15", "C", "C"),
        ("C. 15", "C", "C"),
        ("A. Smith has 3", "A", ""),
        ("A) 10 B) 15", "A", ""),
        ("Answer: $C$", "A", "C"),
        ("The answer is **(C)**", "C", "C"),
        (r"The answer is \boxed{D}.", "D", "D"),
        ("$C$", "C", "C"),
        ("A: she has 13", "A", ""),  # how the published solutions begin
        ("", "", ""),
    ],
)
def test_letters(completion: str, lenient: str, strict: str) -> None:
    scoring = TASKS["AQuA"].scoring["reft"]
    assert scoring.extract(alpaca("which?"), completion) == lenient
    assert [x for x in "ABCDE" if answers.strict_letter(completion, x)] == ([strict] if strict else [])


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("the correct answer is solution2", True),
        ("solution2.", True),
        (" Solution2 \n", True),
        ("the correct answer is solution2 because", False),
        ("solution1 solution2", False),
        ("solution22", False),
        ("", False),
    ],
)
def test_strict_options(completion: str, right: bool) -> None:
    assert answers.exact_option(r"solution[12]")(completion, "solution2") is right


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        ("The answer is 72.", "72", True),
        (r"so \boxed{1/2}", "0.5", True),
        ("so 1,234 apples", "1234", True),
        ("so 1234 apples", "1,234", True),
        ("so 1,234 apples", "1,234", True),
        ("so 1,234 apples", "234", False),
        ("3 or 4", "3", False),
        ("3 or 4", "4", False),
        ("it is $3 or $4.", "4", False),
        ("not 3 or 4, but 5", "5", True),
        ("nothing", "72", False),
        ("", "72", False),
        # what the library by itself reads otherwise, or not at all
        ("it is 1e6", "1000000", True),
        ("it is 1e6", "1", False),
        ("it is 2.5E-3", "0.0025", True),
        ("it is \u22125", "-5", True),
        ("it is \u22125", "5", False),
        ("it is 12%", "12", True),
        ("it is 1,234,567.5", "1234567.5", True),
        ("it is 0,5", "0.5", True),
        ("it is -0.50", "-1/2", True),
    ],
)
def test_strict_numbers(completion: str, reference: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert answers.strict_number(completion, reference) is right


def test_a_tower_of_powers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr(answers, "VERIFY_SECONDS", 1)
    assert answers.strict_number("it is 9^9^9^9^9", "72") is False


def test_strict_numbers_work_outside_the_main_thread() -> None:
    pytest.importorskip("math_verify")
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(answers.strict_number("it is 72", "72")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.skipif(not answers.can_verify(), reason="needs math-verify (extra strict)")
@pytest.mark.parametrize(
    ("written", "reference", "right"),
    [
        ("The answer is +4.", "4", True),
        ("The answer is +$4.", "4", True),
        ("The answer is 1.5e3.", "1500", True),
        ("The answer is 2E-1", "0.2", True),
        ("The answer is 12.\n\nQuestion: What of 7 more?\nAnswer: 19", "12", True),
        ("The answer is 12.\n\n### Instruction:\nAnd 7 more?\n### Response:\n19", "19", False),
        ("3+4 = 7", "7", True),
        ("The answer is 3 + 4", "4", False),
        ("The answer is -4.", "4", False),
        ("Question: none. It is 5", "5", True),
        ("The answer is 12.\nUser: and 7 more?", "12", True),
        ("\nProblem: 3 and 1.\nIt is 4", "4", True),
        ("The answer is \u22121,234.50", "-1234.5", True),
        ("The answer is \u20133.", "-3", True),
        ("pages 3\u20135", "-5", False),
        ("10 \u2013 3", "-3", False),
        ("+.5", "0.5", True),
        ("-.5", "-0.5", True),
        ("-$5", "-5", True),
        ("10 -$5", "-5", False),
        ("$+5", "5", True),
        ("US$5", "5", True),
        ("\u22121.5e3", "-1500", True),
        ("6.02e23", "6.02e23", True),
        ("1.5 x 10^3 km", "1500", True),
        ("1.5 \u00d7 10\u00b3", "1500", True),
        ("It is $2 \\times 10^{-1}$", "0.2", True),
        ("1\u202f234", "1234", True),
        ("1'234'567", "1234567", True),
        ("12%", "12", True),
        ("60 mph", "60", True),
        ("5kg", "5", True),
        ("3 1/2", "3.5", True),
        ("3 4/2", "3.5", False),
        ("3\u00bd hours", "3.5", True),
        ("\u2153", "1/3", True),
        ("$2.5 million", "2500000", True),
        ("7.8 billion people", "7800000000", True),
        ("12 thousand", "12000", True),
        ("(4)", "4", True),
        ('It is "4".', "4", True),
        ("4.", "4", True),
        ("\u0664\u0662", "42", True),
        ("1, 2", "12", False),
        ("1:30", "130", False),
    ],
)
def test_strict_numbers_as_models_write_them(written: str, reference: str, right: bool) -> None:
    assert answers.strict_number(written, reference) == right


@pytest.mark.parametrize(("completion", "right"), [("true", True), ("false", False), ("True.", True)])
def test_an_option_that_is_not_the_answer_is_wrong(completion: str, right: bool) -> None:
    assert answers.exact_option("true|false")(completion, "true") is right
