"""Rows of different length, and adapters of other methods, all the way from select to a merged model."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_llama_folder, tiny_recipe
from torch import nn

from neuroada_cli import hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.find import find_adapter
from neuroada_cli.commands import export, merge, select, train
from neuroada_cli.delta.targets import added_apart
from neuroada_cli.errors import ModelError, NumericsError, RecipeError, Stopped
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.file import read_selection
from neuroada_cli.training import preflight
from neuroada_cli.training.checkpoint import RunCheckpoints
from neuroada_cli.training.preflight import check

SPREADS = [
    {"coverage": "model", "criterion": "random", "k": 2},
    {"coverage": "block", "k": 2},
    {"coverage": "matrix", "k": 2},
    {"neurons": 0.5, "k": 2},
    {"k_per": {"q_proj": 3, "*.mlp.*": 0}},
    {"budget": 333},
    {"tile": 8, "budget": 640},
    {"tile": 8, "budget": 640, "criterion": "gradient"},
]
TOKENS_BS = torch.arange(3, 20)[None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


@torch.no_grad()
def logits(target: str | Path, **options: object) -> torch.Tensor:
    return adapted.load(str(target), **options).model(TOKENS_BS).logits  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", SPREADS, ids=lambda c: "-".join(map(str, c)))
def test_every_spread_trains_and_merges(changes: dict[str, object], tmp_path: Path, model: Path) -> None:
    recipe = tiny_recipe(model, tmp_path / "run", select=changes)
    selection = read_selection(select.run(recipe, quiet=True))
    chosen = sum(int((index_OK >= 0).sum()) for index_OK in selection.indices.values())
    if "budget" in changes:
        assert chosen == changes["budget"]
    result = train.run(recipe, quiet=True)
    assert result.trainable == chosen
    out = merge.run(result.run_dir, tmp_path / "merged", quiet=True).out
    tuned_BSV = logits(result.run_dir)
    assert torch.equal(tuned_BSV, logits(out, dtype="fp32"))
    assert not torch.equal(tuned_BSV, logits(model, dtype="fp32"))
    trained = adapters.read_adapter(find_adapter(result.run_dir))
    for name, delta_OK in trained.deltas.items():
        assert not delta_OK[trained.selection.indices[name] < 0].any()


def test_a_model_wide_choice_is_the_largest_weights_of_the_model(tmp_path: Path, model: Path) -> None:
    recipe = tiny_recipe(model, tmp_path / "run", select={"coverage": "model", "k": 2})
    selection = read_selection(select.run(recipe, quiet=True))
    assert selection.criterion == "magnitude per model"
    base = adapted.load(str(model), dtype="fp32").model
    chosen, left = [], []
    for name, index_OK in selection.indices.items():
        weight_OI = base.get_submodule(name).weight.detach().abs()
        mask_OI = torch.zeros_like(weight_OI, dtype=torch.bool)
        for row, columns in enumerate(index_OK.tolist()):
            mask_OI[row, [column for column in columns if column >= 0]] = True
        chosen.append(weight_OI[mask_OI])
        left.append(weight_OI[~mask_OI])
    assert torch.cat(chosen).min() >= torch.cat(left).max()
    rows = sum(len(index_OK) for index_OK in selection.indices.values())
    assert len(torch.cat(chosen)) == 2 * rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_per": {"gate": 1}}, "k_per.gate matches no adapted layer"),
        ({"budget": 10, "neurons": 0.5}, "select.budget spreads evenly"),
        ({"coverage": "model", "tile": 8}, "select.tile chooses in the whole model"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(changes, message, tmp_path, model) -> None:
    with pytest.raises(RecipeError, match=message):
        select.run(tiny_recipe(model, tmp_path / "run", select=changes), quiet=True)
    assert not (tmp_path / "run").exists()


def after(function: Callable[..., None], then: Callable[..., None]) -> Callable[..., None]:
    def both(*arguments: object) -> None:
        function(*arguments)
        then(*arguments)

    return both


@pytest.mark.parametrize("method", ["lora", "dora", "loreft"])
def test_adapters_train_resume_and_merge_or_say_why_not(
    method: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method != "loreft":
        pytest.importorskip("peft")
    whole = tiny_recipe(
        model, tmp_path / "run", train={"method": method, "save_every": 2}, peer={"rank": 2, "dropout": 0.1}
    )
    done = train.run(whole, quiet=True)
    other_run = whole.model_copy(update={"run_dir": str(tmp_path / "again")})
    saves = []

    def stop_after_two(path: Path, *rest: object) -> None:
        saves.append(path)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunCheckpoints, "save", after(RunCheckpoints.save, stop_after_two))
    with pytest.raises(Stopped):
        train.run(other_run, quiet=True)
    monkeypatch.undo()
    again = train.run(other_run, resume=True, quiet=True)
    one, other = (adapters.read_adapter(run.last).whole for run in (done, again) if run.last)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    if method == "loreft":
        assert done.trainable == sum(tensor.numel() for tensor in one.values())
        with pytest.raises(ModelError, match="no plain checkpoint can hold that; use it as it is") as caught:
            merge.run(done.run_dir, tmp_path / "merged", quiet=True)
        assert caught.value.exit_code == 4
        assert not (tmp_path / "merged").exists()
        assert not torch.equal(logits(done.run_dir), logits(model, dtype="fp32"))
        return
    assert any(".lora_B." in name and bool(tensor.any()) for name, tensor in one.items())
    out = merge.run(done.run_dir, tmp_path / "merged", quiet=True).out
    torch.testing.assert_close(logits(out, dtype="fp32"), logits(done.run_dir), rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits(out, dtype="fp32"), logits(model, dtype="fp32"))
    count, card = sum(tensor.numel() for tensor in one.values()), (out / "README.md").read_text("utf-8")
    assert f"{count:,} parameters trained whole, by the baseline method `{method}`" in card
    assert (out / "recipe.yaml").read_bytes() == (done.run_dir / "recipe.yaml").read_bytes()


def test_a_merged_lora_is_rounded_once_and_a_broken_one_is_told(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("peft")
    recipe = tiny_recipe(
        model, tmp_path / "run", train={"method": "lora"}, peer={"rank": 2}, model={"dtype": "bf16"}
    )
    done = train.run(recipe, quiet=True)
    out = merge.run(done.run_dir, tmp_path / "merged", quiet=True).out
    merged, base = load_file(out / "model.safetensors"), load_file(model / "model.safetensors")
    adapter = adapters.read_adapter(find_adapter(done.run_dir))
    twice = 0
    for name in adapter.selection.indices:
        product_OI = 2.0 * (  # alpha is twice the rank
            adapter.whole[f"{name}.lora_B.default.weight"] @ adapter.whole[f"{name}.lora_A.default.weight"]
        )
        weight_OI = base[f"{name}.weight"].bfloat16()
        once_OI = (weight_OI.float() + product_OI).bfloat16()
        assert torch.equal(merged[f"{name}.weight"], once_OI), name
        twice += int((weight_OI + product_OI.bfloat16() != once_OI).sum())
    assert twice, "no entry tells the two ways apart"
    broken = f"{name}.lora_B.default.weight"
    changed = dataclasses.replace(adapter, whole=adapter.whole | {broken: adapter.whole[broken].clone()})
    changed.whole[broken][1] = float("inf")
    with pytest.raises(NumericsError, match=f"{name}, row 1: the merged weight is not finite in bfloat16"):
        adapted.with_merged_layers(changed, "the adapter", hub.open_base(model))


@pytest.mark.parametrize("method", [name for name, facts in METHODS.items() if facts.merged_layers])
def test_a_layer_beside_one_user_of_a_shared_weight_is_refused_where_it_cannot_be_merged(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attached it is a model that no merged one can equal: the embedding would change with the head."""
    pytest.importorskip("peft")
    tied = tiny_llama_folder(tmp_path / "tied", tie_word_embeddings=True)
    apart = tiny_llama_folder(tmp_path / "apart")
    wanted: dict[str, Any] = {
        "select": {"targets": ["all-linear", "lm_head"]},
        "train": {"method": method, "epochs": 1},
        "peer": {"rank": 2},
    }
    with pytest.raises(
        RecipeError, match=r"lm_head and not model.embed_tokens, .* select.exclude: \[lm_head\]"
    ):
        train.run(tiny_recipe(tied, tmp_path / "refused", **wanted), quiet=True)
    assert not (tmp_path / "refused").exists()
    done = train.run(tiny_recipe(apart, tmp_path / "run", **wanted), quiet=True)
    out = merge.run(done.run_dir, tmp_path / "merged", quiet=True).out
    torch.testing.assert_close(logits(out, dtype="fp32"), logits(done.run_dir), rtol=1e-4, atol=1e-5)
    # an adapter that others trained, or an older version of ours
    monkeypatch.setattr(preflight, "added_apart", lambda *_: {})
    run = train.run(tiny_recipe(tied, tmp_path / "older", **wanted), quiet=True).run_dir
    assert not torch.equal(logits(run), logits(tied, dtype="fp32"))
    for refused in (
        lambda out: merge.run(run, out, quiet=True),
        lambda out: export.run(run, out, to="vllm-sparse", quiet=True),
    ):
        with pytest.raises(ModelError, match="no plain checkpoint can hold both; use it as it is"):
            refused(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_module_that_hangs_in_one_place_under_two_names_is_not_apart_from_itself() -> None:
    block, other = nn.ModuleDict({"proj": nn.Linear(4, 4)}), nn.ModuleDict({"proj": nn.Linear(4, 4)})
    model = nn.ModuleDict({"a": block, "b": block, "c": other})
    assert added_apart(model, ["a.proj", "c.proj"]) == {}
    other["proj"].weight = block["proj"].weight
    assert added_apart(model, ["a.proj"]) == {"a.proj": "c.proj"}


def test_an_adapter_of_lora_with_strange_settings_is_refused(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("peft")
    recipe = tiny_recipe(model, tmp_path / "run", train={"method": "lora"}, peer={"rank": 2})
    result = train.run(recipe, quiet=True)
    read = adapters.read_adapter(find_adapter(result.run_dir))
    loaded = adapted.load(str(model), dtype="fp32").model
    read.settings["peer"] = {"rank": 3}
    with pytest.raises(ModelError, match="does not fit its base"):
        adapted.put_on(loaded, read, "here")


def test_smt_trains_every_entry_of_the_tiles_with_the_largest_gradients(tmp_path: Path, model: Path) -> None:
    tiles = {"tile": 8, "budget": 640, "criterion": "gradient"}
    runs = {
        method: train.run(
            tiny_recipe(model, tmp_path / method, select=tiles, train={"method": method, "epochs": 1}),
            quiet=True,
        )
        for method in ("smt", "neuroada")
    }
    read = {method: adapters.read_adapter(run.last) for method, run in runs.items() if run.last}
    found = read["smt"].selection.indices
    assert sum(int((index_OK >= 0).sum()) for index_OK in found.values()) == 640 == runs["smt"].trainable
    assert read["smt"].settings["method"] == "smt"
    for name, delta_OK in read["smt"].deltas.items():  # the same update as ours on the same entries
        assert torch.equal(delta_OK, read["neuroada"].deltas[name])
        for rows_OK in found[name].split(8):
            assert len({tuple(row) for row in rows_OK.tolist()}) == 1, (
                "a tile has the same columns in its rows"
            )
    merged = merge.run(runs["smt"].run_dir, tmp_path / "merged", quiet=True)
    assert torch.equal(logits(merged.out, dtype="fp32"), logits(runs["smt"].run_dir))


def test_smt_without_tiles_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.method=smt trains whole tiles; set select.tile"):
        tiny_recipe(model, tmp_path / "run", train={"method": "smt"})


@pytest.mark.parametrize("tile", [5, 16, 24, 256])
@pytest.mark.parametrize("criterion", ["magnitude", "gradient"])
@pytest.mark.parametrize("method", ["smt", "neuroada"])
def test_tiles_that_divide_no_layer_train_as_the_plan_says(
    tile: int, criterion: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"hidden_size": 40, "intermediate_size": 52, "num_attention_heads": 5, "num_key_value_heads": 1}
    folder = tiny_llama_folder(tmp_path / "llama", head_dim=8, **odd)
    section = {"tile": tile, "k": 10, "criterion": criterion}
    changes = {"max_steps": 1, "epochs": 1, "method": method}
    recipe = tiny_recipe(folder, tmp_path / "run", select=section, train=changes)
    plan = check(recipe, overwrite=False).plan
    selection = read_selection(select.run(recipe))
    for index_OK in selection.indices.values():
        assert index_OK.shape[1] == int((index_OK >= 0).sum(dim=1).max())
    held = sum(int((index_OK >= 0).sum()) for index_OK in selection.indices.values())
    result = train.run(recipe)
    assert result.trainable == held <= plan.trainable
    assert plan.up_to or held == plan.trainable, "what may be less is said to be"
    told = " ".join(capsys.readouterr().err.split())
    assert f"{held:,} of {plan.total:,} parameters train" in told, "the selection is known by then"
    merged = merge.run(result.run_dir, tmp_path / "merged", quiet=True).out
    assert torch.equal(logits(merged, dtype="fp32"), logits(result.run_dir))
