"""T5 and BART from end to end, against a selection, a training and a merge that share no code with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import BOS, EOS, PAIRS, UNK, tiny_pairs_folder
from tiny_run import one_thread, tiny_recipe  # noqa: F401
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from neuroada_cli.adapter import load as adapted
from neuroada_cli.commands import bench, merge, select, train
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands.train import TrainResult
from neuroada_cli.errors import DataError, ModelError, RecipeError
from neuroada_cli.evaluation.generate import generate
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import read_selection

STEPS, K, RATE = 3, 2, 1e-2


def recipe_of(tmp_path: Path, name: str, **sections: Any) -> Recipe:
    folder = tmp_path / name
    if not folder.exists():
        tiny_pairs_folder(folder, name)
    plain = {"schedule": "constant", "warmup_ratio": 0.0, "clip": None}
    train = {"max_steps": STEPS, "group_by_length": False, "epochs": 1}
    return tiny_recipe(
        folder,
        tmp_path / f"{name}-run",
        **{
            "optim": {**plain, "lr": RATE, **sections.pop("optim", {})},
            "train": {**train, **sections.pop("train", {})},
            "data": {"limit": 12, "validation_limit": 4, **sections.pop("data", {})},
            "eval": {"limit": 4, "max_new_tokens": 6},
            **sections,
        },
    )


@pytest.fixture(params=sorted(PAIRS))
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Recipe, TrainResult]:
    recipe = recipe_of(tmp_path, request.param)
    return request.param, recipe, train.run(recipe, quiet=True)


def chosen_by_hand(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Largest weights of every row of every linear layer, off the file."""
    linear = {
        name: tensor
        for name, tensor in stored.items()
        if tensor.ndim == 2 and not any(word in name for word in ("embed", "shared", "lm_head", "bias"))
    }
    return {name: tensor.abs().topk(K, dim=1).indices.sort(dim=1).values for name, tensor in linear.items()}


