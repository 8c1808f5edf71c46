"""Every rank with its own rows of the model: the same training as in one process, in 1/N of the memory."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from forked_ranks import in_ranks, shards, undrawn  # noqa: F401
from tiny_pairs import tiny_pairs_folder
from tiny_run import BYTES, SPECIAL, one_thread, tiny_llama_folder, tiny_recipe, tiny_tokenizer  # noqa: F401

from neuroada_cli import files, hub
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import merge, train
from neuroada_cli.delta import quantized
from neuroada_cli.delta.sharded import sharded_layers
from neuroada_cli.errors import RecipeError, Stopped
from neuroada_cli.hub.sharded import planned_model
from neuroada_cli.loop import loop
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.stopping import Noted
from neuroada_cli.training import fit as fitting
from neuroada_cli.training.log import read_metrics

VOCABULARY = len(SPECIAL) + len(BYTES)
SHARD = {"parallel": "shard"}
pytestmark = [shards, pytest.mark.usefixtures("undrawn")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Without dropout but for one: odd sizes, whole blocks of 64, a tied head, Conv1D."""
    here = tmp_path_factory.mktemp("bases")
    still = {"attention_dropout": 0.0}
    tiny_llama_folder(here / "odd", hidden_size=40, intermediate_size=50, **still)
    tiny_llama_folder(here / "blocks", hidden_size=64, intermediate_size=128, **still)
    tiny_llama_folder(here / "tied", tied=True, **still)
    tiny_llama_folder(here / "dropout")
    gpt2 = pico_gpt2(vocab_size=VOCABULARY, n_positions=256, bos_token_id=1, eos_token_id=2)
    gpt2.save_pretrained(here / "gpt2")
    tiny_tokenizer().save_pretrained(here / "gpt2")
    return {folder.name: folder for folder in here.iterdir()}


def run_in(size: int, recipe: Recipe, **options: Any) -> list[Any]:
    """Train in so many processes; in one of them here. What each said, an error as its code and line."""

    def work(ranks: Ranks) -> Any:
        return {"best": train.run(recipe, quiet=True, ranks=ranks, **options).best_value}

    if size == 1:
        try:
            return [work(ALONE)]
        except Stopped as stopped:
            return [{"code": stopped.exit_code, "line": stopped.line()}]
    return in_ranks(size, recipe.run_path.with_name(f"{recipe.run_path.name}-told"), work)


def losses(run: Path) -> list[tuple[str, int, float]]:
    return [(entry["kind"], entry["step"], entry["loss"]) for entry in read_metrics(run / "metrics.jsonl")]


def assert_same_course(one: Path, other: Path, rtol: float = 1e-6) -> None:
    assert (one / "selection.safetensors").read_bytes() == (other / "selection.safetensors").read_bytes()
    for (*a, loss), (*b, theirs) in zip(losses(one), losses(other), strict=True):
        assert a == b
        assert loss == pytest.approx(theirs, rel=rtol)


@pytest.mark.parametrize(
    ("base", "size", "settings"),
    [
        ("odd", 2, {}),
        ("odd", 4, {"train": {"batch_size": 3, "micro_batch_size": 1}}),  # one without work always
        ("odd", 3, {"train": {"batch_size": 5, "micro_batch_size": 1}}),  # a rank without work at times
        ("odd", 2, {"select": {"k": 3, "neurons": 0.4}, "train": {"gradient_checkpointing": True}}),
        ("odd", 2, {"train": {"packing": True, "micro_batch_size": None}, "optim": {"weight_decay": 0.1}}),
        ("tied", 2, {"select": {"k": 1, "targets": ["q_proj", "up_proj"]}}),
        ("gpt2", 2, {}),
        ("blocks", 2, {"model": {"quantization": "nf4"}}),
        ("blocks", 3, {"model": {"quantization": "nf4"}, "select": {"targets": ["k_proj", "down_proj"]}}),
        ("blocks", 2, {"model": {"quantization": "int8"}}),
    ],
)
def test_losses_and_selection_are_those_of_one_process(
    bases: dict[str, Path], tmp_path: Path, base: str, size: int, settings: dict[str, Any]
) -> None:
    runs = {}
    for count in (1, size):
        values = {
            **settings,
            "train": {"max_steps": 4, "save_every": 2, **SHARD, **settings.get("train", {})},
        }
        recipe = tiny_recipe(bases[base], tmp_path / f"run{count}", **values)
        run_in(count, recipe)
        runs[count] = recipe.run_path
    # bitsandbytes' 8-bit layers compute in bf16, where the order of a sum in fp32 becomes a visible rounding
    rounds = "int8" in str(settings)
    assert_same_course(runs[1], runs[size], rtol=5e-3 if rounds else 1e-6)
    one, other = (read_adapter(runs[count] / "last") for count in (1, size))
    assert one.deltas.keys() == other.deltas.keys()
    for name, delta_OK in one.deltas.items():
        close = {"rtol": 0.5, "atol": 5e-2} if rounds else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(other.deltas[name], delta_OK, **close)
    names = [{file.name for file in (runs[count] / "last").rglob("*")} for count in (1, size)]
    assert names[0] == names[1]


