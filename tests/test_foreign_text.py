"""What others wrote, on its way to the terminal: no escapes, no markup, no secrets."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny_run import tiny_llama_folder, tiny_recipe, tiny_tokenizer

from neuroada_cli import failures
from neuroada_cli.cli import app as cli
from neuroada_cli.commands import predictions, quickstart
from neuroada_cli.data.batch import Example
from neuroada_cli.data.encoding import encode, preview
from neuroada_cli.errors import DataError, UserError
from neuroada_cli.evaluation.results import Prediction
from neuroada_cli.foreign_text import has_secrets, printable, public, shown
from neuroada_cli.recipe.load import to_yaml

EVIL = "a\x1b]0;owned\x07b\x1b[2Jc\x9bd\u202ee\rf[red]g[/]h[/b]"
PLAIN = "a]0;ownedb[2Jcdef[red]g[/]h[/b]"
ADDRESS = "https://me:hunter2@host.org/rows.json?token=hunter3#part"


def is_clean(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def rendered(markup: object) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    console.print(markup)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_printable_and_shown() -> None:
    assert printable(EVIL) == PLAIN
    assert printable("a\nb\tc", keep="\n") == "a\nbc"
    assert rendered(shown(EVIL)).strip() == PLAIN
    assert rendered(f"[bold]{shown(Path('a[/b].jsonl'))}[/]").strip() == "a[/b].jsonl"
    assert printable("é ü 日本語 🙂") == "é ü 日本語 🙂"


def test_public_addresses() -> None:
    assert (
        public(f"{ADDRESS}: no ('{ADDRESS}')")
        == "https://host.org/rows.json?… no ('https://host.org/rows.json?…"
    )
    assert public("https://a.org/b@c and x?y") == "https://a.org/b@c and x?y"
    assert public(public(ADDRESS)) == public(ADDRESS)
    assert has_secrets(ADDRESS)
    assert has_secrets("https://host/x?y")
    assert has_secrets("http://token@host/x")
    assert not has_secrets("https://host/a@b.json")
    assert not has_secrets("some/file?.jsonl")


@pytest.mark.parametrize(
    "error",
    [
        DataError(EVIL, EVIL, EVIL),
        OSError(errno.ENOSPC, EVIL, EVIL),
        PermissionError(errno.EACCES, "no", f"{EVIL}\nerror: all is well"),
        RuntimeError(EVIL),
        ValueError(f"{EVIL}\n{ADDRESS}"),
        UserError(ADDRESS, ADDRESS, ADDRESS),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_every_error_is_one_clean_line(
    error: Exception, debug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error
    except Exception as caught:
        failures.report(caught, debug)
    told = capsys.readouterr().err
    assert is_clean(told)
    assert "hunter" not in told
    assert [line[:7] for line in told.splitlines() if line.startswith("error")] == ["error: "]
    assert ("Traceback" in told) == debug


def test_a_usage_error_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["eval", "x", f"--{EVIL}"], [EVIL], ["bench", "--k", EVIL], ["train", f"{EVIL}{ADDRESS}"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        told = capsys.readouterr().err
        assert is_clean(told), told
        assert "hunter" not in told
        assert told.startswith("error: ")


def test_the_preview_of_a_row_is_clean() -> None:
    rows, _ = encode([Example(f"{EVIL}\tx\n", EVIL, EVIL, 0)], tiny_tokenizer(), 512)
    text = preview(rows[0], tiny_tokenizer())
    assert text.plain == f"{PLAIN}\tx↵\n{PLAIN}</s>"
    assert is_clean(rendered(text).replace("\t", " "))


def test_a_path_of_any_name_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "[red]a[" / "b].jsonl"
    file.parent.mkdir(exist_ok=True)
    rows = [{"instruction": f"Say {n}{EVIL}", "output": EVIL} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"task": "instruct", "train": str(file), "limit": None, "validation_limit": None}
    model = tiny_llama_folder(tmp_path / "[/model]")
    recipe = tiny_recipe(model, tmp_path / "run[/]", data=data, train={"micro_batch_size": 4, "epochs": 1})
    (tmp_path / "r.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    capsys.readouterr()  # the bar of saving a model
    for words in (["train", "--dry-run"], ["train"], ["validate"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([words[0], str(tmp_path / "r.yaml"), *words[1:]])
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        assert not {c for c in out + err if not is_clean(c)}, words
        assert printable(file) in out + err.replace("\n", ""), words
    assert printable(tmp_path / "run[/]") in err + out


def test_what_models_answer_is_no_markup() -> None:
    """Cells of the tour's table: answers of a model may hold anything."""

    def result(answer: str) -> SimpleNamespace:
        return SimpleNamespace(
            predictions={"t": [Prediction(0, f" {EVIL} \nrest", EVIL, answer, EVIL, False)]}
        )

    table = quickstart._examples(SimpleNamespace(base=result("[/x]"), tuned=result(EVIL)))  # type: ignore[arg-type]
    told = rendered(table)
    assert is_clean(told)
    assert "[/x]" in told
    assert PLAIN[:20] in told
    empty = SimpleNamespace(predictions={"t": [Prediction(0, " \n", "", "", "", False)]})
    rendered(quickstart._examples(SimpleNamespace(base=empty, tuned=result("x"))))  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [predictions.run])
def test_scored_files_of_any_name(
    command: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "their[/s].jsonl"
    rows = [{"instruction": "Is 2 even?", "prediction": "true", "answer": "true"}] * 3
    file.parent.mkdir(exist_ok=True)
    (tmp_path / "their[").mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command(file, "boolq", "reft", tmp_path / "out[/]")
    assert "out[" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out[")
