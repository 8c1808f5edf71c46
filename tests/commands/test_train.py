"""`train` as a whole: what it writes, that it goes on exactly where it stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import (  # noqa: F401
    hashes,
    losses,
    one_thread,
    stop_in_step,
    tiny_bert_folder,
    tiny_llama_folder,
    tiny_recipe,
    tiny_rte_folder,
)
from torch.torch_version import TorchVersion

from neuroada_cli import hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter.load import load
from neuroada_cli.commands import merge, train
from neuroada_cli.errors import (
    DataError,
    ModelError,
    NumericsError,
    OutputError,
    RecipeError,
    ResourceError,
    Stopped,
)
from neuroada_cli.files import verify_folder
from neuroada_cli.loop import loop
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import read_selection
from neuroada_cli.show.numbers import size
from neuroada_cli.training import fit, parallel, preflight
from neuroada_cli.training.log import read_metrics

STEPS = 12


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert_folder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_rte_folder(tmp_path_factory.mktemp("data"))


def go(recipe: Recipe, **options: Any) -> train.TrainResult:
    return train.run(recipe, quiet=True, **options)


def undrawn(*given: Any, **named: Any) -> None:
    """In place of pictures, where runs are many and others look at the pictures."""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# ---------------------------------------------------------------------------------------------------
# What a run leaves behind


def test_a_run_from_recipe_to_adapter(llama_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(llama_folder, tmp_path / "run")
    result = go(recipe)
    run_dir = tmp_path / "run"
    assert result.steps == STEPS
    assert {p.name for p in run_dir.iterdir()} == {
        "recipe.yaml", "selection.safetensors", "metrics.jsonl", "env.json", "training.png", "report.html",
        "checkpoint-6", "checkpoint-12", "best", "last",
    }  # fmt: skip
    assert os.readlink(run_dir / "last") == "checkpoint-12"
    steps = [e for e in read_metrics(run_dir / "metrics.jsonl") if e["kind"] == "train"]
    evaluations = [e for e in read_metrics(run_dir / "metrics.jsonl") if e["kind"] == "eval"]
    assert [e["step"] for e in steps] == list(range(1, STEPS + 1))
    assert [e["step"] for e in evaluations] == [6, 12]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] < steps[0]["loss"]
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")
    best = min(evaluations, key=lambda e: e["loss"])
    assert os.readlink(run_dir / "best") == f"checkpoint-{best['step']}" == result.best.name  # type: ignore[union-attr]
    assert result.best_value == best["loss"]
    verify_folder(run_dir / "best")
    assert not list(run_dir.rglob("*.pt")) + list(run_dir.rglob("*.bin")) + list(run_dir.rglob("*.pkl"))

    adapted = load(str(run_dir))  # and what was saved is what was trained
    assert adapted.adapter is not None
    trained = adapted.adapter.deltas
    assert result.trainable == sum(delta.numel() for delta in trained.values())
    assert all((delta != 0).float().mean() > 0.9 for delta in trained.values())
    assert adapted.adapter.settings["dtype"] == "fp32"


def test_the_selection_of_the_select_command_is_used(llama_folder: Path, tmp_path: Path) -> None:
    from neuroada_cli.commands import select

    recipe = tiny_recipe(llama_folder, tmp_path / "run", select={"k": 2, "criterion": "random"})
    file = select.run(recipe, quiet=True)
    before = file.read_bytes()
    go(recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 1})}))
    assert file.read_bytes() == before
    chosen = adapters.read_adapter(tmp_path / "run" / "last").selection.indices
    assert all(torch.equal(chosen[n], i) for n, i in read_selection(file).indices.items())

    other = tiny_recipe(llama_folder, tmp_path / "other", select={"k": 3})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "selection.safetensors").write_bytes(before)
    with pytest.raises(RecipeError, match=r"was made with k=2, random .*the recipe says k=3, magnitude"):
        go(other)
    result = go(other, selection=tmp_path / "run" / "selection.safetensors", overwrite=True)
    assert "k: 2\n  criterion: random" in (result.run_dir / "recipe.yaml").read_text(encoding="utf-8")


def test_a_classifier_with_a_fresh_head_and_biases(bert_folder: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        bert_folder, tmp_path / "run",
        data={"task": "rte", "limit": None, "validation_limit": None, "data_dir": str(pairs)},
        train={"train_bias": True}, optim={"head_lr": 1e-3},
    )  # fmt: skip
    result = go(recipe)
    evaluations = [e for e in read_metrics(result.run_dir / "metrics.jsonl") if e["kind"] == "eval"]
    assert evaluations[0]["metric_name"] == "accuracy"
    assert evaluations[0]["targets"] == 8  # the half of the validation rows that chooses checkpoints
    assert result.best_value == max(e["metric"] for e in evaluations)
    saved = adapters.read_adapter(result.run_dir / "last")
    assert {"classifier.weight", "classifier.bias"} < set(saved.whole)
    assert "bert.encoder.layer.0.attention.self.query.bias" in saved.whole
    assert "bert.embeddings.LayerNorm.bias" not in saved.whole
    fresh = hub.load_model(bert_folder, "sequence-classification", "fp32", num_labels=2, seed=42).model
    weight = fresh.get_parameter("classifier.weight")
    assert not torch.equal(saved.whole["classifier.weight"], weight)
    assert float((saved.whole["classifier.weight"] - weight).abs().max()) < 0.02  # 12 steps of at most 1e-3


@pytest.mark.usefixtures("no_model")
def test_a_classifier_forgets_no_text(bert_folder: Path, pairs: Path, tmp_path: Path) -> None:
    data = {"task": "rte", "limit": None, "validation_limit": None, "data_dir": str(pairs)}
    with pytest.raises(RecipeError, match=r"eval.forgetting is a loss on text, which a model for sequence-"):
        go(tiny_recipe(bert_folder, tmp_path / "run", data=data, eval={"forgetting": "general.txt"}))


@pytest.mark.parametrize("method", ["bitfit", "head"])
def test_a_baseline_goes_the_whole_way(
    method: str, bert_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and resumed it ends as the run that went through; its merged folder answers as it does."""
    data = {"task": "rte", "data_dir": str(pairs), "limit": None, "validation_limit": None}
    whole = go(tiny_recipe(bert_folder, tmp_path / "whole", data=data, train={"method": method}))
    recipe = tiny_recipe(bert_folder, tmp_path / "parts", data=data, train={"method": method})
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        with pytest.raises(Stopped):
            go(recipe)
    parts = go(recipe, resume=True)
    assert hashes(parts.run_dir / "last") == hashes(whole.run_dir / "last")
    assert f"method `{method}`" in (parts.run_dir / "last" / "README.md").read_text(encoding="utf-8")
    merge.run(parts.run_dir, tmp_path / "merged", quiet=True)
    tokens_BS = torch.arange(3, 15).view(2, 6)
    attached = load(str(parts.run_dir)).model
    merged = load(str(tmp_path / "merged"), "sequence-classification", "fp32").model
    assert torch.equal(attached(input_ids=tokens_BS).logits, merged(input_ids=tokens_BS).logits)


