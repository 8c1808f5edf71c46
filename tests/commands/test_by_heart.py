"""A model that has learnt ten rows by heart answers them: every format, protocol, family and template.

Between a row, the tokens that are learnt, the tokens that are asked and the text that is scored, nothing may
change; whatever does would show here as a loss near 0 beside a score below 100.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import pico_bert, pico_llama
from templates_table import TEMPLATES, chat_tokenizer
from tiny_pairs import tiny_pairs_folder
from tiny_pictures import tiny_vit_folder, tiny_writer_folder
from tiny_run import one_thread  # noqa: F401
from tokenizers_table import MAKERS

from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import generate as ask
from neuroada_cli.commands import train
from neuroada_cli.data.made_pictures import make_pictures
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.training.log import read_metrics

ASKED = (
    "the soup was cold", "we waited", "the chair broke", "a warm place", "the cake", "kind people",
    "rude and loud", "the best tea", "dirty floor", "nice view",
)  # fmt: skip
ANSWERS = (
    "bad",
    "good",
    "It is 42.",
    "yes and no",
    "-3",
    "true",
    "two\nlines",
    "Good day, dear guest",
    "no",
    "1500",
)


NO_THOUGHT = "<think>\n\n</think>\n\n"  # that a template has a model write
STEPS = {"reft": 50, "llm-adapters": 160}  # the latter learns prompts, too, which takes longer
LONGER = STEPS["llm-adapters"]
STEPS_TO_SEE = 300
ENCODERS = ("rte", "stsb", "text_classes")


def folder_of(place: Path, tokenizer: Any, encoder: bool = False) -> Path:
    size = len(tokenizer) + len(tokenizer) % 2
    settings = {"max_position_embeddings": 256, "initializer_range": 0.1}
    if encoder:
        pico_bert(vocab_size=size, **settings).bert.save_pretrained(place)
    else:
        model = pico_llama(vocabulary=size, **settings)
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def by_heart(
    place: Path,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    folder: Path | None = None,
    steps: int = 0,
    lr: float = 2e-2,
    **data: Any,
) -> float:
    """The score of a model on the rows that it has learnt until their loss is next to nothing."""
    folder = folder or folder_of(place / "base", tokenizer, encoder=data["task"] in ENCODERS)
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source, _, split = get_task(data["task"]).sets.get("test", "none").partition(":")
    test = place / source / f"{split or 'test'}.jsonl"
    test.parent.mkdir()
    test.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    steps = steps or STEPS.get(data.get("protocol", "reft"), LONGER)
    recipe = recipe_from({
        "name": "heart", "run_dir": str(place / "run"), "device": "cpu",
        "model": {"path": str(folder), "dtype": "fp32"},
        "data": {"train": str(file), "validation": str(file), "data_dir": str(place), **data},
        "optim": {"lr": lr, "schedule": "cosine", "warmup_steps": 5},
        "train": {
            "method": "full", "epochs": 10_000, "max_steps": steps, "batch_size": 10, "eval_every": steps,
            "group_by_length": False, "save_every": steps,
        },
        "eval": {"max_new_tokens": 100, "samples": 2},
    })  # fmt: skip
    train.run(recipe, quiet=True)
    [validation] = [e for e in read_metrics(place / "run" / "metrics.jsonl") if e["kind"] == "eval"]
    assert validation["loss"] < 0.1, "it has not learnt them"
    found = evaluate.run(str(place / "run"), tasks=[data["task"]], quiet=True, data_dir=str(place))
    return found.results[data["task"]].score


def chat(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("template", TEMPLATES)
def test_chats(template: str, tmp_path: Path) -> None:
    rows = [chat(*pair) for pair in zip(ASKED, ANSWERS, strict=True)]
    tokenizer = chat_tokenizer("GPT-2", template)
    assert by_heart(tmp_path, tokenizer, rows, task="instruct") == 1.0
    wishes = ask.Wishes(max_new_tokens=40)
    asked = ask.run(str(tmp_path / "run"), ASKED, wishes, quiet=True)
    read = [each.answers["answer"].text.removeprefix(NO_THOUGHT).lstrip(" ") for each in asked]
    assert read == list(ANSWERS)  # what a person reads is the answer, too, and nothing else
    told = [each for each in read_metrics(tmp_path / "run" / "metrics.jsonl") if each["kind"] == "sample"]
    samples = [
        [each[what].removeprefix(NO_THOUGHT).lstrip(" ") for each in told] for what in ("answer", "reference")
    ]
    assert samples == [list(ANSWERS[:2])] * 2


def with_thought(asked: str, answer: str, inline: bool, opened: bool = False) -> dict[str, Any]:
    row = chat(asked, answer)
    thought = f"Of {asked}."
    if opened:  # by the template of the server that wrote the row
        row["messages"][1]["content"] = f"{thought}</think>\n\n{answer}"
    elif inline:
        row["messages"][1]["content"] = f"<think>\n{thought}\n</think>\n\n{answer}"
    else:
        row["messages"][1]["reasoning_content"] = thought
    return row


def with_call(asked: str, answer: str) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": answer}}}
    messages = [
        {"role": "user", "content": asked}, {"role": "assistant", "content": None, "tool_calls": [call]},
    ]  # fmt: skip
    return {"messages": messages, "tools": [{"name": "f", "parameters": {}}]}


THOUGHTS: dict[str, Any] = {
    "beside": ("Qwen3", lambda a, b: with_thought(a, b, inline=False)),
    "in the content": ("Qwen3", lambda a, b: with_thought(a, b, inline=True)),
    "opened by a template": ("Qwen3", lambda a, b: with_thought(a, b, inline=True, opened=True)),
    "dropped by the template": ("DeepSeek R1", lambda a, b: with_thought(a, b, inline=True)),
    "a call of a tool": ("Qwen3", with_call),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", THOUGHTS)
def test_thoughts_and_calls(kind: str, tmp_path: Path) -> None:
    template, shape = THOUGHTS[kind]
    rows = [shape(*pair) for pair in zip(ASKED, ANSWERS, strict=True)]
    tokenizer = chat_tokenizer("GPT-2", template)
    assert by_heart(tmp_path, tokenizer, rows, steps=100, task="instruct") == 1.0


PLAIN: dict[str, Any] = {
    "prompt that ends in a space": lambda a, b: {"prompt": f"{a}. Label: ", "completion": b},
    "space on the answer": lambda a, b: {"prompt": f"{a}. Label:", "completion": f" {b}"},
    "alpaca": lambda a, b: {"instruction": f"Say {{input}} to {a}", "input": 0, "output": b},
    "question and answer": lambda a, b: {"question": a, "answer": b},
    "special tokens as answer": lambda a, b: {"prompt": f"{a}\n", "completion": f"<|im_start|>{b}<|im_end|>"},
    "end token as text": lambda a, b: {"prompt": f"{a}\n", "completion": f"{b}</s>"},
}


def under_both(names: Iterable[str], quick: set[str]) -> list[Any]:
    """(name, protocol); learning prompts, too, takes long, so that most of these are slow tests."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, protocol, marks=slow if protocol != "reft" and name not in quick else ())
        for name in names
        for protocol in STEPS
    ]


