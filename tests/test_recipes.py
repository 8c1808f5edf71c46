"""The bundled recipes: each parses, names itself, and those of the paper hold the published settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroada_cli.recipe import Recipe, bundled_recipes, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))

# Published for LLaMA-7B: K, lr, batch, micro batch, warmup, weight decay.
PUBLISHED = {
    "commonsense": (20, 7e-4, 16, 16, 0.06, 0.0),
    "commonsense_k1": (1, 8e-3, 8, 8, 0.1, 0.0),
    "math": (20, 3e-3, 8, 2, 0.0, 0.1),
    "math_k1": (1, 9e-3, 16, 2, 0.06, 0.0),
}
MODELS = {
    "llama7b": "yahma/llama-7b-hf",
    "llama13b": "yahma/llama-13b-hf",
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
}


def test_they_are_found_by_name() -> None:
    assert list(bundled_recipes()) == NAMES
    assert {"quickstart", "commonsense15k", "math10k", "minilm_rte", "roberta_base_rte"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_parses_and_names_itself(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert len(recipe.description) < 110


@pytest.mark.parametrize("name", NAMES)
def test_none_repeats_a_default(name: str) -> None:
    """A recipe says only what differs; the published settings are said in full, whatever the defaults."""
    import yaml

    said = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    kept = {
        ("optim", "lr"), ("train", "epochs"), ("train", "batch_size"), ("select", "k"), ("peer", "rank"),
    }  # fmt: skip
    for section, values in said.items():
        if isinstance(values, dict):
            fields = type(getattr(load_recipe(name), section)).model_fields
            for key, value in values.items():
                assert (section, key) in kept or value != fields[key].default, f"{section}.{key}"


@pytest.mark.parametrize("task", PUBLISHED)
@pytest.mark.parametrize("model", MODELS)
def test_the_papers_settings(model: str, task: str) -> None:
    recipe = load_recipe(f"{model}_{task}")
    k, lr, batch, micro, warmup, decay = PUBLISHED[task]
    assert recipe.model.path == MODELS[model]
    assert (recipe.select.k, recipe.optim.lr) == (k, lr)
    assert (recipe.train.batch_size, recipe.train.micro_batch_size or recipe.train.batch_size) == (
        batch,
        micro,
    )
    assert (recipe.optim.warmup_ratio, recipe.optim.weight_decay) == (warmup, decay)
    common(recipe)


def common(recipe: Recipe) -> None:
    """What the paper's runs share."""
    assert recipe.select.criterion == "magnitude"
    assert recipe.select.targets == ["all-linear"]
    assert recipe.optim.schedule == "linear"
    assert (recipe.optim.betas, recipe.optim.eps, recipe.optim.clip) == ((0.9, 0.999), 1e-8, 1.0)
    assert (recipe.train.epochs, recipe.seed, recipe.data.max_length) == (3, 42, 512)
    assert (recipe.model.dtype, recipe.data.protocol, recipe.eval.batch_size) == ("bf16", "reft", 16)


def test_all_linear_of_a_llama_is_the_papers_seven_projections(llama: object) -> None:
    from neuroada_cli import hub
    from neuroada_cli.delta.model import find_targets

    names = find_targets(llama, ["all-linear"], exclude=hub.default_exclude(llama))
    seven = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in names} == seven