def test_merged_folders_are_equal_within_one_rounding(bases: dict[str, Path], tmp_path: Path) -> None:
    merged = {}
    for size in (1, 2):
        changes = {"max_steps": 3, **SHARD}
        recipe = tiny_recipe(bases["odd"], tmp_path / f"run{size}", train=changes, model={"dtype": "bf16"})
        run_in(size, recipe)
        merge.run(recipe.run_path, tmp_path / f"merged{size}", quiet=True)
        merged[size] = files.read_tensors(tmp_path / f"merged{size}" / "model.safetensors")[0]
    assert merged[1].keys() == merged[2].keys()
    for name, weight in merged[1].items():
        step = torch.finfo(weight.dtype).eps * weight.float().abs()
        assert bool(((weight.float() - merged[2][name].float()).abs() <= step).all())


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to the last rank while it works on that step."""
    original, enter, signals = loop.train_step, Noted.__enter__, []

    def entered(self: Noted) -> Noted:
        signals.append(self)
        return enter(self)

    def step(*given: Any, **named: Any) -> Any:
        stats = original(*given, **named)
        if stats.step == steps and named["ranks"].number == named["ranks"].size - 1:
            signals[-1].requested = 15
        return stats

    monkeypatch.setattr(Noted, "__enter__", entered)
    monkeypatch.setattr(loop, "train_step", step)


def test_going_on_with_other_numbers_of_ranks_and_without_sharding(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_recipe(bases["odd"], tmp_path / "whole")
    run_in(1, whole)
    for size, stop, how in (
        (4, 3, "shard"),
        (2, 5, "shard"),
        (2, 7, "replicate"),
        (1, 9, "auto"),
        (2, None, "shard"),
    ):
        parts = tiny_recipe(bases["odd"], tmp_path / "parts", train={"parallel": how})
        with monkeypatch.context() as stopping:
            if stop is not None:
                stop_after(stop, stopping)
            told = run_in(size, parts, resume=stop != 3)
        assert {each.get("code", 0) for each in told} == {143 if stop is not None else 0}, told
    assert_same_course(whole.run_path, tmp_path / "parts")


def test_going_on_in_as_many_processes_ends_with_the_same_bits(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (
        tiny_recipe(bases["dropout"], tmp_path / name, train=SHARD) for name in ("whole", "parts")
    )
    run_in(2, whole)
    with monkeypatch.context() as stopping:
        stop_after(4, stopping)
        run_in(2, parts)
    run_in(2, parts, resume=True)
    assert losses(whole.run_path) == losses(parts.run_path)
    for name in ("adapter_model.safetensors", "state/optimizer.safetensors", "state/rng.safetensors"):
        one, other = (recipe.run_path / "last" / name for recipe in (whole, parts))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_rank_holds_its_part_of_the_weights_and_no_more(
    bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    quantization: str | None,
) -> None:
    """At most 1 / N of one process's, + 10 % for rows that do not divide; no rank reads more of the files."""
    recipe = tiny_recipe(bases["blocks"], tmp_path / "run", model={"quantization": quantization}, train=SHARD)
    original, read = fitting.train, hub.Weights.tensor

    def measure(model: torch.nn.Module, *given: Any, **named: Any) -> Any:
        held = [p.to_local() for p in model.parameters()]
        held += [layer.base_values for layer in sharded_layers(model).values()]
        raise RecipeError(json.dumps(sum(t.numel() * t.element_size() for t in held)))

    monkeypatch.setattr(fitting, "train", measure)
    assert original is not measure
    assert read is hub.Weights.tensor
    told = run_in(size, recipe)
    held = [int(each["line"].partition(":")[0]) for each in told]
    base = hub.open_base(bases["blocks"])
    whole = 0
    for name in base.weights:
        numel = base.weights.info(name).nbytes // 4
        packed = quantization is not None and ".layers." in name and "norm" not in name
        whole += numel // 2 + numel // 64 * 4 if packed else numel * 4
    deltas = sum(4 * (4 + 4 + 4) * layer.shape[0] for layer in read_all(base).values())
    assert max(held) <= 1.1 * (whole + deltas) / size


def read_all(base: hub.Base) -> dict[str, torch.Tensor]:
    return {n: base.weights.tensor(n) for n in base.weights if ".layers." in n and "norm" not in n}


