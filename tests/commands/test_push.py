"""push and back by id, with the hub's real client against a stand-in of its interface, and offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import pico_llama
from hub_stand_in import Hub, stand_in
from huggingface_hub import ModelCard, constants, parse_eval_result_entries
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli import files, hub
from neuroada_cli.adapter.load import find_target, load
from neuroada_cli.cli import app
from neuroada_cli.commands import eval as score
from neuroada_cli.commands import merge, push, train
from neuroada_cli.errors import ModelError, ResourceError
from neuroada_cli.export import hub_card

BASE_ID = "someone/tiny-llama"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    base = tiny_llama_folder(folder / "base")
    recipe = tiny_recipe(base, folder / "run", train={"max_steps": 2, "epochs": 1}, select={"k": 3})
    train.run(recipe, quiet=True)
    return folder / "run"


@pytest.fixture
def online(tmp_path: Path) -> Any:
    with stand_in(tmp_path / "cache") as found:
        yield found


def put(online: Hub, hub_id: str, folder: Path) -> None:
    online.repos[hub_id] = {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def scored(folder: Path, task: str, **changes: object) -> None:
    """An entry as `eval` keeps it."""
    entry = {
        "task": task, "n": 3270, "score": 0.5, "metric": "accuracy", "unparsed": 2, "protocol": "reft",
        "loss_mask": "answer", "decoding": "greedy", "max_length": None, "dtype": "float32",
        "data": {"source": "x", "rows": None, "sha256": "a" * 64},
    }  # fmt: skip
    file = folder / "results.json"
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {task: entry | changes}))


def test_an_adapter_goes_there_and_comes_back_by_its_id(online: Hub, run_dir: Path, tmp_path: Path) -> None:
    put(online, BASE_ID, run_dir.parent / "base")
    told = push.run(run_dir, "me/tiny", base=BASE_ID, quiet=True)
    there = online.repos["me/tiny"]
    assert told.address.startswith(f"{online.address}/me/tiny/commit/")
    assert set(there) == set(told.names)
    assert not [name for name in there if name.startswith("state/")]
    card = ModelCard(there["README.md"].decode())
    assert card.data.base_model == BASE_ID
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.library_name == "neuroada-cli"
    assert "3 trained connections per output neuron" in card.text
    assert "chosen by magnitude" in card.text
    assert "protocol `reft`" in card.text

    tokens = torch.arange(12)[None]
    here = load(str(run_dir))
    again = load("me/tiny")
    with torch.inference_mode():
        assert torch.equal(again.model(tokens).logits, here.model(tokens).logits)
    asked = len(online.asked)
    with pytest.MonkeyPatch.context() as patch:  # the cache alone
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        result = merge.run("me/tiny", tmp_path / "merged", quiet=True)
    assert result.stats.changed
    assert len(online.asked) == asked


def test_what_was_forgotten_goes_along(run_dir: Path, tmp_path: Path) -> None:
    """By the command itself, which keeps no protocol with it."""
    text = tmp_path / "general.txt"
    text.write_text("Once upon a time.\nThe sun is warm.\n", encoding="utf-8")
    found = score.run(str(run_dir), forgetting=str(text), out=tmp_path / "kept", quiet=True)
    card = push.run(run_dir, "me/tiny", results=tmp_path / "kept", dry_run=True, quiet=True).card
    told = found.results["forgetting"].metrics
    assert f"per token is {told['loss_after']:.4f}; the base's is {told['loss_before']:.4f}." in card
    assert "(2 rows of " in card
    assert "model-index" not in card, "no task was scored"


def test_a_merged_model_goes_there_with_its_scores(online: Hub, run_dir: Path, tmp_path: Path) -> None:
    merge.run(run_dir, tmp_path / "merged", quiet=True)
    known = {"model": hub.fingerprint(tmp_path / "merged")}
    scored(tmp_path / "merged" / "eval", "boolq", **known)
    scored(tmp_path / "merged" / "eval", "due_dates", score=0.25, n=8, **known)
    scored(tmp_path / "merged" / "eval", "piqa", model={"another": "model"})
    scored(tmp_path / "merged" / "eval", "instruct", metric="perplexity", score=12.5, n=8, **known)
    told = push.run(tmp_path / "merged", "me/merged", quiet=True)
    there = online.repos["me/merged"]
    card = ModelCard(there["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert {(e.dataset_type, e.metric_value) for e in card.data.eval_results} == {
        ("google/boolq", 0.5),
        ("due_dates", 0.25),
        ("instruct", 12.5),
    }
    assert "| instruct | 12.500 | perplexity | 8 |  |" in card.text, "no share, so not in %"
    assert "| boolq | 50.00 | accuracy | 3270 |" in card.text
    (entry,) = parse_eval_result_entries(yaml.safe_load(there[".eval_results/boolq.yaml"]))
    assert (entry.dataset_id, entry.value) == ("google/boolq", 0.5)
    assert "protocol reft" in str(entry.notes)
    assert [name for name in told.names if name.startswith(".eval_results/")] == [".eval_results/boolq.yaml"]
    again = load("me/merged")  # a model by its id
    with torch.inference_mode():
        tokens = torch.arange(12)[None]
        assert torch.equal(again.model(tokens).logits, load(str(tmp_path / "merged")).model(tokens).logits)


def test_the_owners_words_stay_and_pushing_again_does_not_repeat_the_results() -> None:
    entry = {
        "n": 4, "score": 1.0, "metric": "accuracy", "unparsed": 0, "protocol": "reft", "dtype": "float32",
        "max_length": 512, "data": {"sha256": "b" * 64, "rows": [0, 1]},
    }  # fmt: skip
    text = "---\nlicense: mit\nlibrary_name: transformers\n---\n\n# Mine\n\nMy own words.\n"
    report = {"rows": 3, "mean_difference": 0.01, "logit_spread": 2.0, "same_first_choice": 0.99}
    once = hub_card.card(text, "mine", "a/b", "finetune", {"rte": entry}, report)
    assert "My own words." in once
    assert "license: mit" in once
    assert "logits differ by 0.01 on average" in once
    assert hub_card.card(once, "mine", "a/b", "finetune", {"rte": entry}, report) == once
    assert not hub_card.eval_results({"rte": entry})  # of a part of the rows


def test_what_the_hub_refuses_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    with stand_in(tmp_path / "cache", key=None), pytest.raises(ModelError, match="hf auth login"):
        push.run(run_dir, "me/tiny", quiet=True)
    with stand_in(tmp_path / "cache"):
        with pytest.raises(ModelError, match="is no hub id"):
            push.run(run_dir, "tiny", quiet=True)
        pico_llama().save_pretrained(tmp_path / "foreign")
        with pytest.raises(ModelError, match="did not write"):
            push.run(tmp_path / "foreign", "me/tiny", quiet=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            with pytest.raises(ResourceError, match="HF_HUB_OFFLINE"):
                push.run(run_dir, "me/tiny", quiet=True)


def test_a_changed_file_is_not_pushed(online: Hub, run_dir: Path, tmp_path: Path) -> None:
    merge.run(run_dir, tmp_path / "merged", quiet=True)
    files.write_text(tmp_path / "merged" / "config.json", "{}")
    with pytest.raises(ModelError):
        push.run(tmp_path / "merged", "me/merged", quiet=True)
    assert "me/merged" not in online.repos


def test_a_dry_run_shows_the_card_and_asks_nobody(
    online: Hub, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        app.main(["push", str(run_dir), "me/tiny", "--dry-run"])
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert "# NeuroAda adapter" in said.out
    assert "--base" in said.err
    assert not online.asked


def test_an_id_that_is_a_model_is_no_adapter(online: Hub, run_dir: Path) -> None:
    put(online, BASE_ID, run_dir.parent / "base")
    assert find_target(BASE_ID).adapter is None
    with pytest.raises(ModelError):
        merge.run("me/nowhere", run_dir.parent / "out", quiet=True)
