"""Inputs that once changed on their way without a word, through the real commands, as their notes say."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import child, code_of
from safetensors.torch import load_file
from tiny_run import one_thread  # noqa: F401
from transformers import AutoTokenizer

from neuroada_cli.cli import app as cli

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def case(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Run]:
    """Sets up a case by name; the command line it gives then returns (exit code, what was said)."""

    def set_up(name: str, *more: str) -> Run:
        source = shared / "cases" / name
        if not source.is_dir():
            pytest.skip(f"needs the folder cases/{name} beside the real data sets")
        folder = tmp_path / "case"
        shutil.copytree(source, folder)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "400")
        if (folder / "base.py").is_file():
            words = ["base.py", str(shared / "models" / "stories260K"), "base", *more]
            assert code_of(child(lambda: make_base(words))) == 0
        return run

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(words))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), re.sub(r"[ │]*\n[ │]*", "\n", out + err)

    return set_up


def make_base(words: list[str]) -> None:
    """`python base.py ...`, as its note says, in a process that has imported transformers already."""
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def learnt(said: str) -> list[str]:
    """What of each row `--preview` shows as learnt."""
    return [part.partition("\u27e7")[0].strip() for part in said.split("\u27e6")[1:]]


def test_braces_in_the_instruction(case: Callable[..., Run]) -> None:
    code, said = case("braces-in-the-instruction")("train", "recipe.yaml", "--preview", "2")
    assert code == 0
    for row in Path("rows.jsonl").read_text().splitlines():
        assert json.loads(row)["instruction"] in said
    assert [text.removesuffix("</s>") for text in learnt(said)] == ["Dear guest, welcome", "input"]


def test_an_empty_answer_behind_a_turn_end(case: Callable[..., Run]) -> None:
    code, said = case("empty-answer-behind-a-turn-end")("train", "recipe.yaml")
    assert code == 3
    assert "1 of 2 rows have no answer to learn (the first is row 1)" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize("more", [(), ("all",)])
def test_the_end_token_of_the_tokenizer(case: Callable[..., Run], more: tuple[str, ...]) -> None:
    code, said = case("end-token-of-the-tokenizer", *more)("train", "recipe.yaml", "--preview", "1")
    if more and code == 4:  # the tokenizer itself raises
        assert said.count("\n") == 1
        assert "base" in said
        return
    assert code == 0
    assert "(token 0)" in said
    assert "names 2" in said
    assert learnt(said) == ["it is 0</s>"]


def test_an_fp16_base_under_the_default(case: Callable[..., Run]) -> None:
    neuroada = case("fp16-base-under-the-default")
    assert neuroada("train", "recipe.yaml")[0] == 0
    assert neuroada("merge", "runs/half", "out")[0] == 0
    base, merged = (load_file(f"{folder}/model.safetensors") for folder in ("base", "out"))
    assert {value.dtype for value in merged.values()} == {torch.float16}
    assert base.keys() == merged.keys()
    changed = sum(int((merged[name] != base[name]).sum()) for name in base)
    assert 0 < changed <= 3000  # as many as were chosen
    code, said = neuroada(
        "train", "recipe.yaml", "--set", "model.dtype=bf16", "--set", "name=rounded", "--dry-run"
    )
    assert code == 0
    assert re.search(r"\d{3},\d{3} of 260,032 numbers change", said)


@pytest.mark.parametrize(
    ("rows", "in_order"),
    [
        (
            "rows.jsonl",
            ["You tell the weather of an island.", "How is January?", "Cold.", "And in June?", "Warm."],
        ),
        ("rows-chat.jsonl", ["You speak like a sailor.", "Good day", "Ahoy"]),
    ],
)  # fmt: skip
def test_history_and_system_columns(case: Callable[..., Run], rows: str, in_order: list[str]) -> None:
    neuroada = case("history-and-system-columns")
    code, said = neuroada("train", "recipe.yaml", "--preview", "1", "--set", f"data.train={rows}")
    assert code == 0
    assert "not used" not in said
    places = [said.index(text) for text in in_order]
    assert places == sorted(places)
    assert in_order[-1] in learnt(said)[0]


def test_named_chat_templates(case: Callable[..., Run]) -> None:
    neuroada = case("named-chat-templates")
    assert neuroada("train", "recipe.yaml")[0] == 0
    assert neuroada("merge", "runs/named", "out")[0] == 0
    asked = [{"role": "user", "content": "hello"}]
    kept = [AutoTokenizer.from_pretrained(folder) for folder in ("base", "out")]
    assert set(kept[1].chat_template) == {"default", "tool_use"}
    prompts = [each.apply_chat_template(asked, tools=[{"name": "f"}], tokenize=False) for each in kept]
    assert prompts[0] == prompts[1]
    assert "TOOLS" in prompts[1]
    for name in ("tekken.json", "video_preprocessor_config.json"):
        assert (Path("out") / name).read_bytes() == (Path("base") / name).read_bytes()


def test_numbers_as_people_write_them(case: Callable[..., Run]) -> None:
    code, said = case("numbers-as-people-write-them")("eval", "--predictions", "rows.jsonl")
    assert code == 0
    found = re.search(r"^ *math +12 +([\d.]+) +([\d.]+) +(\d+)", said, re.MULTILINE)
    assert found is not None
    assert found.groups() == ("41.7", "91.7", "1")


@pytest.mark.parametrize("rows", ["rows.json", "rows-one-line.json"])
def test_one_object_with_a_list(case: Callable[..., Run], rows: str) -> None:
    neuroada = case("one-object-with-a-list")
    code, said = neuroada("train", "recipe.yaml", "--preview", "9", "--set", f"data.train={rows}")
    assert code == 0
    assert f"{rows} is one object: its rows are those under 'data'" in said
    assert len(learnt(said)) == 4
    assert neuroada("train", "recipe.yaml", "--dry-run", "--set", "data.field=data")[0] == 0
    code, said = neuroada("train", "recipe.yaml", "--set", "data.field=rows")
    assert code == 3
    assert "holds no rows under 'rows': it has rows under data" in said


def test_one_row_too_long(case: Callable[..., Run]) -> None:
    neuroada = case("one-row-too-long")
    code, said = neuroada("train", "recipe.yaml")
    assert code == 3
    assert "1 of 10 rows" in said
    assert "data.too_long" in said
    for how in ("drop", "cut"):
        code, said = neuroada("train", "recipe.yaml", "--dry-run", "--set", f"data.too_long={how}")
        assert code == 0, said
    assert re.search(r"\b1 of 10 rows", said), said
    code, said = neuroada("eval", "base", "--recipe", "recipe.yaml")
    assert code == 0, said
    assert re.search(r"\b1 of 10 ", said), said


def test_a_prompt_that_ends_in_a_space(case: Callable[..., Run]) -> None:
    neuroada = case("prompt-ends-in-a-space")
    rows = [json.loads(line)["completion"] for line in Path("rows.jsonl").read_text().splitlines()]
    code, said = neuroada("train", "recipe.yaml", "--preview", "10")
    assert code == 0
    assert "10 of 10 rows" in said
    assert [text.removesuffix("</s>") for text in learnt(said)] == rows
    assert neuroada("train", "recipe.yaml")[0] == 0
    code, said = neuroada("eval", "runs/space")
    assert code == 0, said
    assert re.search(r"^ *instruct +10 +100\.0", said, re.MULTILINE), said


def test_a_template_that_opens_a_thought(case: Callable[..., Run]) -> None:
    code, said = case("template-opens-a-thought")("train", "recipe.yaml", "--preview", "2")
    assert code == 0
    assert "the chat template asks with '(think)'" in said
    assert [text.removesuffix("</s>") for text in learnt(said)] == ["4[end]", "6[end]"]
    assert said.count("[assistant]") == 2
    assert "[assistant](think)" not in said


def test_a_turn_end_that_is_plain_text(case: Callable[..., Run]) -> None:
    neuroada = case("turn-end-is-plain-text")
    assert neuroada("train", "recipe.yaml")[0] == 0
    code, said = neuroada("eval", "runs/turns")
    assert code == 0, said
    assert re.search(r"^ *instruct +10 +100\.0", said, re.MULTILINE), said


def test_two_sets_of_weights(case: Callable[..., Run]) -> None:
    code, said = case("two-sets-of-weights")("train", "recipe.yaml", "--dry-run")
    if code == 4:
        assert "model.safetensors.index.json" in said
        return
    assert code == 0
    assert "weights are read from model.safetensors; not from model.safetensors.index.json" in said


def test_zero_as_input(case: Callable[..., Run]) -> None:
    code, said = case("zero-as-input")("train", "recipe.yaml", "--preview", "5")
    assert code == 0
    shown = re.findall(r"### Input:↵\n(.*?)↵", said)
    assert sorted(shown) == ["0", "1", "2", '["red", "blue"]', "false"]
    assert "input: numbers, true and false become text: 4 rows" in said
    assert "input: lists and objects become JSON: 1 row" in said
