"""The bundled recipes: each parses, names itself, and those of the paper hold the published settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from neuroada_cli.recipe import strict_yaml
from neuroada_cli.recipe.load import bundled_recipes, load_recipe
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.suites.grid import cell
from neuroada_cli.suites.schema import load_suite
from neuroada_cli.tasks.glue import ALL as ALL_OF_GLUE
from neuroada_cli.tasks.registry import get_protocol, get_task

RECIPES = Path(__file__).parents[2] / "recipes"
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
    assert (recipe.train.epochs, recipe.seed) == (3, 42)
    assert (recipe.data.max_length or get_protocol(recipe.data.protocol).max_length) == 512
    assert (recipe.model.dtype, recipe.data.protocol, recipe.eval.batch_size) == ("bf16", "reft", 16)


# ---------------------------------------------------------------------------------------------------
# The peers, with the settings of their own papers

LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
ALL_LINEAR = ("all-linear",)
SMT_CHOICE = {"tile": 256, "criterion": "gradient", "calibration_batches": 100, "budget": 27_197_440}


@dataclass(frozen=True)
class Peer:
    """What a peer's paper sets. warmup: steps, or a share below 1; choice: of `select`, beside targets."""

    method: str
    lr: float
    epochs: int = 3
    batch: int = 16
    warmup: float = 0
    decay: float = 0.0
    rank: int | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ALL_LINEAR
    betas: tuple[float, float] = (0.9, 0.999)
    choice: dict[str, object] = field(default_factory=dict)


def lora(method: str, lr: float) -> Peer:
    return Peer(method, lr, warmup=100, rank=32, dropout=0.05, targets=LORA_LAYERS)


def loreft(epochs: int) -> Peer:
    return Peer("loreft", 9e-4, epochs, batch=32, warmup=0.1, rank=8)


SMT = Peer(
    "smt", 1e-4, targets=("q_proj", "k_proj", "v_proj"), betas=(0.9, 0.95), choice=SMT_CHOICE
)  # fmt: skip
MASK = Peer("mask", 7e-4, warmup=0.06, choice={"k": 20, "criterion": "magnitude"})
PEERS = {
    "llama7b_commonsense_lora": lora("lora", 3e-4),
    "llama2_7b_commonsense_lora": lora("lora", 3e-4),
    "llama3_8b_commonsense_lora": lora("lora", 3e-4),
    "llama7b_math_lora": lora("lora", 3e-4),
    "llama7b_commonsense_dora": lora("dora", 2e-4),
    "llama2_7b_commonsense_dora": lora("dora", 2e-4),
    "llama3_8b_commonsense_dora": lora("dora", 1e-4),
    "llama7b_commonsense_loreft": loreft(6),
    "llama13b_commonsense_loreft": loreft(6),
    "llama2_7b_commonsense_loreft": loreft(6),
    "llama3_8b_commonsense_loreft": loreft(6),
    "llama7b_math_loreft": loreft(12),
    "llama13b_math_loreft": loreft(12),
    "llama7b_gsm8k_loreft": Peer("loreft", 9e-4, 12, 32, decay=0.06, rank=4, dropout=0.05),
    "llama7b_commonsense_smt": SMT,
    "llama7b_commonsense_mask": MASK,
}
# variants of the suite llama7b_peers; those of NeuroAda by its own recipe
SUITE = {
    "neuroada K=20": "llama7b_commonsense",
    "neuroada K=1": "llama7b_commonsense_k1",
    "LoRA r32": "llama7b_commonsense_lora",
    "DoRA r32": "llama7b_commonsense_dora",
    "LoReFT r8": "llama7b_commonsense_loreft",
    "SMT": "llama7b_commonsense_smt",
}