@pytest.mark.usefixtures("no_model")
def test_bitfit_without_biases_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no bias to train") as caught:
        go(tiny_recipe(llama_folder, tmp_path / "run", train={"method": "bitfit"}))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_keep_prunes_all_but_the_newest_and_the_best(llama_folder: Path, tmp_path: Path) -> None:
    result = go(
        tiny_recipe(llama_folder, tmp_path / "run", train={"save_every": 1, "eval_every": 4, "keep": 2})
    )
    kept = {p.name for p in result.run_dir.glob("checkpoint-*")}
    assert kept == {"checkpoint-11", "checkpoint-12", result.best.name}  # type: ignore[union-attr]


def test_early_stop(llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a rate that ruins the model the first evaluation stays the best one."""
    changes = {"eval_every": 1, "early_stop": 2, "epochs": 20}
    result = go(
        tiny_recipe(llama_folder, tmp_path / "run", train=changes, optim={"lr": 5.0, "warmup_ratio": 0})
    )
    evaluations = [e for e in read_metrics(result.run_dir / "metrics.jsonl") if e["kind"] == "eval"]
    best = max(e["step"] for e in evaluations if e["best"])
    assert result.steps == best + 2 < 20 * STEPS // 2
    assert os.readlink(result.run_dir / "best") == f"checkpoint-{best}"
    recipe = tiny_recipe(llama_folder, tmp_path / "run", train=changes, optim={"lr": 5.0, "warmup_ratio": 0})
    capsys.readouterr()
    again = train.run(recipe, resume=True)
    assert again.steps == result.steps
    told = " ".join(capsys.readouterr().err.split())
    assert f"stopped early after step {result.steps}, since 2 evaluations brought nothing better" in told
    assert "nothing is left to train" in told
    written = (result.run_dir / "recipe.yaml").read_text()
    longer = {"train": {**changes, "epochs": 30}, "optim": {"lr": 5.0, "warmup_ratio": 0}}
    with pytest.raises(OutputError, match=r"stopped early .*another length changes nothing; start"):
        train.run(tiny_recipe(llama_folder, tmp_path / "run", **longer), resume=True, extend=True, quiet=True)
    assert (result.run_dir / "recipe.yaml").read_text() == written, "of a run that does not go on"


def test_a_dry_run_of_a_run_that_is_there_says_that_training_would_be_refused(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(llama_folder, tmp_path / "run", train={"max_steps": 1})
    go(recipe)
    before = tree(tmp_path / "run")
    capsys.readouterr()
    assert train.run(recipe, dry_run=True).steps == 1
    assert "training would be refused: " in (said := capsys.readouterr().err)
    assert "--resume goes on, --overwrite starts again" in said
    train.run(recipe, dry_run=True, quiet=True)
    assert "training would be refused: " in capsys.readouterr().err, "quiet says what went wrong"
    with pytest.raises(RecipeError, match=r"--json: tells the steps of a training, and --dry-run takes none"):
        train.run(recipe, dry_run=True, as_json=True)
    train.run(recipe, dry_run=True, overwrite=True)
    assert "refused" not in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


def test_dry_run_writes_nothing_and_reads_no_weights(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "load_model", None)
    result = go(tiny_recipe(llama_folder, tmp_path / "run"), dry_run=True)
    shown = capsys.readouterr().out
    assert re.search(r"time +about \d+:\d\d on ", shown)
    assert "will it fit  it fits: " in shown
    assert re.search(r"largest train.micro_batch_size that fits: [\d,]+ (or more )?rows", shown)
    assert re.search(r"optim.lr +0.01 ", shown)
    assert "12 steps" in shown
    assert "Predicted memory" in shown
    assert result.steps == STEPS
    assert result.peak_bytes > 100_000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_dry_run_over_a_packed_base_tells_what_it_takes(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama_folder(tmp_path / "base", hidden_size=256, intermediate_size=768)
    dense = go(tiny_recipe(base, tmp_path / "run"), dry_run=True).peak_bytes
    monkeypatch.setattr(hub, "load_model", None)
    packed = tiny_recipe(base, tmp_path / "run", model={"quantization": kind})
    capsys.readouterr()
    assert 0 < go(packed, dry_run=True).peak_bytes < dense
    assert "largest train.micro_batch_size that fits" in capsys.readouterr().out
    peer = tiny_recipe(base, tmp_path / "run", model={"quantization": kind}, train={"method": "lora"})
    go(peer, dry_run=True)
    assert f"is not predicted: nothing is known of lora over {kind}" in capsys.readouterr().out


def test_a_dry_run_of_several_processes_tells_both_ways_to_share_the_work(
    llama_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel, "TORCH", TorchVersion("2.13.0"))  # both ways are predicted on any torch
    recipe = tiny_recipe(llama_folder, tmp_path / "run", train={"micro_batch_size": None})
    one = go(recipe, dry_run=True)
    capsys.readouterr()
    both = go(recipe, dry_run=True, processes=2)
    shown = capsys.readouterr().out
    assert "in each of 2 processes" in shown
    told = re.search(r"a device of (\S+ \S+) \(replicate\) or (\S+ \S+) \(shard\): a tenth", shown)
    assert told is not None, shown
    assert size(round(both.peak_bytes / 0.9)) in told.groups()
    assert 0 < both.peak_bytes < one.peak_bytes
    only_whole = go(
        tiny_recipe(llama_folder, tmp_path / "run", train={"reselect_every": 3}), dry_run=True, processes=2
    )
    shown = capsys.readouterr().out
    assert "train.parallel: shard does not go with train.reselect_every" in shown
    assert only_whole.peak_bytes > 0
    monkeypatch.setattr(parallel, "TORCH", TorchVersion("2.11.0+cu130"))
    go(recipe, dry_run=True, processes=99)
    shown = " ".join(capsys.readouterr().out.split())
    assert "train.parallel: shard needs torch 2.12 or later, and this is 2.11.0+cu130" in shown
    assert "train.batch_size=4 has not a row for each of 99 processes: replicate is refused" in shown


@pytest.mark.parametrize(("how", "has"), [("auto", "2.13.0"), ("auto", "2.11.0"), ("shard", "2.11.0")])
def test_a_model_that_does_not_fit_is_shared_where_this_torch_can(
    how: str, has: str, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "TORCH", TorchVersion(has))
    monkeypatch.setattr(parallel, "memory_of", lambda *_: 1000)
    monkeypatch.setattr(Ranks, "collected", lambda self, value: [value])
    monkeypatch.setattr(Ranks, "shared", lambda self, value: value)
    checked = preflight.check(
        tiny_recipe(llama_folder, tmp_path / "run", train={"parallel": how}), overwrite=False
    )
    if how == "shard":
        with pytest.raises(
            RecipeError, match=r"train\.parallel=shard needs torch 2\.12 or later, and this is"
        ):
            parallel.decide(checked, Ranks(size=2))
        return
    ranks, why = parallel.decide(checked, Ranks(size=2))
    assert ranks.sharded == (has == "2.13.0")
    assert "a step is predicted to take" in why
    assert ("but shard needs torch 2.12 or later, and this is 2.11.0" in why) != ranks.sharded


# ---------------------------------------------------------------------------------------------------
# Stop and go on


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("neuroada", {}),
        ("neuroada", {"packing": True}),
        ("neuroada", {"reselect_every": 3}),
        ("mask", {}),
        ("full", {}),
    ],
)
def test_resume_at_every_step_is_exact(
    method: str, more: dict[str, Any], llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, accumulation, length grouping, warmup, an evaluation in between; stopped by real signals.

    At every step once; else around the evaluation and where connections are chosen anew.
    """
    monkeypatch.setattr(fit, "_draw", undrawn)
    sections = {
        "train": {"method": method, "keep": 100, **more},
        "optim": {"weight_decay": 0.1, "lr": 1e-3},
    }
    whole = go(tiny_recipe(llama_folder, tmp_path / "whole", **sections))
    assert len({loss for _, loss, _ in losses(whole.run_dir)}) == STEPS + 2
    every = range(1, STEPS + 1) if (method, more) == ("neuroada", {}) else (1, 3, 4, 6, 7)
    for number in every:
        recipe = tiny_recipe(llama_folder, tmp_path / f"at-{number}", **sections)
        with monkeypatch.context() as patch:
            stop_in_step(patch, number)
            with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {number} of 12") as caught:
                go(recipe)
        assert caught.value.exit_code == 143
        result = go(recipe, resume=True)
        assert hashes(result.run_dir / "checkpoint-12") == hashes(whole.run_dir / "checkpoint-12")
        assert losses(result.run_dir) == losses(whole.run_dir)
        assert os.readlink(result.run_dir / "best") == os.readlink(whole.run_dir / "best")


def test_stopped_at_every_step_in_turn(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "_draw", undrawn)
    sections = {"train": {"keep": 1}, "model": {"dtype": "bf16"}}
    whole = go(tiny_recipe(llama_folder, tmp_path / "whole", **sections))
    recipe = tiny_recipe(llama_folder, tmp_path / "often", **sections)
    for number in range(1, STEPS + 1):
        with monkeypatch.context() as patch:
            stop_in_step(patch, number, signal.SIGINT)
            with pytest.raises(Stopped) as caught:
                go(recipe, resume=True)
        assert caught.value.exit_code == 130
    result = go(recipe, resume=True)
    assert hashes(result.run_dir / "last") == hashes(whole.run_dir / "last")
    assert losses(result.run_dir) == losses(whole.run_dir)


def test_resume_of_a_classifier_in_bf16(
    bert_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {
        "data": {"task": "rte", "limit": None, "validation_limit": None, "data_dir": str(pairs)},
        "model": {"dtype": "bf16"},
    }
    whole = go(tiny_recipe(bert_folder, tmp_path / "whole", **sections))
    recipe = tiny_recipe(bert_folder, tmp_path / "cut", **sections)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        with pytest.raises(Stopped):
            go(recipe)
    result = go(recipe, resume=True)
    assert hashes(result.run_dir / "last") == hashes(whole.run_dir / "last")


def test_a_broken_newest_checkpoint_is_passed_over(llama_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(llama_folder, tmp_path / "run", train={"save_every": 4, "keep": 9})
    result = go(recipe)
    expected, logged = hashes(result.run_dir / "checkpoint-12"), losses(result.run_dir)
    for name in ("checkpoint-12", "checkpoint-8"):
        file = result.run_dir / name / "state" / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    again = go(recipe, resume=True)
    assert again.steps == STEPS
    assert hashes(again.run_dir / "checkpoint-12") == expected
    assert losses(again.run_dir) == logged

    for checkpoint in result.run_dir.glob("checkpoint-*"):
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(ModelError, match="no checkpoint is intact"):
        go(recipe, resume=True)


def test_resume_clears_what_a_killed_writer_left(llama_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(llama_folder, tmp_path / "run", train={"save_every": 4})
    result = go(recipe)
    pattern = ".checkpoint-99.*"
    script = (  # a real writer, killed in the middle of its folder
        "import os, signal, sys\nfrom neuroada_cli import files\n"
        "with files.atomic_folder(sys.argv[1]) as folder:\n"
        "    files.write_text(folder / 'half', 'x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(result.run_dir / "checkpoint-99")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(result.run_dir.glob(pattern))
    go(recipe, resume=True)
    assert not list(result.run_dir.glob(pattern))
    assert result.last.is_dir()


@pytest.mark.usefixtures("no_model")
def test_one_of_several_ranks_is_refused(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ResourceError, match="one of 4 processes") as caught:
        go(tiny_recipe(llama_folder, tmp_path / "run"))
    assert caught.value.exit_code == 6
    assert not (tmp_path / "run").exists()


def test_resume_of_a_finished_run_changes_nothing(llama_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(llama_folder, tmp_path / "run")
    go(recipe)
    picture = tmp_path / "run" / "training.png"
    before = {name: data for name, data in tree(tmp_path / "run").items() if name != picture.name}
    assert go(recipe, resume=True).steps == STEPS
    after = {name: data for name, data in tree(tmp_path / "run").items() if name != picture.name}
    assert after == before


def test_a_changed_recipe_or_data_is_shown_and_refused(llama_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i} ", "completion": f"<{i}>"} for i in range(24)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {
        "task": "instruct",
        "train": str(file),
        "validation_rows": 4,
        "limit": None,
        "validation_limit": None,
    }
    go(tiny_recipe(llama_folder, tmp_path / "run", data=data))
    before = tree(tmp_path / "run")
    changed = tiny_recipe(llama_folder, tmp_path / "run", data=data, optim={"lr": 5e-3})
    with pytest.raises(
        OutputError, match=r"changed since it was saved \(optim.lr: 0.01 -> 0.005\)"
    ) as caught:
        go(changed, resume=True)
    assert caught.value.exit_code == 7
    file.write_text(file.read_text(encoding="utf-8").replace("<7>", "<seven>"), encoding="utf-8")
    with pytest.raises(OutputError, match="data hash of train"):
        go(tiny_recipe(llama_folder, tmp_path / "run", data=data), resume=True)
    assert tree(tmp_path / "run") == before


def test_a_longer_run_goes_on_as_if_it_had_been_that_long(llama_folder: Path, tmp_path: Path) -> None:
    """Under a constant rate bit for bit; else by the new schedule, when that is wished."""
    constant = {"schedule": "constant", "warmup_ratio": 0.0}

    def recipe(folder: str, steps: int, **optim: Any) -> Recipe:
        train = {"max_steps": steps, "eval_every": 2, "save_every": 2}
        return tiny_recipe(llama_folder, tmp_path / folder, train=train, optim=optim)

    go(recipe("whole", 4, **constant))
    go(recipe("parts", 2, **constant))
    result = go(recipe("parts", 4, **constant), resume=True)
    assert result.steps == 4
    assert hashes(tmp_path / "parts/checkpoint-4") == hashes(tmp_path / "whole/checkpoint-4")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert "max_steps: 4" in (tmp_path / "parts/recipe.yaml").read_text()
    go(recipe("linear", 2))
    with pytest.raises(OutputError, match=r"train.max_steps: 2 -> 3.*optim.schedule=linear"):
        go(recipe("linear", 3), resume=True)
    assert go(recipe("linear", 3), resume=True, extend=True).steps == 3
    with pytest.raises(RecipeError, match="goes on with a run"):
        go(recipe("other", 3), extend=True)


def test_a_run_begins_with_what_an_adapter_has_learnt(llama_folder: Path, tmp_path: Path) -> None:
    """At a rate of nothing it stays; at another it goes on learning from there."""
    constant = {"schedule": "constant", "warmup_ratio": 0.0}

    def recipe(folder: str, rate: float = 1e-2, **train: Any) -> Recipe:
        steps = {"max_steps": 2, "eval_every": 2, "save_every": 2}
        optim = constant | {"lr": rate}
        return tiny_recipe(llama_folder, tmp_path / folder, train=steps | train, optim=optim)

    go(recipe("first"))
    first = tmp_path / "first"
    go(recipe("still", rate=1e-30, start_from=str(first)))
    before = load_file(first / "last" / "adapter_model.safetensors")
    after = load_file(tmp_path / "still" / "last" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-20, rtol=0) for name in before)
    go(recipe("second", start_from=str(first / "checkpoint-2")))
    learnt = load_file(tmp_path / "second" / "last" / "adapter_model.safetensors")
    assert any(not torch.equal(before[name], learnt[name]) for name in before)
    for wrong, told in (
        ({"start_from": str(tmp_path)}, "holds no adapter"),
        ({"start_from": str(first), "method": "mask"}, "trained by neuroada, not mask"),
    ):
        with pytest.raises(ModelError, match=told):
            go(recipe("third", **wrong))
    with pytest.raises(RecipeError, match="is the run's own folder"):
        go(recipe("first", start_from=str(first)), overwrite=True)


def start(recipe: Recipe, *options: str) -> subprocess.Popen[str]:
    file = recipe.run_path.with_suffix(".yaml")
    file.write_text(to_yaml(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "neuroada_cli", "train", str(file), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_steps(run_dir: Path, process: subprocess.Popen[str], count: int = 3) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        file = run_dir / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"no training: {process.communicate()[1]}")


@pytest.mark.slow  # tests/faults/test_kills.py stops trainings by each signal in every run of the tests
def test_sigterm_ends_with_143_and_resumes(llama_folder: Path, tmp_path: Path) -> None:
    long = {"epochs": 50_000, "max_steps": 300_000, "save_every": 200_000, "eval_every": 200_000}
    recipe = tiny_recipe(llama_folder, tmp_path / "run", train=long)
    process = start(recipe)
    wait_for_steps(tmp_path / "run", process)
    other = start(recipe, "--resume")  # while the first one runs
    said = other.communicate(timeout=600)[1]
    assert (other.returncode, f"process {process.pid} on" in said) == (7, True), said
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 143, said
    assert "Traceback" not in said
    stopped = int(re.findall(r"stopped by SIGTERM after step (\d+) of 300000", said)[0])
    assert os.readlink(tmp_path / "run" / "last") == f"checkpoint-{stopped}"
    process = start(recipe, "--resume")
    wait_for_steps(tmp_path / "run", process, stopped + 3)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 130, said
    steps = [e["step"] for e in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))


def test_a_second_interrupt_exits_at_once(llama_folder: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "from neuroada_cli.stopping import Noted\n"
        "with Noted() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert stop.requested == signal.SIGINT\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "    os._exit(1)  # it was to end before\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 130


# ---------------------------------------------------------------------------------------------------
# What is refused, before the model loads and with the folder untouched


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the weights would be a TypeError, not a UserError."""
    monkeypatch.setattr(hub, "load_model", None)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"select": {"k": 33}}, RecipeError, "select.k=33, but .* has 32 inputs; choose 1..32"),
        ({"select": {"targets": ["q_prj"]}}, RecipeError, "q_prj matches no linear .*did you mean q_proj"),
        ({"data": {"task": "due_date"}}, RecipeError, "due_date is not a task; did you mean due_dates"),
        ({"data": {"train": "nowhere/rows"}}, DataError, "nowhere/rows"),
        ({"data": {"max_length": 16}}, DataError, "24 of 24 rows have nothing to learn within .*=16"),
        (
            {"train": {"early_stop": 1}, "data": {"task": "math", "train": "ROWS"}},
            RecipeError,
            "early_stop needs",
        ),
        ({"model": {"path": "nowhere/at-all"}}, ModelError, "nowhere/at-all"),
        ({"select": {"file": "missing.safetensors"}}, ModelError, "missing.safetensors"),
        ({"eval": {"forgetting": "nowhere.txt"}}, DataError, "nowhere.txt: no such data set"),
        ({"eval": {"forgetting": "ROWS"}}, DataError, "8 of 8 rows have no text"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_the_model_loads(
    sections: dict[str, Any], error: type[Exception], message: str, llama_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "1+1?", "output": "2", "answer": "2"}\n' * 8, encoding="utf-8")
    changed = {n: {k: str(rows) if v == "ROWS" else v for k, v in s.items()} for n, s in sections.items()}
    recipe = tiny_recipe(llama_folder, tmp_path / "run", **changed)
    with pytest.raises(error, match=message):
        go(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_rows_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "short", max_position_embeddings=64)
    with pytest.raises(
        RecipeError, match=r"a row has \d+ tokens, but the model takes 64; set data.max_length: 64"
    ):
        go(tiny_recipe(folder, tmp_path / "run"))


@pytest.mark.usefixtures("no_model")
def test_a_folder_in_use_is_left_alone(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("chapter 1", encoding="utf-8")
    with pytest.raises(OutputError, match=r"is not empty \(thesis.txt\)") as caught:
        go(tiny_recipe(llama_folder, tmp_path / "run"))
    assert caught.value.exit_code == 7
    assert tree(tmp_path / "run") == {"thesis.txt": b"chapter 1"}


def test_overwrite_replaces_the_run_and_nothing_else(llama_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(llama_folder, tmp_path / "run", train={"max_steps": 8})
    go(recipe)
    (tmp_path / "run" / "thesis.txt").write_text("chapter 1", encoding="utf-8")
    result = go(
        tiny_recipe(llama_folder, tmp_path / "run", train={"max_steps": 2}, select={"k": 1}), overwrite=True
    )
    assert {p.name for p in result.run_dir.glob("checkpoint-*")} == {"checkpoint-2"}
    assert (tmp_path / "run" / "thesis.txt").read_text(encoding="utf-8") == "chapter 1"
    assert len(losses(result.run_dir)) == 3


def test_nan_keeps_the_last_checkpoint_and_draws_the_picture(llama_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        llama_folder,
        tmp_path / "run",
        optim={"lr": 1e30, "clip": None, "warmup_ratio": 0},
        train={"save_every": 1},
    )
    with pytest.raises(NumericsError, match=r"not finite"):
        go(recipe)
    newest = max(tmp_path.glob("run/checkpoint-*"), key=lambda p: int(p.name[11:]))
    verify_folder(newest)
    assert all(torch.isfinite(t).all() for t in load_file(newest / "adapter_model.safetensors").values())
    assert (tmp_path / "run" / "training.png").exists()


def test_out_of_memory_says_what_to_lower(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*args: Any, **keywords: Any) -> Any:
        torch.empty(1 << 60, dtype=torch.uint8)  # really more than there is

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(
        ResourceError, match=r"micro_batch_size \(now 2\) or data.max_length.*checkpointing"
    ) as caught:
        go(tiny_recipe(llama_folder, tmp_path / "run"))
    assert caught.value.exit_code == 6


def test_a_named_selection_of_another_base_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    from neuroada_cli.commands import select

    other = tiny_llama_folder(tmp_path / "other", initializer_range=0.1)
    file = select.run(tiny_recipe(other, tmp_path / "unused"), out=tmp_path / "s.safetensors", quiet=True)
    with pytest.raises(ModelError, match="is not the base that was selected"):
        go(tiny_recipe(llama_folder, tmp_path / "run"), selection=file)