def test_frozen_weights_that_move_on_one_rank_end_all(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.train_step

    def moving(model: torch.nn.Module, *given: Any, **named: Any) -> Any:
        stats = original(model, *given, **named)
        if named["ranks"].number == 1:
            with torch.no_grad():
                dict(model.named_parameters())["model.norm.weight"].to_local().add_(1e-3)
        return stats

    monkeypatch.setattr(loop, "train_step", moving)
    recipe = tiny_recipe(bases["odd"], tmp_path / "run", train={"save_every": 1, **SHARD})
    told = in_ranks(2, tmp_path / "told", lambda ranks: ended(recipe, ranks))
    assert told[1]["code"] == 5
    assert "frozen weights changed" in told[1]["line"]
    assert told[0]["code"] in (5, 8)
    assert not list(recipe.run_path.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["odd", "dropout"])  # an embedding that choosing hashes, and one it does not
def test_a_number_that_is_none_in_the_rows_of_one_rank_ends_all_before_training(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Where no row of the data meets it."""
    base = tmp_path / "base"
    shutil.copytree(bases[name], base)
    tensors, metadata = files.read_tensors(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][250, 3] = float("nan")
    files.write_tensors(base / "model.safetensors", tensors, metadata)
    told = run_in(2, tiny_recipe(base, tmp_path / "run", train=SHARD))
    assert [each["code"] for each in told] == [4, 4]
    said = sorted(each["line"] for each in told)
    assert re.search(
        r"model\.embed_tokens\.weight(: row 250)? holds NaN or infinity; download it again", said[0]
    )
    assert "has said why" in said[1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def ended(recipe: Recipe, ranks: Ranks) -> Any:
    return train.run(recipe, quiet=True, ranks=ranks)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": {"method": "lora"}}, "does not go with train.method=lora"),
        ({"train": {"reselect_every": 2}}, "does not go with train.reselect_every"),
        ({"select": {"criterion": "gradient"}}, "needs the whole model"),
        ({"model": {"quantization": "nf4"}}, "no whole blocks of 64"),
        (
            {"model": {"quantization": "int8"}, "select": {"targets": ["q_proj"]}},
            "k_proj: is quantised to int8 and not adapted",
        ),
        ({"select": {"targets": ["lm_head"]}}, "lm_head shares its weight with model.embed_tokens.weight"),
    ],
)
def test_what_cannot_be_sharded_is_refused_with_its_reason(
    bases: dict[str, Path], tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    base = bases["tied" if "lm_head" in str(settings) else "odd"]
    values = {**settings, "train": {**SHARD, **settings.get("train", {})}}
    told = run_in(2, tiny_recipe(base, tmp_path / "run", **values))
    assert [each["code"] for each in told] == [2, 2]
    assert said in told[0]["line"] + told[1]["line"]
    assert "train.parallel: replicate" in told[0]["line"] + told[1]["line"]


@pytest.mark.parametrize("kind", quantized.KINDS)
def test_a_sideways_layer_is_not_left_unpacked(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """GPT-2's, which loading packs: sharded and not packed it would train on other weights."""
    recipe = tiny_recipe(bases["gpt2"], tmp_path / "run", model={"quantization": kind}, train=SHARD)
    told = run_in(2, recipe)
    assert [each["code"] for each in told] == [2, 2]
    assert "c_attn is stored sideways" in told[0]["line"] + told[1]["line"]


@pytest.mark.parametrize("kind", quantized.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_packed_by_themselves_are_the_rows_of_the_packed_whole(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight_OI = torch.randn(10, 128) * torch.rand(10, 1) * 3
    packed, scale = quantized.pack(weight_OI, kind, dtype)
    parts = [
        quantized.pack(weight_OI[rows], kind, dtype) for rows in (slice(0, 3), slice(3, 3), slice(3, 10))
    ]
    assert torch.equal(torch.cat([part for part, _ in parts]), packed)
    assert torch.equal(torch.cat([part for _, part in parts]), scale)
    assert (packed.shape, scale.shape) == quantized.packed_shapes(10, 128, kind)
    assert torch.equal(
        quantized.unpack(packed, scale, kind, dtype), quantized.round_trip(weight_OI, kind, dtype)
    )


def test_a_model_on_the_meta_device_has_its_buffers(bases: dict[str, Path]) -> None:
    base = hub.open_base(bases["odd"])
    planned = planned_model(base, torch.bfloat16)
    loaded = hub.load_model(base.folder, "causal-lm", "bf16").model
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert {n: p.dtype for n, p in planned.named_parameters()} == {
        n: p.dtype for n, p in loaded.named_parameters()
    }
    buffers = dict(loaded.named_buffers())
    assert buffers
    for name, buffer in planned.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert pico_llama is not None


def test_layers_that_are_left_out_at_random_are_left_out_by_all(tmp_path: Path) -> None:
    """One that leaves it out by itself does not send its rows, which the other waits for."""
    tiny_pairs_folder(tmp_path / "bart", "bart", encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    recipe = tiny_recipe(tmp_path / "bart", tmp_path / "run", train={"max_steps": 4, **SHARD})
    assert all("best" in told for told in run_in(2, recipe))