def test_every_recipe_of_a_peer_is_in_the_table() -> None:
    assert {name for name in NAMES if load_recipe(name).train.method != "neuroada"} == set(PEERS)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_its_papers_settings(name: str) -> None:
    recipe, peer = load_recipe(name), PEERS[name]
    model, _, task = name.removesuffix(f"_{peer.method}").rpartition("_")
    assert recipe.model.path == MODELS[model]
    trained_on = {"gsm8k": (None, "gsm8k_cot"), "math": ("math_10k", "math-all")}
    train, scored = trained_on.get(task, ("commonsense_170k", "commonsense-all"))
    assert (recipe.data.train, recipe.eval.tasks) == (train, [scored])
    assert recipe.data.task == (scored if task == "gsm8k" else task)
    assert_is(recipe, peer)


def assert_is(recipe: Recipe, peer: Peer) -> None:
    section, optim, train = recipe.select, recipe.optim, recipe.train
    assert (train.method, tuple(section.targets)) == (peer.method, peer.targets)
    assert (optim.lr, optim.weight_decay, optim.betas) == (peer.lr, peer.decay, peer.betas)
    assert (optim.warmup_steps or optim.warmup_ratio) == peer.warmup
    assert (train.epochs, train.batch_size, optim.schedule) == (peer.epochs, peer.batch, "linear")
    assert {key: getattr(section, key) for key in peer.choice} == peer.choice
    assert (recipe.model.dtype, recipe.data.protocol, recipe.seed) == ("bf16", "reft", 42)
    if peer.rank is None:
        assert recipe.peer is None
        return
    assert recipe.peer is not None
    assert (recipe.peer.rank, recipe.peer.dropout, recipe.peer.positions) == (peer.rank, peer.dropout, 7)
    assert recipe.peer.alpha is None, "that is 2 x rank (tests/methods/test_lora.py)"


def test_the_suite_of_peers_gives_each_what_its_recipe_does() -> None:
    suite = load_suite("llama7b_peers")
    assert list(suite.variants) == list(SUITE)
    for variant, name in SUITE.items():
        found, said = cell(suite, "LLaMA-7B", variant, 42, {}, {}).recipe, load_recipe(name)
        measured = found.eval.model_copy(update={"forgetting": None})  # which a suite alone does
        found = found.model_copy(update={"eval": measured})
        if name in PEERS:
            assert_is(found, PEERS[name])
        same = ("model", "optim", "data", "train", "eval", "peer")
        assert all(getattr(found, key) == getattr(said, key) for key in same), variant
        # adapters go by the targets alone, and the suite's K stays unused
        assert found.select.model_copy(update={"k": said.select.k}) == said.select


@pytest.mark.parametrize("size", ["base", "large"])
def test_roberta_is_trained_alike_in_both_sizes(size: str) -> None:
    """Nothing was published of GLUE, so the settings are only each other's."""
    recipe, base = load_recipe(f"roberta_{size}_rte"), load_recipe("roberta_base_rte")
    assert recipe.model.path == f"FacebookAI/roberta-{size}"
    for key in ("select", "data", "optim", "train", "eval"):
        assert getattr(recipe, key) == getattr(base, key)
    for task in ALL_OF_GLUE:  # as the file's first lines say
        changed = load_recipe(f"roberta_{size}_rte", [f"data.task={task}", f"eval.tasks=[{task}]"])
        assert get_task(changed.data.task).num_labels is not None


def test_all_linear_of_a_llama_is_the_papers_seven_projections(llama: object) -> None:
    from neuroada_cli import hub
    from neuroada_cli.delta.targets import find_targets

    names = find_targets(llama, ["all-linear"], exclude=hub.default_exclude(llama))
    seven = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in names} == seven


def test_every_suite_names_its_schema_and_keeps_to_it() -> None:
    schema = json.loads((RECIPES / "suites" / "suite.schema.json").read_text(encoding="utf-8"))
    for file in sorted((RECIPES / "suites").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# yaml-language-server: $schema=suite.schema.json\n"), file.name
        assert set(strict_yaml.parse(text, file.name)[0]) <= set(schema["properties"]), file.name
