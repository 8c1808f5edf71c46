"""ViT, LLaVA, Qwen2.5-VL and SmolVLM from end to end, against selections and trainings of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pictures import WRITERS, pixel_tokenizer, tiny_vit_folder, tiny_writer_folder
from tiny_run import one_thread, tiny_recipe  # noqa: F401
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from neuroada_cli import hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.commands import bench, merge, select, train, validate
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.data.batch import epoch_order
from neuroada_cli.data.images import decoded
from neuroada_cli.data.made_pictures import LABELS
from neuroada_cli.data.sources import load_rows, take
from neuroada_cli.errors import DataError, ModelError, RecipeError
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import read_selection

K, RATE, STEPS = 2, 1e-2, 3


def recipe_of(model: Path, run_dir: Path, task: str, **sections: Any) -> Recipe:
    return tiny_recipe(
        model,
        run_dir,
        data={"task": task, "limit": 12, "validation_limit": 4, **sections.pop("data", {})},
        optim={
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "clip": None,
            "lr": RATE,
            **sections.pop("optim", {}),
        },
        train={"max_steps": STEPS, "group_by_length": False, "epochs": 1, **sections.pop("train", {})},
        eval={"limit": 6, **sections.pop("eval", {})},
        **sections,
    )


def rows_by_step(recipe: Recipe) -> list[list[dict[str, Any]]]:
    rows = load_rows("shapes", "train").rows
    kept = [rows[n] for n in take(rows, recipe.data.limit, recipe.seed)]
    order = epoch_order([1] * len(kept), recipe.train.batch_size, recipe.seed, 0, False)
    return [[kept[at] for at in numbers] for numbers in order[:STEPS]]


def trained_by_hand(
    model: nn.Module, recipe: Recipe, targets: list[str], whole: list[str], loss_of: Callable[..., Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(columns, deltas, what trains whole): largest weights of every row, dense weights, autograd, AdamW."""
    frozen = {name: p.detach() for name, p in model.named_parameters()}
    columns = {n: frozen[f"{n}.weight"].abs().topk(K, dim=1).indices.sort(dim=1).values for n in targets}
    deltas = {name: torch.zeros(index.shape, requires_grad=True) for name, index in columns.items()}
    heads = {name: frozen[name].clone().requires_grad_(True) for name in whole}
    optimizer = torch.optim.AdamW([*deltas.values(), *heads.values()], lr=RATE, weight_decay=0.0)
    for rows in rows_by_step(recipe):
        weights = frozen | heads
        for name, delta in deltas.items():
            weights[f"{name}.weight"] = frozen[f"{name}.weight"].scatter_add(1, columns[name], delta)
        optimizer.zero_grad()
        loss_of(
            lambda weights=weights, **inputs: functional_call(model, weights, (), inputs), rows
        ).backward()
        optimizer.step()
    return columns, {n: d.detach() for n, d in deltas.items()}, {n: h.detach() for n, h in heads.items()}


def assert_trained(run_dir: Path, by_hand: tuple[dict[str, Tensor], ...]) -> None:
    columns, deltas, heads = by_hand
    adapter = adapted.load(str(run_dir)).adapter
    assert adapter is not None
    assert set(adapter.selection.indices) == set(columns)
    for name, index_OK in adapter.selection.indices.items():
        assert torch.equal(index_OK.long(), columns[name]), name
        assert_close(adapter.deltas[name], deltas[name], rtol=5e-2, atol=2e-3)
    assert sum(int((delta.abs() > RATE / 2).sum()) for delta in deltas.values()) > 100
    assert set(adapter.whole) == set(heads)
    for name, tensor in adapter.whole.items():
        assert_close(tensor, heads[name], rtol=1e-3, atol=1e-4)


def assert_merged(run_dir: Path, merged: Path, base: Path, loader: Any) -> None:
    """To the bit the attached model, loaded by transformers alone; what was no target is the base's."""
    attached = adapted.load(str(run_dir))
    assert attached.adapter is not None
    state = loader.from_pretrained(merged).state_dict()
    ours = attached.model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in state.items())
    untouched = loader.from_pretrained(base).state_dict()
    targets = {f"{name}.weight" for name in attached.adapter.selection.indices} | set(attached.adapter.whole)
    assert all(torch.equal(state[name], untouched[name]) for name in state if name not in targets)


# ---------------------------------------------------------------------------------------------------
# Classes of pictures


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return tiny_vit_folder(tmp_path / "vit")


