"""A name of ten thousand letters, wherever one may be given: a line that can be read, and no bug."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_adapter import write
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli.cli import app as cli
from neuroada_cli.errors import ModelError
from neuroada_cli.recipe.load import to_yaml

LONG = "x" * 10_000


@pytest.mark.parametrize(
    "words",
    [
        [LONG],
        ["train", f"--{LONG}"],
        ["select", LONG],
        ["select", "{recipe}", "--set", f"{LONG}=1"],
        ["select", "{recipe}", "--set", f"model.path={LONG}"],
        ["train", "{recipe}", "--set", f"data.task={LONG}", "--dry-run"],
        ["train", "{recipe}", "--set", f"data.train={LONG}", "--dry-run"],
        ["train", "{recipe}", "--out", LONG, "--dry-run"],
        ["train", "{recipe}", "--selection", LONG, "--dry-run"],
        ["validate", LONG],
        ["merge", LONG],
        ["merge", "{adapter}", LONG],
        ["merge", "{adapter}", "--base", LONG],
        ["eval", LONG],
        ["eval", "{adapter}", "--tasks", LONG],
        ["eval", "--predictions", LONG],
        ["generate", LONG, "hello"],
        ["export", "{adapter}", "--to", LONG],
        ["export", LONG, "--to", "gguf"],
        ["convert", LONG, "out"],
        ["recipes", "show", LONG],
        ["recipes", "copy", LONG, "out.yaml"],
    ],
)
def test_a_name_of_ten_thousand_letters_is_a_line_and_no_bug(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = tmp_path / "place"
    tiny_llama_folder(place / "model")
    recipe = place / "recipe.yaml"
    recipe.write_text(to_yaml(tiny_recipe(place / "model", place / "run")), encoding="utf-8")
    places = {"{recipe}": str(recipe), "{adapter}": str(write(place / "adapter"))}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([places.get(word, word) for word in words])
    told = capsys.readouterr().err
    assert end.value.code in {2, 3, 4, 6, 7}, told[:500]
    assert told.splitlines()[-1].startswith("error: ")
    assert max(map(len, told.splitlines())) < 2_500
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_a_long_path_can_be_read_as_it_is() -> None:
    path = "/" + "/".join(["folder"] * 50)
    assert ModelError("is broken", path).line() == f"{path}: is broken"
    cut = ModelError(f"holds {LONG} twice", path).line()
    assert cut.startswith(f"{path}: holds xxxx")
    assert cut.endswith("xxx twice")
