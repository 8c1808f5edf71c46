"""What two selections have in common, against sets in plain Python; and the command that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.cli.app import main
from neuroada_cli.commands import select
from neuroada_cli.delta.names import block_number
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection import overlap
from neuroada_cli.selection.overlap import Overlap, shared
from neuroada_cli.show.blocks import kinds_of


def test_shared_pairs_are_those_of_the_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(20, 30, generator=generator).topk(4).indices.sort(1).values.int()
    other = torch.rand(20, 30, generator=generator).topk(7).indices.sort(1).values.int()
    expected = sum(len({*a.tolist()} & {*b.tolist()}) for a, b in zip(one, other, strict=True))
    assert 0 < expected == shared(one, other) == shared(other, one)
    assert shared(one, one) == one.numel()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tiny_llama_folder(tmp_path / "model"), tmp_path / "run", select={"k": 3})


def test_criteria_and_files_are_compared(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = select.run(recipe, tmp_path / "mine.safetensors", quiet=True)
    picture = tmp_path / "overlap.png"
    found = select.compare(recipe, ["magnitude", str(stored), "reverse", "activation"], picture)
    assert {entry.share for entry in found[str(stored)]} == {1.0}
    assert all(entry.share == 0.0 for entry in found["reverse"])
    assert all(0 < entry.share <= 1 for entry in found["activation"])
    assert {entry.chance for entry in found["reverse"] if "q_proj" in entry.module} == {3 / 32}
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "down_proj" in shown
    assert "chance" in shown
    assert not (tmp_path / "run").exists(), "a comparison stores nothing"


def entries_of(shares: dict[str, float]) -> list[Overlap]:
    return [Overlap(module, share, 0.1) for module, share in shares.items()]


def test_kinds_are_told_apart_where_their_last_parts_are_the_same() -> None:
    """BERT calls three of its layers `dense`; its pooler lies in no block."""
    block = "bert.encoder.layer"
    shares = {
        f"{block}.0.attention.self.query": 0.1,
        f"{block}.0.attention.output.dense": 0.2,
        f"{block}.0.output.dense": 0.3,
        f"{block}.1.attention.output.dense": 0.4,
        f"{block}.1.output.dense": 0.5,
        "bert.pooler.dense": 0.6,
    }
    kinds = kinds_of(list(shares))
    assert list(dict.fromkeys(kinds.values())) == [
        "query",
        "attention.output.dense",
        "output.dense",
        "bert.pooler.dense",
    ]
    assert block_number("bert.pooler.dense") is None
    by_kind = overlap.table("a", {"b": entries_of(shares)})
    assert dict(zip(*(list(by_kind.columns[n].cells) for n in (0, 1)), strict=True)) == {
        "query": "10.0%",
        "attention.output.dense": "30.0%",
        "output.dense": "40.0%",
        "bert.pooler.dense": "60.0%",
    }
    by_layer = overlap.table("a", {"b": entries_of(shares)}, per_layer=True)
    assert list(by_layer.columns[0].cells) == list(shares)
    assert list(by_layer.columns[1].cells) == [f"{share:.1%}" for share in shares.values()]


def test_every_layer_has_a_cell_of_its_own_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    seen: list[list[list[float]]] = []
    plain = Axes.imshow
    monkeypatch.setattr(
        Axes,
        "imshow",
        lambda axis, grid, **given: (seen.append([list(row) for row in grid]), plain(axis, grid, **given))[1],
    )
    shares = {"h.0.attn.dense": 0.1, "h.0.mlp.dense": 0.2, "h.3.attn.dense": 0.3, "pooler": 0.4}
    overlap.draw("a", {"b": entries_of(shares)}, tmp_path / "x.png")
    values = [value for row in seen[0] for value in row if value == value]
    assert values == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [len(seen[0]), len(seen[0][0])] == [3, 3]  # blocks 0, 3 and outside; two kinds and the pooler


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["magnitude"], "two or more"),
        (["magnitude", "magnitude"], "two or more"),
        (["magnitude", "magnitud"], "is not known"),
    ],
)
def test_names_that_cannot_be_compared(recipe: Recipe, names: list[str], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        select.compare(recipe, names, quiet=True)
    assert words in caught.value.line()


def test_a_selection_of_other_layers_is_named(recipe: Recipe, tmp_path: Path) -> None:
    section = recipe.select.model_copy(update={"targets": ["q_proj"]})
    fewer = recipe.model_copy(update={"select": section})
    stored = select.run(fewer, tmp_path / "fewer.safetensors", quiet=True)
    with pytest.raises(ModelError, match="other layers than the recipe's targets"):
        select.compare(recipe, ["magnitude", str(stored)], quiet=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "x.txt"], "error: --plot: x.txt is no picture"),
        (["--per-layer"], "error: --per-layer: shows a comparison; add --compare"),
        (["--compare", "magnitude,random", "--out", "x"], "error: --out: stores one selection"),
        (["--compare", "magnitude,random", "--plot", "x.txt"], "error: --plot: x.txt is no picture"),
    ],
)
def test_options_that_do_not_go_together(
    recipe: Recipe, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["select", str(file), *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(words)