def test_a_vit_as_by_hand(vit: Path, tmp_path: Path) -> None:
    recipe = recipe_of(vit, tmp_path / "run", "shapes")
    result = train.run(recipe, quiet=True)
    base = hub.load_model(vit, "image-classification", "fp32", num_labels=9, seed=recipe.seed).model
    processor = AutoImageProcessor.from_pretrained(vit)

    def loss_of(model: Callable[..., Any], rows: list[dict[str, Any]]) -> Tensor:
        pixels = processor([decoded(row["image"]) for row in rows], return_tensors="pt")["pixel_values"]
        return model(
            pixel_values=pixels, labels=torch.tensor([LABELS.index(row["label"]) for row in rows])
        ).loss

    targets = [n for n, m in base.named_modules() if isinstance(m, nn.Linear) and n != "classifier"]
    assert len(targets) == 12
    by_hand = trained_by_hand(base, recipe, targets, ["classifier.weight", "classifier.bias"], loss_of)
    assert_trained(result.run_dir, by_hand)
    merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    assert_merged(result.run_dir, tmp_path / "merged", vit, AutoModelForImageClassification)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]
    assert list(config["id2label"].values()) == list(LABELS)
    assert "pipeline_tag: image-classification" in (tmp_path / "merged" / "README.md").read_text()

    found = evaluate.run(str(result.run_dir), quiet=True).predictions["shapes"]
    again = evaluate.run(str(tmp_path / "merged"), quiet=True).predictions["shapes"]
    assert found == again
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    for row, prediction in zip(load_rows("shapes", "test").rows, found, strict=False):
        pixels = processor(decoded(row["image"]), return_tensors="pt")["pixel_values"]
        assert int(theirs(pixels).logits.argmax()) == int(prediction.prediction)
        assert prediction.reference == str(LABELS.index(row["label"]))


def test_a_tiny_vit_really_learns(vit: Path, tmp_path: Path) -> None:
    """Nine classes: chance is 11 %. Held-out pictures, a random encoder of which 8 of 32 inputs train."""
    recipe = recipe_of(
        vit,
        tmp_path / "run",
        "shapes",
        data={"limit": 240, "validation_limit": 150},
        train={
            "epochs": 4,
            "max_steps": None,
            "batch_size": 16,
            "micro_batch_size": None,
            "eval_every": 1000,
        },
        optim={"lr": 2e-2, "schedule": "cosine", "clip": 1.0},
        select={"k": 8},
    )
    result = train.run(recipe, quiet=True)
    assert result.best_value is not None
    assert result.best_value > 0.35


def test_its_step_is_predicted_and_measured(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(vit, tmp_path / "run", "shapes")
    planned = train.run(recipe, dry_run=True)
    told = capsys.readouterr()
    assert planned.peak_bytes > 0
    assert "Predicted memory: 2 pictures, an estimate" in told.out
    assert "12 rows from shapes (train, made by neuroada); a picture each" in told.err
    validate.run(recipe)
    assert "K=2 by magnitude in 12 layers" in capsys.readouterr().out
    rows = bench.run(recipe, compare=(), k=(1,), batch=2, rounds=1, warmup=0, quiet=True).rows
    for row in rows:
        assert row.predicted_bytes == pytest.approx(row.peak_bytes, rel=0.1), row.method


@pytest.mark.parametrize("criterion", ["gradient", "activation"])
def test_pictures_choose_connections(vit: Path, tmp_path: Path, criterion: str) -> None:
    recipe = recipe_of(
        vit, tmp_path / "run", "shapes", select={"criterion": criterion, "calibration_batches": 2}
    )
    found = read_selection(select.run(recipe, quiet=True)).indices
    model = hub.load_model(vit, "image-classification", "fp32", num_labels=9, seed=recipe.seed).model
    processor = AutoImageProcessor.from_pretrained(vit)
    inputs: dict[str, Tensor] = {}
    for name in found:
        layer = model.get_submodule(name)
        layer.weight.requires_grad_(True)
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.update(
                {name: inputs.get(name, 0) + args[0].detach().flatten(0, -2).square().sum(dim=0)}
            )
        )
    for row in rows_by_step(recipe)[0]:  # two micro-batches of two rows are the first step
        pixels = processor(decoded(row["image"]), return_tensors="pt")["pixel_values"]
        model(pixels, labels=torch.tensor([LABELS.index(row["label"])])).loss.backward()
    for name, index_OK in found.items():
        weight_OI = model.get_submodule(name).weight
        score_OI = weight_OI.grad.abs() if criterion == "gradient" else weight_OI.abs() * inputs[name].sqrt()
        chosen = score_OI.gather(1, index_OK.long()).sort(dim=1).values
        assert_close(chosen, score_OI.topk(K, dim=1).values.sort(dim=1).values, rtol=1e-3, atol=1e-6)


