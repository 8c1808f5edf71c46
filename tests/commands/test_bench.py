"""`neuroada bench` as a person runs it, on a shape that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import pico_llama
from tiny_run import tiny_llama_folder, tiny_recipe, tiny_tokenizer

from neuroada_cli.commands import bench
from neuroada_cli.errors import OutputError, RecipeError, UserError
from neuroada_cli.hub.reader import Reader
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.training.rows import prepare

QUICK = {"model": "pico", "batch": 2, "sequence": 16, "rounds": 2, "warmup": 1, "device": "cpu"}


def test_the_table_the_figures_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    peers = ("full", "mask", "lora")  # tests/benchmarking trains every one of them
    bench.run(**QUICK, compare=peers, k=(1, 4), json_out=figures, plot_out=picture, memory_budget=1_000_000)  # type: ignore[arg-type]
    rows = json.loads(figures.read_text())
    assert [row["method"] for row in rows if row["method"] != "neuroada"] == ["floor", "mask", "lora", "full"]
    assert [row["k"] for row in rows if row["method"] == "neuroada"] == [1, 4]
    for row in rows:
        assert {"ratio_to_floor", "samples_per_s", "tokens_per_s", "peak_bytes", "trainable"} <= row.keys()
        assert row["settings"]["batch"] == 2
        assert row["machine"]["versions"]["torch"]
        assert row["largest_batch"] >= 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "neuroada K=4" in shown
    assert "Largest batch within 1.0 MB" in shown
    lines = shown.splitlines()
    assert lines[-2:] == [f"figures in {figures}", f"picture in {picture}"]
    assert max(len(line.rstrip()) for line in lines[:-2]) <= 80


def test_a_cut_model_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(**QUICK, layers=1)  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "1 of 2 blocks" in shown
    assert "weigh more than in the" in shown


def test_a_recipe_gives_model_targets_and_k(tmp_path: Path) -> None:
    pico_llama(vocabulary=300).save_pretrained(tmp_path / "model")
    recipe = recipe_from(
        {
            "name": "mine",
            "model": {"path": str(tmp_path / "model"), "dtype": "bf16"},
            "select": {"k": 3, "targets": ["q_proj", "down_proj"]},
            "data": {"task": "commonsense"},
        }
    )
    result = bench.run(recipe, batch=2, sequence=16, rounds=1, warmup=0, device="cpu", quiet=True)
    assert [(row.method, row.k) for row in result.rows] == [("floor", None), ("neuroada", 3), ("mask", 3)]
    assert result.rows[1].trainable == 3 * 2 * (32 + 32)
    assert (result.settings["dtype"], result.settings["targets"]) == ("bf16", 4)


def test_real_rows_have_their_own_lengths_and_the_prediction_follows(tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_llama_folder(tmp_path / "model"), tmp_path / "run")
    result = bench.run(recipe, batch=3, rounds=1, warmup=0, device="cpu", real_rows=True, quiet=True)
    data = prepare(recipe.data, get_task(recipe.data.task), Reader(tiny_tokenizer()), recipe.seed).data
    assert result.settings["sequence"] == max(len(row) for row in data.train[:3])
    assert result.settings["rows"] not in ("", "random tokens")
    for row in result.rows:
        assert row.predicted_bytes == pytest.approx(row.peak_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"compare": ("maks",)}, RecipeError, "did you mean mask"),
        ({"model": "lama-7b"}, RecipeError, "did you mean llama-7b"),
        ({"layers": 3}, RecipeError, "choose 1..2"),
        ({"sequence": 10**6}, RecipeError, "4096 positions"),
        ({"k": (33,)}, RecipeError, "has 32 inputs"),
        ({"real_rows": True}, RecipeError, "no rows; name a recipe"),
        ({"device": "cuda:99"}, UserError, "cuda:99"),
        ({"json_out": Path("no/such/folder/x.json")}, OutputError, "does not exist"),
        ({"plot_out": Path("x.txt")}, RecipeError, "--plot"),
    ],
)
def test_what_is_refused(changes: dict[str, object], error: type[UserError], words: str) -> None:
    import torch

    if "device" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(error) as caught:
        bench.run(**{**QUICK, **changes}, quiet=True)  # type: ignore[arg-type]
    assert words in caught.value.line()


@pytest.mark.parametrize(
    ("kind", "peers"),
    [("nf4", None), pytest.param("nf4", ("dora",), marks=pytest.mark.slow), ("int8", ("lora", "dora"))],
)
def test_a_quantised_base_is_measured_with_what_trains_on_it(
    kind: str, peers: tuple[str, ...] | None, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    folder = tiny_llama_folder(tmp_path / "model", hidden_size=64, intermediate_size=128)
    recipe = tiny_recipe(folder, tmp_path / "run", model={"dtype": "bf16", "quantization": kind})
    quick = {"batch": 2, "sequence": 16, "rounds": 1, "warmup": 0, "device": "cpu", "quiet": True}
    result = bench.run(recipe, compare=peers, **quick)  # type: ignore[arg-type]
    assert [row.method for row in result.rows] == ["floor", "neuroada", *(peers or ("lora",))]
    packed = 0.5 if kind == "nf4" else 1
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    embeddings = 2 * 259 * 64
    assert {row.weights_bytes for row in result.rows} == {result.rows[0].weights_bytes}
    expected = linear * packed + 2 * embeddings
    assert expected < result.rows[0].weights_bytes < 1.25 * expected  # scales and norms come on top
    assert result.rows[1].trainable == 2 * 2 * (2 * 64 + 2 * 32 + 2 * 128 + 64)
    assert result.rows[1].trainable_share == pytest.approx(
        result.rows[1].trainable / (linear + embeddings + 5 * 64)
    )
    assert all(row.predicted_bytes is None for row in result.rows)
    with pytest.raises(RecipeError, match=r"mask cannot train weights in model\.quantization"):
        bench.run(recipe, compare=("mask",), **quick)  # type: ignore[arg-type]
