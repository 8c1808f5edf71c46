"""No token, password or query of an address gets into what is shown or kept, whatever a command ends in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli.cli import app as cli
from neuroada_cli.data.sources import load_rows
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.recipe.load import recipe_from, to_yaml

SECRET = "SeCrEt123"
ADDRESSES = (
    f"https://me:{SECRET}@127.0.0.1:9/rows.json",
    f"https://{SECRET}@127.0.0.1:9/rows.json",
    f"http://127.0.0.1:9/rows.json?token={SECRET}",
    f"https://me:{SECRET}@127.0.0.1:9/rows.json?token={SECRET}&x=y",
)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, and a recipe that trains two steps on rows the package makes."""
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NEUROADA_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tiny_llama_folder(tmp_path / "model"), tmp_path / "run", train={"max_steps": 2})
    (tmp_path / "good.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    for number, address in enumerate(ADDRESSES):
        values = yaml.safe_load(to_yaml(recipe))
        values["data"] = {"task": "commonsense", "train": address}
        (tmp_path / f"secret-{number}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path


def commands(room: Path) -> list[tuple[int, list[str]]]:
    """(exit code, command line): what goes well first, since what fails is tried on its results."""
    good, eval_ = "good.yaml", ["--tasks", "due_dates", "--limit", "2", "--max-new-tokens", "2"]
    first, last = ADDRESSES[0], ADDRESSES[-1]
    found = [
        (0, ["env"]),
        (0, ["validate", good]),
        (0, ["train", good, "--dry-run"]),
        (0, ["train", good]),
        (0, ["merge", "run", "merged"]),
        (0, ["eval", "run", *eval_]),
        (7, ["train", good]),
        (4, ["eval", "nobody/nothing", *eval_]),
        (4, ["eval", first, *eval_]),
        (4, ["merge", first, "out"]),
        (4, ["merge", "run", "out", "--base", last]),
        (2, ["train", good, "--resume", "--set", f"data.train={last}"]),
        (2, ["train", good, "--set", f"data.trian={last}"]),
        (2, ["train", good, "--set", f"data.train=[{last}]"]),
        (2, ["train", good, "--set", last]),
        (2, ["train", last]),
        (4, ["train", good, "--overwrite", "--set", f"model.path={last}"]),
        (3, ["eval", "run", *eval_, "--out", "e", "--data-dir", last]),
        (3, ["eval", "--predictions", last]),
    ]
    for number in range(len(ADDRESSES)):
        recipe = f"secret-{number}.yaml"
        found += [(2, [command, recipe]) for command in ("train", "select", "validate")]
        found += [(2, ["eval", "model", "--recipe", recipe, *eval_]), (2, ["quickstart", "--recipe", recipe])]
    return found


def test_secrets_are_neither_shown_nor_kept(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    tried = 0
    for code, words in commands(room):
        for debug in ([], ["--debug"]) if code else ([],):
            with pytest.raises(SystemExit) as stop:
                cli.main([*words, *debug])
            out, err = capsys.readouterr()
            assert int(stop.value.code or 0) == code, (words, err)
            assert SECRET not in out + err, words
            assert code == 0 or "error: " in err
            tried += 1
    assert tried > 60
    kept = [file for file in room.rglob("*") if file.is_file() and not file.name.startswith("secret-")]
    assert {"recipe.yaml", "state.json", "results.json", "env.json"} <= {file.name for file in kept}
    assert not [str(file) for file in kept if SECRET.encode() in file.read_bytes()]
    assert not [str(file) for file in room.rglob(f"*{SECRET}*")]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_may_hold_a_secret_is_refused_up_front(address: str) -> None:
    with pytest.raises(
        DataError, match=r"an address with a user name, a password or a query.*HF_TOKEN"
    ) as no:
        load_rows(address, "train")
    assert SECRET not in str(no.value)
    for key in ("train", "validation"):
        values = {"name": "x", "model": {"path": "m"}, "data": {"task": "instruct", key: address}}
        with pytest.raises(RecipeError, match=f"data.{key} is an address with a user name") as refused:
            recipe_from(values)
        assert SECRET not in str(refused.value)


def test_other_addresses_and_paths_are_not(tmp_path: Path) -> None:
    file = tmp_path / "a?b@c.jsonl"
    file.write_text(json.dumps({"a": 1}) + "\n", encoding="utf-8")
    assert len(load_rows(str(file), "train")) == 1
    values = {"name": "x", "model": {"path": "m"}, "data": {"task": "instruct"}}
    for source in ("https://host/a@b.json", "owner/name:part", str(file), "boolq"):
        values["data"] = {"task": "instruct", "train": source}
        assert recipe_from(values).data.train == source