def test_pictures_of_ones_own_in_class_folders(vit: Path, tmp_path: Path) -> None:
    for number, row in enumerate(load_rows("shapes", "train").rows[:24]):
        colour = row["label"].split()[0]
        file = tmp_path / "colours" / ("test" if number % 4 == 0 else "train") / colour / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"])
    data = {
        "labels": ["blue", "green", "red"], "train": str(tmp_path / "colours"), "limit": None,
        "validation": f"{tmp_path}/colours:test", "validation_limit": None,
    }  # fmt: skip
    recipe = recipe_of(vit, tmp_path / "run", "image_classes", data=data)
    result = train.run(recipe, quiet=True)
    found = evaluate.run(str(result.run_dir), quiet=True)
    assert found.results["image_classes"].n == 6
    merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert theirs.config.id2label == {0: "blue", 1: "green", 2: "red"}
    with pytest.raises(RecipeError, match=r"data\.labels names fewer than two"):
        train.run(recipe_of(vit, tmp_path / "x", "image_classes", data=data | {"labels": []}), quiet=True)
    few = data | {"labels": ["blue", "green"]}
    with pytest.raises(DataError, match=r"label 'red' is none of the 2"):
        train.run(recipe_of(vit, tmp_path / "x", "image_classes", data=few), quiet=True)


def test_what_does_not_go_with_pictures_is_told(vit: Path, tmp_path: Path) -> None:
    for section, said in (
        ({"train": {"method": "loreft"}}, "loreft edits a prompt's states in one stack"),
        ({"train": {"packing": True}}, r"train\.packing is for tasks that generate"),
    ):
        with pytest.raises(RecipeError, match=said):
            train.run(recipe_of(vit, tmp_path / "run", "shapes", **section), quiet=True)
    with pytest.raises(ModelError, match="vit looks at pictures"):
        train.run(recipe_of(vit, tmp_path / "run", "due_dates"), quiet=True)
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json, so nobody can tell how it sees"):
        train.run(recipe_of(vit, tmp_path / "run", "shapes"), quiet=True)


# ---------------------------------------------------------------------------------------------------
# Answers about pictures

LANGUAGE = {
    "llava": "model.language_model.",
    "paligemma": "model.language_model.",
    "qwen2_5_vl": "model.language_model.",
    "smolvlm": "model.text_model.",
}


@pytest.fixture(params=sorted(WRITERS))
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    return request.param, tiny_writer_folder(tmp_path / request.param, request.param)


def test_a_writer_as_by_hand(writer: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = writer
    recipe = recipe_of(folder, tmp_path / "run", "shapes_vqa", eval={"max_new_tokens": 6})
    result = train.run(recipe, quiet=True)
    base = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = pixel_tokenizer()
    processor = hub.load_reader(folder, "image-text-to-text", pictures=True).processor

    def asked(row: dict[str, Any]) -> str:
        talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}]
        return tokenizer.apply_chat_template(
            talk, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
        )

    def loss_of(model: Callable[..., Any], rows: list[dict[str, Any]]) -> Tensor:
        """transformers' loss of each row alone, times its targets, over all of them."""
        total, targets = torch.zeros(()), 0
        for row in rows:
            answer, given = f"{row['answer']}<end_of_utterance>", {"text": [asked(row)]}
            if name == "paligemma":  # it takes the answer apart and ends it
                given["suffix"] = [answer]
            else:
                given["text"][0] += f"{answer}</s>"
            inputs = dict(processor(**given, images=[[decoded(row["image"])]], return_tensors="pt"))
            inputs.pop("labels", None)
            count = len(tokenizer(row["answer"], add_special_tokens=False)["input_ids"]) + 2
            labels = inputs["input_ids"].clone()
            labels[:, :-count] = -100
            total, targets = total + count * model(**inputs, labels=labels).loss, targets + count
        return total / targets

    targets = [
        n for n, m in base.named_modules() if isinstance(m, nn.Linear) and n.startswith(LANGUAGE[name])
    ]
    assert len(targets) == 14
    assert_trained(result.run_dir, trained_by_hand(base, recipe, targets, [], loss_of))
    merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    assert_merged(result.run_dir, tmp_path / "merged", folder, AutoModelForImageTextToText)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "merged"))
    assert set(before) == set(after)
    assert sum(not torch.equal(after[n], before[n]) for n in before) == 14
    for file in ("processor_config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / file).read_bytes() == (folder / file).read_bytes()

    found = evaluate.run(str(result.run_dir), quiet=True).predictions["shapes_vqa"]
    again = evaluate.run(str(tmp_path / "merged"), quiet=True).predictions["shapes_vqa"]
    assert found == again
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    for row, prediction in zip(load_rows("shapes", "test").rows, found, strict=False):
        inputs = processor(text=[asked(row)], images=[[decoded(row["image"])]], return_tensors="pt")
        out = theirs.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
        written = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :]).partition("</s>")[0]
        assert prediction.prediction == written.partition("<end_of_utterance>")[0]