@pytest.mark.parametrize(("form", "protocol"), under_both(PLAIN, {"prompt that ends in a space"}))
def test_other_formats(form: str, protocol: str, tmp_path: Path) -> None:
    rows = [PLAIN[form](*pair) for pair in zip(ASKED, ANSWERS, strict=True)]
    tokenizer = chat_tokenizer("GPT-2", "ChatML")
    assert by_heart(tmp_path, tokenizer, rows, task="instruct", protocol=protocol) == 1.0


@pytest.mark.parametrize("name", MAKERS)
def test_tokenizers(name: str, tmp_path: Path) -> None:
    """Also those that keep neither case nor spaces: what they make of an answer is what counts."""
    rows = [chat(f"{a} ", b) for a, b in zip(ASKED, ANSWERS, strict=True)]
    assert by_heart(tmp_path, chat_tokenizer(name, "spaced"), rows, task="instruct") == 1.0


NUMBERS = [str(n * n - 3) for n in range(10)]
FAMILIES: dict[str, Any] = {
    "boolq": lambda n: {"instruction": ASKED[n], "answer": ("true", "false")[n % 2]},
    "hellaswag": lambda n: {"instruction": ASKED[n], "answer": f"ending{n % 4 + 1}"},
    "SVAMP": lambda n: {"instruction": ASKED[n], "output": f"It is {NUMBERS[n]}", "answer": NUMBERS[n]},
    "AQuA": lambda n: {
        "instruction": ASKED[n],
        "output": f"It is {'ABCDE'[n % 5]}",
        "answer": "ABCDE"[n % 5],
    },
    "gsm8k_cot": lambda n: {"question": ASKED[n], "answer": f"2 and 2\n#### {NUMBERS[n]}"},
    "due_dates": lambda n: {"message": ASKED[n], "date": f"2024-01-{n + 10}"},
}


