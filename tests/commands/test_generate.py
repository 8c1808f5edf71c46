"""`generate` and `chat`: what is asked is what was trained, and a base beside its tuned model is the base."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from random_adapter import adapter_of
from tiny_tokenizer import SIZE, byte_tokenizer

from neuroada_cli import files, hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.beside import Loading, sides
from neuroada_cli.cli.app import main
from neuroada_cli.commands import generate as command
from neuroada_cli.commands import merge
from neuroada_cli.commands.generate import Asked, Wishes
from neuroada_cli.errors import DataError, ModelError, RecipeError
from neuroada_cli.evaluation.generate import generate
from neuroada_cli.evaluation.streaming import _Pieces, answer
from neuroada_cli.recipe.load import recipe_from, to_yaml
from neuroada_cli.tasks.asking import asking
from neuroada_cli.tasks.templates import alpaca

SHORT = Wishes(max_new_tokens=12)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    pico_llama(vocabulary=SIZE, max_position_embeddings=512).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def recipe_of(base: Path, **data: object) -> str:
    values = {
        "name": "x",
        "model": {"path": str(base)},
        "data": {"task": "instruct", "train": "x.jsonl"} | data,
    }
    return to_yaml(recipe_from(values))


def texts(found: list[Asked]) -> list[dict[str, str]]:
    return [{name: each.text for name, each in asked.answers.items()} for asked in found]


def batched(target: Path, prompts: list[str]) -> list[str]:
    loaded = adapted.load(str(target), "causal-lm")
    return generate(loaded.model, loaded.tokenizer, prompts, 12)


def test_answers_are_those_of_an_evaluation_and_the_base_is_the_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = adapter_of(base, tmp_path / "adapter")
    found = texts(command.run(str(adapter), ["One?", "Two, three?"], SHORT, compare=True))
    assert "large tensors are only sampled" in " ".join(capsys.readouterr().err.split())
    for number, prompt in enumerate(["One?", "Two, three?"]):
        assert found[number] == {"base": batched(base, [prompt])[0], "tuned": batched(adapter, [prompt])[0]}
    assert found[0]["base"] != found[0]["tuned"], "the deltas do nothing, so nothing is shown"


def test_the_base_of_a_merged_folder_is_named_by_its_recipe_or_by_hand(base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(base, tmp_path / "adapter")
    told_by = {"sha256": hashlib.sha256(recipe := recipe_of(base, format="text").encode()).hexdigest()}
    (adapter / "recipe.yaml").write_bytes(recipe)
    manifest = files.read_json(adapter / files.MANIFEST)
    manifest["files"]["recipe.yaml"] = told_by | {"bytes": len(recipe)}
    files.write_json(adapter / files.MANIFEST, manifest)
    merge.run(adapter, tmp_path / "merged", quiet=True)
    told = texts(command.run(str(adapter), ["One?"], SHORT, compare=True, quiet=True))
    assert texts(command.run(str(tmp_path / "merged"), ["One?"], SHORT, compare=True, quiet=True)) == told
    with pytest.raises(ModelError, match="no base that is known"):
        command.run(str(base), ["One?"], SHORT, compare=True, quiet=True)
    other = texts(command.run(str(base), ["One?"], SHORT, Loading(base=str(base)), compare=True, quiet=True))
    assert other[0]["base"] == other[0]["tuned"] == told[0]["base"]


def test_taking_turns_leaves_every_weight_as_it_was(base: Path, tmp_path: Path) -> None:
    target = adapted.find_target(str(adapter_of(base, tmp_path / "adapter")))
    loaded, models = sides(target, None, Loading(), both=True)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    plain = hub.load_model(base, "causal-lm", "fp32").model.state_dict()
    with models[0].on():
        now = {name.replace(".base.", "."): tensor for name, tensor in loaded.model.state_dict().items()}
        assert all(torch.equal(now[name], tensor) for name, tensor in plain.items() if name in now)
        assert len(plain.keys() & now.keys()) > 10
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_pieces_come_one_by_one_and_are_the_text(base: Path) -> None:
    loaded = adapted.load(str(base), "causal-lm")
    pieces: list[str] = []
    ids = loaded.tokenizer("Hello")["input_ids"]
    found = answer(loaded.model, loaded.tokenizer, ids, 20, pieces.append)
    assert "".join(pieces) == found.text == generate(loaded.model, loaded.tokenizer, ["Hello"], 20)[0]
    assert len(pieces) > 1
    assert found.tokens == 20
    assert not found.ended
    stopped = answer(loaded.model, loaded.tokenizer, ids, 20, stop=lambda: True)
    assert stopped.tokens == 1
    with pytest.raises(DataError, match="has 600 tokens, and the model takes 512"):
        answer(loaded.model, loaded.tokenizer, [5] * 600, 20)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("So.\n<end>\n", "So."),
        ("Say <en, <e or <end> then.<end>", "Say <en, <e or <end> then."),
        ("The <end>\n<turn>user", "The <end>\n<turn>user"),
        ("cut <en", "cut <en"),
        ("two\n\n", "two\n\n"),
        ("<end>", ""),
    ],
)
def test_a_turn_end_of_plain_text_is_no_part_of_an_answer_nor_is_its_beginning_told(
    written: str, shown: str
) -> None:
    tokenizer = byte_tokenizer()
    pieces: list[str] = []
    streamed = _Pieces(tokenizer, pieces.append, "\n<end>\n")
    streamed.put(torch.tensor([[0]]))  # the prompt
    for token in tokenizer(written, add_special_tokens=False)["input_ids"]:
        streamed.put(torch.tensor([token]))
        assert shown.startswith(streamed.told)
    streamed.end()
    assert "".join(pieces) == streamed.told == shown


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        ({"format": "alpaca"}, alpaca("Why?", "", "Be kind.", [("A?", "B.")])),
        ({"format": "text"}, "Be kind.\n\nWhy?"),
        ({"format": "chat"}, "<system>Be kind.<user>A?<assistant>B.<user>Why?<a"),  # as trained
        ({"task": "boolq"}, "Be kind.\n\nWhy?\n"),
        ({"task": "math", "protocol": "llm-adapters"}, f"Be kind.\n\n{alpaca('Why?')}"),
        ({"task": "due_dates"}, "Be kind.\n\nWhy?\nDate (YYYY-MM-DD): "),
    ],
    ids=str,
)
def test_a_question_is_put_as_the_rows_were(base: Path, data: dict[str, str], prompt: str) -> None:
    tokenizer = hub.load_tokenizer(base)
    tokenizer.chat_template = TEMPLATE
    recipe = recipe_from({"name": "x", "model": {"path": "x"}, "data": {"task": "instruct"} | data})
    assert asking(recipe, tokenizer).write("Why?", [("A?", "B.")], "Be kind.") == prompt


def test_what_cannot_be_asked_is_refused(base: Path) -> None:
    tokenizer = hub.load_tokenizer(base)
    for task, why in (("rte", "writes no text"), ("textvqa", "is shown pictures")):
        recipe = recipe_from({"name": "x", "model": {"path": "x"}, "data": {"task": task}})
        with pytest.raises(RecipeError, match=why):
            asking(recipe, tokenizer)
    told = "--format: the model's tokenizer has no chat template; choose alpaca, prompt-completion, text"
    with pytest.raises(DataError, match=f"^{told}$"):
        asking(None, tokenizer, "chat")
    with pytest.raises(DataError, match="nothing to ask"):
        command.run(str(base), [" "], quiet=True)


def reading(*lines: str) -> Callable[[], str]:
    waiting = iter(lines)

    def read() -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        return line

    return read


def test_a_talk_tells_the_turns_before_until_it_is_reset(base: Path, tmp_path: Path) -> None:
    tokenizer = hub.load_tokenizer(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    read = reading("One?", "Two?", "/reset", "Two?", "/system Short.", "Two?", "/oops", "", "/quit", "Three?")
    found = texts(command.chat(str(base), read, SHORT, quiet=True))
    assert len(found) == 4
    first = found[0]["answer"]
    for number, prompt in (
        (0, "<user>One?<a>"),
        (1, f"<user>One?<assistant>{first}<user>Two?<a>"),
        (2, "<user>Two?<a>"),
        (3, "<system>Short.<user>Two?<a>"),
    ):
        loaded = adapted.load(str(base), "causal-lm")
        ids = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert found[number]["answer"] == generate(loaded.model, loaded.tokenizer, [ids], 12)[0]


@pytest.mark.parametrize("beside", [False, True])
def test_a_model_that_is_written_over_in_a_talk_is_named(base: Path, tmp_path: Path, beside: bool) -> None:
    """Its weights are the file's pages (findings/loaded-weights-follow-the-file.sh).

    beside  the base that a merged model is compared with
    """
    file = base / "model.safetensors"
    target, how = str(base), Loading()
    if beside:
        merge.run(adapter_of(base, tmp_path / "adapter"), tmp_path / "merged")
        target, how = str(tmp_path / "merged"), Loading(base=str(base))
    tensors, metadata = files.read_tensors(file)
    files.write_tensors(tmp_path / "other", {name: -tensor for name, tensor in tensors.items()}, metadata)
    lines = iter(["One?", "Two?", "Three?"])

    def read() -> str:
        line = next(lines)
        if line == "Two?":
            with file.open("r+b") as opened:
                opened.write((tmp_path / "other").read_bytes())
        return line

    with pytest.raises(ModelError, match=r"base/model\.safetensors: was written to while the model in"):
        command.chat(target, read, SHORT, how, compare=beside, quiet=True)
    assert next(lines) == "Three?"


def test_an_interrupt_ends_the_answer_and_not_the_talk(base: Path) -> None:
    def lines() -> Iterator[str]:
        yield "One?"
        yield "Two?"

    waiting = lines()

    def read() -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    original, sent = command.answer, []

    def interrupted(*arguments: object, **named: object) -> object:
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **named)  # type: ignore[arg-type]

    command.answer = interrupted  # type: ignore[assignment]
    try:
        found = command.chat(str(base), read, SHORT, quiet=True)
    finally:
        command.answer = original
    assert [each.answers["answer"].tokens for each in found] == [1, 12]


def test_on_the_command_line(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = batched(base, ["One?"])[0]
    with pytest.raises(SystemExit) as end:
        main(["generate", str(base), "One?", "--json", "--max-new-tokens", "12"])
    assert end.value.code == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"prompt": "One?", "answer": expected}
    assert "asked as it stands" in shown.err
    assert "cut after 12 tokens" in shown.err
    for option, value in (("--top-p", "0.5"), ("--seed", "0")):
        with pytest.raises(SystemExit) as end:
            main(["generate", str(base), "One?", option, value])
        assert end.value.code == 2
        assert f"{option}: draws nothing without a temperature" in capsys.readouterr().err


def test_what_is_drawn_depends_on_the_seed_alone(base: Path) -> None:
    def drawn(seed: int) -> str:
        wishes = Wishes(max_new_tokens=12, temperature=1.0, seed=seed)
        return texts(command.run(str(base), ["One?"], wishes, quiet=True))[0]["answer"]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(torch.get_rng_state(), state)