def test_parts_are_targets(writer: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = writer
    inside = {
        "llava": {"vision": "model.vision_tower.", "projector": "model.multi_modal_projector."},
        "paligemma": {"vision": "model.vision_tower.", "projector": "model.multi_modal_projector."},
        "qwen2_5_vl": {"vision": "model.visual.blocks.", "projector": "model.visual.merger."},
        "smolvlm": {"vision": "model.vision_model.", "projector": "model.connector."},
    }[name]
    linear = {n for n, m in WRITERS[name]().named_modules() if isinstance(m, nn.Linear)}
    for part, module in inside.items():
        recipe = recipe_of(folder, tmp_path / part, "shapes_vqa", select={"targets": [part]})
        found = set(read_selection(select.run(recipe, quiet=True)).indices)
        # LLaVA reads the states before the last block, PaliGemma those before SigLIP's pooling
        dead = ("model.vision_tower.encoder.layers.2.", "model.vision_tower.head.")
        assert found == {n for n in linear if n.startswith(module) and not n.startswith(dead)}, part
        assert found
    language = {n for n in linear if n.startswith(LANGUAGE[name])}
    for targets in (["all-linear"], ["language"]):
        recipe = recipe_of(folder, tmp_path / targets[0], "shapes_vqa", select={"targets": targets})
        assert set(read_selection(select.run(recipe, quiet=True)).indices) == language


def test_all_parts_train_merge_and_answer(writer: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = writer
    parts = ["language", "vision", "projector"]
    recipe = recipe_of(folder, tmp_path / "run", "shapes_vqa", select={"targets": parts})
    result = train.run(recipe, quiet=True)
    merge.run(result.run_dir, tmp_path / "merged", quiet=True)
    assert_merged(result.run_dir, tmp_path / "merged", folder, AutoModelForImageTextToText)
    subject = adapted.load(str(result.run_dir))
    assert subject.adapter is not None
    still = [name for name, delta in subject.adapter.deltas.items() if not delta.any()]
    assert not still
    found = evaluate.run(str(result.run_dir), quiet=True)
    assert found.results["shapes_vqa"].metric == "vqa_accuracy"
    assert found.results["shapes_vqa"].leaked == 0


def test_a_writer_is_planned_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_writer_folder(tmp_path / "llava", "llava")
    recipe = recipe_of(folder, tmp_path / "run", "shapes_vqa")
    assert train.run(recipe, dry_run=True).peak_bytes > 0
    told = capsys.readouterr().out
    assert "tokens, at least" in told
    assert "the pass over the pictures themselves comes on top" in told
    seeing = recipe_of(folder, tmp_path / "run", "shapes_vqa", select={"targets": ["vision"]})
    train.run(seeing, dry_run=True)
    told = " ".join(capsys.readouterr().out.split())
    assert "is not predicted: the pass over pictures cannot be gone through without numbers" in told
    rows = bench.run(recipe, compare=(), k=(1,), batch=2, rounds=1, warmup=0, quiet=True).rows
    assert [row.method for row in rows] == ["floor", "neuroada"]


def test_a_writer_of_texts_alone(tmp_path: Path) -> None:
    """A model that writes about pictures learns from texts, too; its template and processor are not asked."""
    folder = tiny_writer_folder(tmp_path / "llava", "llava")
    (folder / "preprocessor_config.json").unlink()
    recipe = recipe_of(folder, tmp_path / "run", "due_dates", eval={"max_new_tokens": 4})
    result = train.run(recipe, quiet=True)
    assert evaluate.run(str(result.run_dir), quiet=True).results["due_dates"].n == 6