def trained_by_hand(recipe: Recipe, indices: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dense weights, transformers' own labels and loss, AdamW."""
    folder = recipe.model.path
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    deltas = {name: torch.zeros(index.shape, requires_grad=True) for name, index in indices.items()}
    optimizer = torch.optim.AdamW(list(deltas.values()), lr=RATE, weight_decay=0.0)
    frozen = {name: p.detach() for name, p in model.named_parameters()}
    for texts in rows_by_step(recipe):
        weights = frozen | {
            name: frozen[name].scatter_add(1, indices[name], delta) for name, delta in deltas.items()
        }
        asked = tokenizer([prompt for prompt, _ in texts])["input_ids"]
        told = tokenizer([answer for _, answer in texts])["input_ids"]
        inputs = {
            "input_ids": padded(asked, UNK),
            "attention_mask": padded([[1] * len(row) for row in asked], 0),
            "labels": padded(told, -100),
        }
        loss = functional_call(model, weights, (), inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: delta.detach() for name, delta in deltas.items()}


def padded(rows: list[list[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def rows_by_step(recipe: Recipe) -> list[list[tuple[str, str]]]:
    """The texts of every step, in the run's order."""
    from neuroada_cli.data.batch import epoch_order
    from neuroada_cli.data.sources import load_rows, take
    from neuroada_cli.tasks.registry import get_task

    rows = load_rows("due_dates", "train").rows
    task = get_task("due_dates")
    kept = [task.example(rows[n], n, "reft") for n in take(rows, recipe.data.limit, recipe.seed)]
    order = epoch_order([1] * len(kept), recipe.train.batch_size, recipe.seed, 0, False)
    return [[(kept[i].prompt, kept[i].target) for i in numbers] for numbers in order[:STEPS]]


def test_selected_trained_and_merged_as_by_hand(
    trained: tuple[str, Recipe, TrainResult], tmp_path: Path
) -> None:
    _, recipe, result = trained
    stored = load_file(Path(recipe.model.path) / "model.safetensors")
    indices = chosen_by_hand(stored)
    adapter = adapted.load(str(result.run_dir)).adapter
    assert adapter is not None
    assert adapter.task == "seq2seq-lm"
    found = adapter.selection.indices
    assert {f"{module}.weight" for module in found} == set(indices)
    assert all(torch.equal(found[module].long(), indices[f"{module}.weight"]) for module in found)

    deltas = trained_by_hand(recipe, indices)
    assert sum(int((delta.abs() > RATE / 2).sum()) for delta in deltas.values()) > 500
    for module, delta in adapter.deltas.items():
        assert_close(delta, deltas[f"{module}.weight"], rtol=5e-2, atol=2e-3)

    merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(merged) == set(stored)
    for tensor, before in stored.items():
        module = tensor.removesuffix(".weight")
        wanted = before
        if module in found:
            wanted = before.clone().scatter_add_(1, found[module].long(), adapter.deltas[module])
        assert torch.equal(merged[tensor], wanted), tensor
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    ours = adapted.load(str(result.run_dir)).model
    inputs = {"input_ids": torch.tensor([[BOS, 9, 8, EOS]]), "decoder_input_ids": torch.tensor([[EOS, 7]])}
    with torch.no_grad():
        assert torch.equal(theirs(**inputs).logits, ours(**inputs).logits)


def test_a_merged_model_answers_as_its_adapter(
    trained: tuple[str, Recipe, TrainResult], tmp_path: Path
) -> None:
    _, _, result = trained
    merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    first, second = (
        evaluate.run(str(place), quiet=True, out=tmp_path / f"eval-{number}").predictions["due_dates"]
        for number, place in enumerate((result.run_dir, tmp_path / "merged"))
    )
    assert first == second
    assert any(prediction.prediction for prediction in first)


@pytest.mark.parametrize("name", PAIRS)
def test_answers_are_those_of_each_prompt_by_itself(name: str, tmp_path: Path) -> None:
    """BART counts its encoder's positions from the left, so padding there would shift them."""
    folder = tiny_pairs_folder(tmp_path / name, name)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = ["When is it due?", "Why?", "It is not due before Monday, is it?"]
    together = generate(model, tokenizer, prompts, 8, batch_size=3)
    for prompt, answer in zip(prompts, together, strict=True):
        asked = tokenizer(prompt, return_tensors="pt")["input_ids"]
        theirs = model.generate(
            asked, max_new_tokens=8, do_sample=False, num_beams=1, forced_eos_token_id=None
        )
        text = tokenizer.decode(theirs[0, 1:], skip_special_tokens=True)
        assert answer == text


def test_parts_are_targets(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "t5", select={"targets": ["decoder"], "exclude": ["o"]})
    result = train.run(recipe, quiet=True)
    adapter = adapted.load(str(result.run_dir)).adapter
    assert adapter is not None
    names = set(adapter.selection.indices)
    assert all(name.startswith("decoder.") for name in names)
    assert {name.rpartition(".")[2] for name in names} == {"q", "k", "v", "wi_0", "wi_1", "wo"}
    other = recipe.model_copy(update={"run_dir": str(tmp_path / "other")})
    other = other.model_copy(update={"select": recipe.select.model_copy(update={"targets": ["vision"]})})
    with pytest.raises(RecipeError, match="vision matches no linear layer"):
        train.run(other, quiet=True)


def test_its_step_is_predicted_and_measured(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "bart")
    planned = train.run(recipe, dry_run=True)
    assert planned.peak_bytes > 0
    rows = bench.run(recipe, compare=(), k=(1,), batch=2, sequence=16, rounds=1, warmup=0, quiet=True).rows
    for row in rows:
        assert row.predicted_bytes == pytest.approx(row.peak_bytes, rel=0.1), row.method


def test_a_step_is_predicted_with_every_layer_where_some_are_left_out_at_random(tmp_path: Path) -> None:
    folder = tiny_pairs_folder(tmp_path / "bart", "bart", encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    dropping = train.run(recipe_of(tmp_path, "bart"), dry_run=True).peak_bytes
    tiny_pairs_folder(folder, "bart")
    assert dropping == train.run(recipe_of(tmp_path, "bart"), dry_run=True).peak_bytes > 0


@pytest.mark.parametrize(
    ("sections", "error", "said"),
    [
        ({"train": {"method": "loreft"}}, RecipeError, "loreft edits a prompt's states in one stack"),
        ({"train": {"packing": True}}, RecipeError, "not rows of a seq2seq-lm"),
        ({"train": {"share_prefix": True}}, RecipeError, "not for a seq2seq-lm"),
        ({"data": {"protocol": "llm-adapters"}}, RecipeError, "llm-adapters learns the prompt"),
        (
            {"data": {"task": "instruct", "train": "rows.jsonl", "learn": "all"}},
            RecipeError,
            "data.learn=all learns the prompt",
        ),
        ({"data": {"max_length": 300}}, RecipeError, None),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(
    tmp_path: Path, sections: dict[str, Any], error: type[Exception], said: str | None
) -> None:
    recipe = recipe_of(tmp_path, "bart", **sections)
    if said is None:
        train.run(recipe, dry_run=True)
        return
    with pytest.raises(error, match=said):
        train.run(recipe, quiet=True)


def test_a_prompt_that_is_longer_than_the_encoder_is_refused(tmp_path: Path) -> None:
    folder = tiny_pairs_folder(tmp_path / "bart", "bart")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with pytest.raises(DataError, match="the longest prompt has 302 tokens, and the encoder takes 256"):
        generate(model, tokenizer, ["x" * 300], 8)
    with pytest.raises(DataError, match="256 new tokens do not fit into the decoder's 256"):
        generate(model, tokenizer, ["x"], 256)


def test_a_model_without_a_start_token_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "t5")
    file = Path(recipe.model.path) / "config.json"
    file.write_text(file.read_text().replace('"decoder_start_token_id": 0', '"decoder_start_token_id": null'))
    with pytest.raises(ModelError, match="names no decoder_start_token_id"):
        train.run(recipe, quiet=True)


@pytest.mark.parametrize("criterion", ["activation", "gradient", "snip"])
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_rows_choose_as_by_hand(name: str, criterion: str, tmp_path: Path) -> None:
    """Inputs and gradients of unpadded rows, one by one, through transformers' own loss."""
    recipe = recipe_of(tmp_path, name, select={"criterion": criterion, "k": K, "calibration_batches": 2})
    found = read_selection(select.run(recipe, quiet=True)).indices
    model = AutoModelForSeq2SeqLM.from_pretrained(recipe.model.path)
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.path)
    inputs: dict[str, Tensor] = {}
    for module in found:
        layer = model.get_submodule(module)
        layer.weight.requires_grad_(True)
        layer.register_forward_pre_hook(
            lambda _, args, module=module: inputs.update(
                {module: inputs.get(module, 0) + args[0].detach().flatten(0, -2).square().sum(dim=0)}
            )
        )
    for prompt, answer in rows_by_step(recipe)[0]:  # two micro-batches of two rows are the first step
        asked, told = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (prompt, answer))
        shifted = torch.cat([torch.tensor([[model.config.decoder_start_token_id]]), told], dim=1)
        logits = model(input_ids=asked, decoder_input_ids=shifted).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, told[0], reduction="sum").backward()
    for module, index_OK in found.items():
        weight_OI = model.get_submodule(module).weight
        score_OI = {
            "activation": weight_OI.abs() * inputs[module].sqrt(),
            "gradient": weight_OI.grad.abs(),
            "snip": (weight_OI * weight_OI.grad).abs(),
        }[criterion]
        chosen = score_OI.gather(1, index_OK.long()).sort(dim=1).values
        assert_close(chosen, score_OI.topk(K, dim=1).values.sort(dim=1).values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_peers_train_it_and_merge(method: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "bart", train={"method": method})
    result = train.run(recipe, quiet=True)
    merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    before, after = (
        load_file(Path(folder) / "model.safetensors") for folder in (recipe.model.path, tmp_path / "merged")
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("model.encoder") for name in changed)
    assert any(name.startswith("model.decoder") for name in changed)
