"""Selecting: the right connections of the right layers, stored once, refused by name when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from safetensors.torch import load_file, save_file
from tiny_choice import selected
from transformers import LlamaConfig, LlamaForCausalLM

from neuroada_cli import hub
from neuroada_cli.commands import select
from neuroada_cli.commands.select import group_choices
from neuroada_cli.errors import ModelError, OutputError, RecipeError
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.choice import Choice, target_layers
from neuroada_cli.selection.file import read_selection
from neuroada_cli.selection.from_files import LayerChoice
from neuroada_cli.selection.spread import Spread
from neuroada_cli.show.numbers import share


def recipe(base: Path, runs: Path, task: str = "math", **chosen: object) -> Recipe:
    return recipe_from(
        {
            "name": "pico",
            "run_dir": str(runs),
            "model": {"path": str(base)},
            "select": chosen,
            "data": {"task": task},
        }
    )


def saved(model, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize(
    ("build", "task"),
    [(pico_llama, "math"), (pico_gpt2, "math"), (pico_bert, "rte")],
    ids=["llama", "gpt2", "bert"],
)
def test_the_largest_weights_of_every_row(tmp_path: Path, build, task: str) -> None:
    model = build()
    base = saved(model, tmp_path / "base", max_shard_size="20KB")
    out = select.run(recipe(base, tmp_path / "run", task, k=3), quiet=True)
    assert out == tmp_path / "run/selection.safetensors"
    selection = read_selection(out)
    heads = hub.default_exclude(model)
    expected = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"} and name not in heads
    }
    assert set(selection.indices) == set(expected)
    assert (selection.k, selection.criterion) == (3, "magnitude")
    stored = hub.open_weights(base)
    hashes = {name: hub.hash_of(stored.tensor(name)) for name in stored}
    assert selection.fingerprint == hub.fingerprint(base) | {hub.HASHES: hashes}
    for name, module in expected.items():
        weight_OI = module.weight.detach()
        weight_OI = weight_OI.T if build is pico_gpt2 else weight_OI
        best_OK = weight_OI.abs().topk(3, dim=1).indices.sort(dim=1).values
        assert torch.equal(selection.indices[name].long(), best_OK), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("criterion", ["magnitude", "lift"])
def test_a_weight_that_is_no_number_names_its_row(tmp_path: Path, value: float, criterion: str) -> None:
    model = pico_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5, 2] = value
    base = saved(model, tmp_path / "base")
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.up_proj: row 5 holds NaN or infinity; download it"
    ):
        selected(base, criterion=criterion)


def test_a_number_that_is_none_is_told_outside_the_chosen_layers_too(tmp_path: Path) -> None:
    """An embedding that no row looks up trains well, and is refused by the merge at the very end."""
    model = pico_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 2] = float("nan")
    with pytest.raises(ModelError, match=r"embed_tokens\.weight: row 7 holds NaN or infinity; download it"):
        selected(saved(model, tmp_path / "base"))


def test_sharding_does_not_matter(tmp_path: Path) -> None:
    single = saved(pico_llama(), tmp_path / "single")
    parts = saved(pico_llama(), tmp_path / "parts", max_shard_size="20KB")
    for criterion in ("magnitude", "random", "reverse"):
        chosen = [
            read_selection(
                select.run(
                    recipe(base, tmp_path / f"{base.name}-{criterion}", k=2, criterion=criterion), quiet=True
                )
            ).indices
            for base in (single, parts)
        ]
        assert all(torch.equal(chosen[0][name], chosen[1][name]) for name in chosen[0]), criterion


def test_random_follows_the_seed(tmp_path: Path) -> None:
    base = saved(pico_llama(), tmp_path / "base")
    first, again, other = (selected(base, k=2, criterion="random", seed=seed).indices for seed in (1, 1, 2))
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["model.layers.1.self_attn.q_proj"])


def test_targets_and_exclude(tmp_path: Path) -> None:
    base = saved(pico_llama(), tmp_path / "base")
    chosen = {"targets": ["q_proj", "model.layers.*.mlp.*"], "exclude": ["down_proj"], "layers": [1]}
    out = select.run(recipe(base, tmp_path / "run", **chosen), quiet=True)
    assert sorted(read_selection(out).indices) == [
        "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj",
    ]  # fmt: skip


def test_a_tied_head_is_one_selection(tmp_path: Path) -> None:
    base = saved(pico_llama(tied=True), tmp_path / "base")
    out = select.run(recipe(base, tmp_path / "run", targets=["lm_head"]), quiet=True)
    selection = read_selection(out)
    assert list(selection.indices) == ["lm_head"]
    assert "model.embed_tokens" in str(selection.tied["lm_head"])


def test_a_pooler_that_the_files_lack_is_left_out(tmp_path: Path) -> None:
    base = saved(pico_bert(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, base / "model.safetensors")
    out = select.run(recipe(base, tmp_path / "run", "rte"), quiet=True)
    assert not [name for name in read_selection(out).indices if "pooler" in name]
    with pytest.raises(ModelError, match=r"no weight for bert.pooler.dense"):
        select.run(recipe(base, tmp_path / "other", "rte", targets=["bert.pooler.dense"]), quiet=True)


# -- refusing


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"k": 33}, r"select.k=33, but model.layers.0.self_attn.q_proj has 32 inputs; choose 1..32"),
        ({"targets": ["q_prj"]}, "did you mean q_proj"),
        ({"layers": [9]}, "no block 9"),
        ({"criterion": "magnitud"}, r"select.criterion=magnitud .*magnitude"),
        ({"targets": ["q_proj"], "exclude": ["q_proj"]}, "no linear layer"),
        ({"file": "chosen.safetensors"}, r"select.file"),
    ],
)
def test_wrong_settings(tmp_path: Path, chosen: dict[str, object], told: str) -> None:
    base = saved(pico_llama(), tmp_path / "base")
    with pytest.raises(RecipeError, match=told):
        select.run(recipe(base, tmp_path / "run", **chosen), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    base = saved(pico_llama(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj"):
        select.run(recipe(base, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run/selection.safetensors").exists()


def test_packed_and_misshapen_weights(tmp_path: Path) -> None:
    base = saved(pico_llama(), tmp_path / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    for wrong, told in ((torch.zeros(48, 32, dtype=torch.uint8), "uint8"), (torch.zeros(4, 4), "shape")):
        tensors = load_file(base / "model.safetensors")
        tensors[name] = wrong
        save_file(tensors, base / "model.safetensors")
        with pytest.raises(ModelError, match=told):
            select.run(recipe(base, tmp_path / "run"), quiet=True)


def test_an_existing_selection_is_kept(tmp_path: Path) -> None:
    base = saved(pico_llama(), tmp_path / "base")
    out = select.run(recipe(base, tmp_path / "run", k=1), quiet=True)
    before = out.read_bytes()
    with pytest.raises(OutputError):
        select.run(recipe(base, tmp_path / "run", k=2), quiet=True)
    assert out.read_bytes() == before
    select.run(recipe(base, tmp_path / "run", k=2), overwrite=True, quiet=True)
    assert read_selection(out).k == 2


# -- the table


def test_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    base = saved(pico_llama(), tmp_path / "base")
    select.run(recipe(base, tmp_path / "run", k=2))
    shown = capsys.readouterr().out
    total = pico_llama().num_parameters()
    chosen = 2 * 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)  # K, blocks, the rows of the seven projections
    assert f"{chosen:,} of {total:,} parameters train ({100 * chosen / total:.3f} %)" in shown
    for kind in ("q_proj", "gate_proj", "down_proj"):
        assert kind in shown


def test_layers_of_one_name_and_two_shapes_are_two_kinds() -> None:
    def choice(module: str, outputs: int, inputs: int) -> LayerChoice:
        return LayerChoice(module, outputs, inputs, 1, outputs, 0.0, 0.0, 1, 4)

    groups = group_choices(
        [choice("h.0.attn.c_proj", 4, 4), choice("h.0.mlp.c_proj", 4, 16), choice("h.1.attn.c_proj", 4, 4)]
    )
    assert [[c.module for c in group] for group in groups] == [
        ["h.0.attn.c_proj", "h.1.attn.c_proj"], ["h.0.mlp.c_proj"],
    ]  # fmt: skip


def test_llama_7b_has_the_share_of_the_paper(tmp_path: Path) -> None:
    """0.020 % at K=1 and 0.404 % at K=20, from the module graph alone (no weights exist here)."""
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"], hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    base = hub.Base(tmp_path, model, hub.Weights(tmp_path, {}, {}))
    layers = target_layers(base)
    total = sum(parameter.numel() for parameter in base.graph.parameters())
    assert Choice(layers, Spread(1)).connections == 1_359_872
    assert share(Choice(layers, Spread(1)).connections, total) == "0.020 %"
    assert share(Choice(layers, Spread(20)).connections, total) == "0.404 %"
