"""Criteria that look at training rows, against the obvious dense way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_run import one_thread, tiny_bert_folder, tiny_llama_folder, tiny_recipe  # noqa: F401
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.commands import select, train
from neuroada_cli.data.batch import IGNORED, Batch, collate
from neuroada_cli.delta.layout import layout_of
from neuroada_cli.delta.targets import find_targets, matrices_of, target_of
from neuroada_cli.errors import NumericsError, RecipeError
from neuroada_cli.loop.loop import Schedule
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection import from_rows
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.criteria import CRITERIA, DATA_CRITERIA, choose, low_rank, top_k_stable
from neuroada_cli.selection.file import read_selection
from neuroada_cli.selection.from_files import LayerChoice
from neuroada_cli.selection.spread import Spread
from neuroada_cli.training.choose import first_batches
from neuroada_cli.training.preflight import check
from neuroada_cli.training.settings import loop_settings

K = 3
MODELS = {"llama": pico_llama, "gpt2": pico_gpt2, "bert": lambda: pico_bert(num_labels=2)}


def batches(kind: str, criterion: str = "gradient") -> list[Batch]:
    """Two, of a whole and a shorter row each; by `activation` one of each row, without its padding."""
    if criterion == "activation":
        return [row for batch in batches(kind) for row in alone(batch)]
    generator = torch.Generator().manual_seed(5)
    made = []
    for length in (9, 6):
        tokens_BS = torch.randint(3, 96, (2, length), generator=generator)
        attention_BS = torch.ones_like(tokens_BS)
        attention_BS[1, length - 2 :] = 0  # padding
        labels = tokens_BS.masked_fill(attention_BS == 0, IGNORED) if kind == "generation" else None
        made.append(
            Batch(tokens_BS, attention_BS, torch.tensor([0, 1]) if labels is None else labels, [0, 1])
        )
    return made


def alone(batch: Batch) -> list[Batch]:
    ends = batch.attention_BS.sum(dim=1).tolist()
    parts = [(slice(row, row + 1), slice(0, end)) for row, end in enumerate(ends)]
    labels_BS = batch.labels_BS
    return [
        Batch(
            batch.tokens_BS[at],
            batch.attention_BS[at],
            labels_BS[at] if labels_BS.ndim == 2 else labels_BS[at[0]],
            [0],
        )
        for at in parts
    ]


def choice(model: nn.Module, names: Sequence[str], criterion: str, spread: Spread | None = None) -> Choice:
    return Choice({name: target_of(model, name) for name in names}, spread or Spread(K), criterion)


def dense_evidence(
    model: nn.Module, names: list[str], kind: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(gradient [O, I] summed over all batches with everything at once, norm [I] of each layer's input)."""
    model.requires_grad_(True)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    rows = batches(kind)
    mask = [rows[0].attention_BS]

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            seen[name].append(x[mask[0].bool()] if x.ndim == 3 else x)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    for batch in rows:
        mask[0] = batch.attention_BS
        LOSSES[kind](model, batch)[0].backward()
    for handle in handles:
        handle.remove()
    modules = {name: model.get_submodule(name) for name in names}
    grads = {n: layout_of(m).rows(m.weight.grad).clone() for n, m in modules.items()}
    norms = {name: torch.cat(parts).norm(dim=0) for name, parts in seen.items()}
    model.zero_grad(set_to_none=True)
    return grads, norms


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("criterion", DATA_CRITERIA)
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_equals_the_dense_way_however_the_layers_are_grouped(name: str, criterion: str, budget: int) -> None:
    model = MODELS[name]().eval()
    kind = "classification" if name == "bert" else "generation"
    names = list(find_targets(model, ["all-linear"], ["classifier" if name == "bert" else "lm_head"]))
    grads, norms = dense_evidence(model, names, kind)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    told: list[LayerChoice] = []
    chosen = from_rows.select_from_rows(
        {}, model, choice(model, names, criterion), batches(kind, criterion), kind, told.append, budget
    )
    for layer in names:
        module = model.get_submodule(layer)
        weight_OI = layout_of(module).rows(module.weight.detach())
        score_OI = {
            "gradient": grads[layer].abs(),
            "snip": (weight_OI * grads[layer]).abs(),
            "gallop": grads[layer].abs() / weight_OI.abs(),
            "activation": weight_OI.abs() * norms[layer],
        }[criterion]
        # nearly equal scores may change places between two ways of adding up
        margin = score_OI.gather(1, chosen.indices[layer].long()).min(dim=1).values
        best = score_OI.gather(1, top_k_stable(score_OI, K).long()).min(dim=1).values
        torch.testing.assert_close(margin, best, rtol=1e-4, atol=1e-7)
    assert [choice.module for choice in told] == names
    assert chosen.criterion == criterion
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters()), "no weight moves"
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("coverage", ["matrix", "block", "model"])
@pytest.mark.parametrize("criterion", DATA_CRITERIA)
def test_weights_of_a_matrix_block_or_model_compete_by_the_dense_score(coverage: str, criterion: str) -> None:
    model = pico_llama().eval()
    names = list(find_targets(model, ["all-linear"], ["lm_head"]))
    grads, norms = dense_evidence(model, names, "generation")
    told: list[LayerChoice] = []
    spread = Spread(K, coverage)  # type: ignore[arg-type]
    chosen = from_rows.select_from_rows(
        {},
        model,
        choice(model, names, criterion, spread),
        batches("generation", criterion),
        "generation",
        told.append,
        1,
    )
    assert {layer.module for layer in told} == set(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        key = {"matrix": name, "block": name.split(".")[2], "model": ""}[coverage]
        groups.setdefault(key, []).append(name)
    for members in groups.values():
        taken, left, total = [], [], 0
        for name in members:
            weight_OI = model.get_submodule(name).weight.detach()
            score_OI = {
                "gradient": grads[name].abs(),
                "snip": (weight_OI * grads[name]).abs(),
                "gallop": grads[name].abs() / weight_OI.abs(),
                "activation": weight_OI.abs() * norms[name],
            }[criterion]
            mask_OI = torch.zeros_like(score_OI, dtype=torch.bool)
            for row, columns in enumerate(chosen.indices[name].tolist()):
                mask_OI[row, [column for column in columns if column >= 0]] = True
            taken.append(score_OI[mask_OI])
            left.append(score_OI[~mask_OI])
            total += K * len(weight_OI)
        assert len(torch.cat(taken)) == total
        assert torch.cat(taken).min() >= torch.cat(left).max() * (1 - 1e-4)


def mask_of(index_OK: Tensor, shape: tuple[int, ...]) -> Tensor:
    mask_OI = torch.zeros(shape, dtype=torch.bool)
    for row, columns in enumerate(index_OK.tolist()):
        mask_OI[row, [column for column in columns if column >= 0]] = True
    return mask_OI


def assert_best_tiles(
    indices: dict[str, Tensor], score_by_layer: dict[str, Tensor], tile: int, wanted: int
) -> None:
    """What was chosen are `wanted` whole tiles, and of all tiles of all layers none left out means more."""
    taken, left = [], []
    for name, score_OI in score_by_layer.items():
        mask_OI = torch.zeros_like(score_OI, dtype=torch.bool)
        if name in indices:
            mask_OI = mask_of(indices[name], score_OI.shape)
        for row in range(0, score_OI.shape[0], tile):
            for column in range(0, score_OI.shape[1], tile):
                part = slice(row, row + tile), slice(column, column + tile)
                assert bool(mask_OI[part].all()) == bool(mask_OI[part].any()), "a tile trains whole or not"
                (taken if mask_OI[part].any() else left).append(score_OI[part].mean())
    assert len(taken) == wanted
    assert min(taken) >= max(left) * (1 - 1e-4)


@pytest.mark.parametrize(("tile", "wanted"), [(8, 10), (10, 6)])
@pytest.mark.parametrize("budget", [1, 1 << 30])
@pytest.mark.parametrize("name", MODELS)
def test_tiles_are_those_of_the_model_with_the_largest_mean_gradient(
    name: str, budget: int, tile: int, wanted: int
) -> None:
    """SMT, against the dense gradients of all layers; 10 divides none, so tiles at the edges are smaller."""
    model = MODELS[name]().eval()
    kind = "classification" if name == "bert" else "generation"
    names = list(find_targets(model, ["all-linear"], ["classifier" if name == "bert" else "lm_head"]))
    grads, _ = dense_evidence(model, names, kind)
    tiles = choice(model, names, "gradient", Spread(tile=tile, budget=640))
    chosen = from_rows.select_from_rows({}, model, tiles, batches(kind), kind, budget=budget)
    assert_best_tiles(chosen.indices, {layer: grad.abs() for layer, grad in grads.items()}, tile, wanted)
    assert len(chosen.indices) > 1
    weights = {layer: layout_of(m).rows(m.weight.detach()).abs() for layer, m in modules_of(model, names)}
    with pytest.raises(AssertionError):
        assert_best_tiles(chosen.indices, weights, tile, wanted)


def modules_of(model: nn.Module, names: list[str]) -> list[tuple[str, nn.Module]]:
    return [(name, model.get_submodule(name)) for name in names]


def test_only_a_group_of_layers_ever_asks_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_llama()
    names = list(find_targets(model, ["all-linear"], ["lm_head"]))
    largest = 4 * max(model.get_submodule(name).weight.numel() for name in names)
    at_once: list[int] = []
    real = LOSSES["generation"]

    def watched(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        at_once.append(4 * sum(p.numel() for p in model.parameters() if p.requires_grad))
        return real(model, batch)

    monkeypatch.setitem(LOSSES, "generation", watched)
    rows = batches("generation")
    from_rows.select_from_rows(
        {}, model, choice(model, names, "gradient"), rows, "generation", budget=largest
    )
    assert 0 < max(at_once) <= largest
    assert len(at_once) == 2 * len(from_rows.groups({n: model.get_submodule(n) for n in names}, largest))


def test_a_gradient_that_is_not_finite_names_the_layer() -> None:
    model = pico_llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    names = list(find_targets(model, ["q_proj"]))
    rows = batches("generation")
    with pytest.raises(NumericsError, match="q_proj: a score is NaN"):
        from_rows.select_from_rows({}, model, choice(model, names, "gradient"), rows, "generation")


# ---------------------------------------------------------------------------------------------------
# LIFT's: magnitude of the low-rank approximation


def spectrum_falls(outputs: int = 40, inputs: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(outputs, outputs, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator))
    return left @ torch.diag(0.7 ** torch.arange(outputs)) @ right[:outputs]


def test_the_low_rank_approximation_is_the_exact_one() -> None:
    weight_OI = spectrum_falls()
    left, values, right = torch.linalg.svd(weight_OI, full_matrices=False)
    exact_OI = (left[:, :5] * values[:5]) @ right[:5]
    torch.testing.assert_close(low_rank(weight_OI, 5), exact_OI, rtol=1e-3, atol=1e-4)
    assert torch.equal(choose(weight_OI, K, "lift", rank=5), choose(low_rank(weight_OI, 5), K))
    assert not torch.equal(choose(weight_OI, K, "lift", rank=5), choose(weight_OI, K))


def test_lift_is_deterministic_leaves_the_stream_alone_and_needs_a_lower_rank() -> None:
    weight_OI = spectrum_falls()
    torch.manual_seed(2)
    first, drawn = low_rank(weight_OI, 4), torch.rand(3)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first, low_rank(weight_OI, 4))
    assert torch.equal(choose(weight_OI, K, "lift", rank=40), choose(weight_OI, K))
    weight_OI[3, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        choose(weight_OI, K, "lift", rank=4)


# ---------------------------------------------------------------------------------------------------
# As a person uses them


@pytest.mark.parametrize("criterion", ["gradient", "activation", "lift"])
def test_train_and_select_choose_alike(
    criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # a real folder has a real fingerprint
    model = tiny_llama_folder(tmp_path / "model")
    section = {"k": 2, "criterion": criterion, "calibration_batches": 3, "lift_rank": 4}
    recipe = tiny_recipe(model, tmp_path / "run", select=section, train={"max_steps": 2, "epochs": 1})
    stored = select.run(recipe, tmp_path / "mine.safetensors", quiet=True)
    train.run(recipe, quiet=True)
    ours = read_selection(tmp_path / "run" / "selection.safetensors")
    theirs = read_selection(stored)
    assert ours.criterion == theirs.criterion == criterion
    assert ours.indices.keys() == theirs.indices.keys()
    assert all(torch.equal(ours.indices[name], theirs.indices[name]) for name in ours.indices)
    plain = select.run(recipe.model_copy(update={"select": recipe.select.model_copy(
        update={"criterion": "magnitude"})}), tmp_path / "plain.safetensors", quiet=True)  # fmt: skip
    magnitude = read_selection(plain)
    assert any(not torch.equal(ours.indices[n], magnitude.indices[n]) for n in ours.indices)


def summed_gradients(recipe: Recipe) -> dict[str, Tensor]:
    """Gradients of the loss of all training rows of a recipe, one row at a time, added up."""
    checked = check(recipe, overwrite=False)
    model = hub.load_model(checked.base.folder, checked.base.task, "fp32").model.eval()
    model.requires_grad_(True)
    for row in checked.rows.data.train:
        LOSSES["generation"](model, collate([row], checked.rows.data.pad_id))[0].backward()
    return {name: model.get_submodule(name).weight.grad for name in checked.choice.targets}


@pytest.mark.parametrize("spread", [{"k": 2}, {"tile": 8, "budget": 640}])
def test_null_batches_are_one_pass_over_all_training_rows(
    spread: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short the run is, and every target counts once, however the rows lie in batches."""
    monkeypatch.undo()
    recipe = tiny_recipe(
        tiny_llama_folder(tmp_path / "model"), tmp_path / "run",
        select={"criterion": "gradient", "calibration_batches": None, **spread},
        train={"max_steps": 1, "micro_batch_size": 4},
    )  # fmt: skip
    chosen = read_selection(select.run(recipe, quiet=True)).indices
    scores = {name: grad_OI.abs() for name, grad_OI in summed_gradients(recipe).items()}
    if "tile" in spread:
        assert_best_tiles(chosen, scores, 8, 10)
        return
    for name, score_OI in scores.items():
        mask_OI = mask_of(chosen[name], score_OI.shape)
        best_O = score_OI.gather(1, top_k_stable(score_OI, 2).long()).sum(dim=1)
        torch.testing.assert_close((score_OI * mask_OI).sum(dim=1), best_O, rtol=1e-4, atol=1e-7)


def test_so_many_batches_are_the_first_that_training_sees(tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_llama_folder(tmp_path / "model"), tmp_path / "run")
    data = check(recipe, overwrite=False).rows.data
    schedule = Schedule(data, loop_settings(recipe))
    seen = [batch.rows for step in range(schedule.total) for batch in schedule.micro_batches(step)]
    assert [batch.rows for batch in first_batches(schedule.micro_batches, schedule, 3)] == seen[:3]
    assert [batch.rows for batch in first_batches(schedule.micro_batches, schedule, 1000)] == seen
    once = [row for batch in first_batches(schedule.micro_batches, schedule, None) for row in batch.rows]
    assert sorted(once) == sorted(row.row for row in data.train)


def test_what_is_refused(tmp_path: Path) -> None:
    model = tiny_llama_folder(tmp_path / "model")
    with pytest.raises(RecipeError, match="needs gradients of weights"):
        tiny_recipe(
            model, tmp_path, select={"criterion": "snip"}, model={"path": str(model), "quantization": "nf4"}
        )
    with pytest.raises(RecipeError) as caught:
        select.run(tiny_recipe(model, tmp_path / "run", select={"criterion": "gradients"}), quiet=True)
    for name in (*CRITERIA, *DATA_CRITERIA):
        assert name in caught.value.line()
    with pytest.raises(RecipeError, match=r"select\.k=9999"):
        select.run(tiny_recipe(model, tmp_path / "run", select={"criterion": "snip", "k": 9999}), quiet=True)


def test_activation_on_a_quantised_base_scores_what_the_layers_compute_with(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    pico_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    quantised = hub.load_model(tmp_path, "causal-lm", "fp32", quantization="nf4").model
    names = list(find_targets(quantised, ["all-linear"], ["lm_head"]))
    dense = pico_llama(hidden_size=64, intermediate_size=128).eval()
    with torch.no_grad():
        for name in names:
            dense.get_submodule(name).weight.copy_(next(matrices_of(target_of(quantised, name)))[1])
    chosen = [
        from_rows.select_from_rows(
            {}, model, choice(model, names, "activation"), batches("generation", "activation"), "generation"
        ).indices
        for model in (quantised, dense)
    ]
    for name in names:
        assert torch.equal(chosen[0][name], chosen[1][name])