@pytest.mark.parametrize(("task", "protocol"), under_both(FAMILIES, {"boolq"}))
def test_task_families(task: str, protocol: str, tmp_path: Path) -> None:
    rows = [FAMILIES[task](n) for n in range(10)]
    assert by_heart(tmp_path, chat_tokenizer("GPT-2", "ChatML"), rows, task=task, protocol=protocol) == 1.0


@pytest.mark.slow
def test_the_protocol_of_pefts_comparison(tmp_path: Path) -> None:
    """Its set is trained in one form and asked in another."""
    rows = [
        {"query": ASKED[n], "response": f"2 and 2. The answer is: {NUMBERS[n]}", "type": "GSM"}
        for n in range(10)
    ]
    tokenizer = chat_tokenizer("GPT-2", "ChatML")
    assert by_heart(tmp_path, tokenizer, rows, task="metamath", protocol="peft") == 1.0


@pytest.mark.slow
def test_scores_and_classes_of_ones_own(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("BERT uncased", "ChatML")
    rows: list[dict[str, Any]] = [
        {"sentence1": ASKED[n], "sentence2": ANSWERS[n], "label": n / 2} for n in range(10)
    ]
    for name in ("scores", "classes"):
        (tmp_path / name).mkdir()
    assert by_heart(tmp_path / "scores", tokenizer, rows, steps=LONGER, task="stsb") > 0.99
    rows = [{"text": ASKED[n], "label": ("bad", "good", "so so")[n % 3]} for n in range(10)]
    assert by_heart(tmp_path / "classes", tokenizer, rows, task="text_classes") == 1.0


def test_classes(tmp_path: Path) -> None:
    rows = [{"sentence1": ASKED[n], "sentence2": ANSWERS[n], "label": n % 2} for n in range(10)]
    assert by_heart(tmp_path, chat_tokenizer("BERT uncased", "ChatML"), rows, task="rte") == 1.0


ODD = ("<s>bad", "<s><s>", "yes .", "n't , no", "日本", "{x}", " a  b", "no</s>", "a <s>, b", "it 's")


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        pytest.param("t5", ANSWERS, id="t5"),
        pytest.param("bart", ODD, id="bart, odd"),
        pytest.param("t5", ODD, id="t5, odd", marks=pytest.mark.slow),
        pytest.param("bart", ANSWERS, id="bart", marks=pytest.mark.slow),
    ],
)
def test_encoder_decoders(name: str, answers: tuple[str, ...], tmp_path: Path) -> None:
    rows = [{"prompt": f"{a}. Label: ", "completion": b} for a, b in zip(ASKED, answers, strict=True)]
    folder = tiny_pairs_folder(tmp_path / "base", name)
    assert by_heart(tmp_path, None, rows, folder, steps=80, task="instruct") == 1.0


def pictures(place: Path) -> list[str]:
    """Ten pictures, all different, as files."""
    place.mkdir()
    for number, row in enumerate(make_pictures("train", 10)):
        (place / f"{number}.png").write_bytes(row["image"])
    return [str(place / f"{number}.png") for number in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm"])
def test_answers_about_pictures(name: str, tmp_path: Path) -> None:
    """All are asked the same, so that only the picture can say which answer it is."""
    rows = [
        {"image": image, "question": "what?", "answer": answer}
        for image, answer in zip(pictures(tmp_path / "pictures"), ANSWERS, strict=True)
    ]
    folder = tiny_writer_folder(tmp_path / "base", name)
    assert by_heart(tmp_path, None, rows, folder, steps=STEPS_TO_SEE, lr=5e-3, task="image_text") == 1.0


def test_classes_of_pictures(tmp_path: Path) -> None:
    rows = [
        {"image": image, "label": ("bad", "good", "so so")[n % 3]}
        for n, image in enumerate(pictures(tmp_path / "pictures"))
    ]
    folder = tiny_vit_folder(tmp_path / "base")
    labels = ["bad", "good", "so so"]
    assert by_heart(tmp_path, None, rows, folder, steps=80, task="image_classes", labels=labels) == 1.0
