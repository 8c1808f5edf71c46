"""Sums of adapters: an oracle in dense matrices; exact where supports are disjoint; refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_llama
from safetensors.torch import load_file
from tiny_choice import selected
from tiny_merge import write_tiny_adapter
from torch import Tensor

from neuroada_cli import files
from neuroada_cli.adapter.folder import Adapter, write_adapter
from neuroada_cli.cli import app
from neuroada_cli.commands import merge
from neuroada_cli.errors import ModelError, NumericsError, RecipeError
from neuroada_cli.merging.several import combine
from neuroada_cli.selection.file import Selection


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "base"
    pico_llama().save_pretrained(folder)
    return folder


def adapter_of(folder: Path, base: Path, selection: Selection, seed: int, **settings: object) -> Adapter:
    chance = torch.Generator().manual_seed(seed)
    deltas = {
        name: torch.randn(index_OK.shape, generator=chance) * (index_OK >= 0)
        for name, index_OK in selection.indices.items()
    }
    adapter = Adapter(selection, deltas, {}, str(base), None, "causal-lm", {"dtype": "fp32"} | settings)
    with files.atomic_folder(folder, overwrite=True) as temporary:
        write_adapter(temporary, adapter)
    return adapter


def dense(adapter: Adapter, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every delta as a matrix, the slow and obvious way."""
    found = {}
    for module, index_OK in adapter.selection.indices.items():
        delta_OI = torch.zeros(weights[f"{module}.weight"].shape)
        for row, columns in enumerate(index_OK.tolist()):
            for place, column in enumerate(columns):
                if column >= 0:
                    delta_OI[row, column] = adapter.deltas[module][row, place]
        found[f"{module}.weight"] = delta_OI
    return found


def halves(selection: Selection) -> tuple[Selection, Selection]:
    """Two selections without a connection in common: the columns of each row in turn."""
    return tuple(  # type: ignore[return-value]
        dataclasses.replace(
            selection, k=2, indices={n: i[:, part::2].contiguous() for n, i in selection.indices.items()}
        )
        for part in (0, 1)
    )


def test_disjoint_adapters_add_exactly(base: Path, tmp_path: Path) -> None:
    """As if they had been merged one after the other, bit for bit, in any order."""
    one, two = halves(selected(base, k=4))
    adapter_of(tmp_path / "one", base, one, 1)
    adapter_of(tmp_path / "two", base, two, 2)
    pair = [tmp_path / "one", tmp_path / "two"]
    merge.run(pair, tmp_path / "both", weights=[1, 1], quiet=True)
    merge.run(pair[::-1], tmp_path / "turned", weights=[1, 1], quiet=True)
    merge.run(pair[0], tmp_path / "first", quiet=True)
    before, first = load_file(base / "model.safetensors"), load_file(tmp_path / "first" / "model.safetensors")
    both, turned = (load_file(tmp_path / n / "model.safetensors") for n in ("both", "turned"))
    merge.run(pair[1], tmp_path / "second", quiet=True)
    second = load_file(tmp_path / "second" / "model.safetensors")
    for name, weight in both.items():
        assert torch.equal(weight, turned[name])
        assert torch.equal(weight, torch.where(first[name] != before[name], first[name], second[name]))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.5), (-0.25, 2.0), (1.0, -1.0)])
def test_overlaps_are_summed_before_they_are_rounded(
    base: Path, tmp_path: Path, weights: tuple[float, float]
) -> None:
    before = load_file(base / "model.safetensors")
    one = adapter_of(tmp_path / "one", base, selected(base, k=3), 1)
    two = adapter_of(tmp_path / "two", base, selected(base, criterion="random", k=5), 2)
    found, overlap = combine([("one", one), ("two", two)], weights)
    added = {name: weights[0] * delta for name, delta in dense(one, before).items()}
    for name, delta in dense(two, before).items():
        added[name] = added[name] + weights[1] * delta
    places = [(dense(a, before)) for a in (one, two)]
    shared = {name: (places[0][name] != 0) & (places[1][name] != 0) for name in places[0]}
    assert overlap.shared == sum(int(each.sum()) for each in shared.values()) > 0
    opposed = {
        name: shared[name] & ((weights[0] * places[0][name]) * (weights[1] * places[1][name]) < 0)
        for name in shared
    }
    assert overlap.opposed == sum(int(each.sum()) for each in opposed.values())
    assert overlap.connections == one.selection.connections + two.selection.connections - overlap.shared
    for name, delta_OI in dense(found, before).items():
        assert torch.equal(delta_OI, added[name])
    result = merge.run([tmp_path / "one", tmp_path / "two"], tmp_path / "out", weights=weights, quiet=True)
    merged = load_file(result.out / "model.safetensors")
    for name, weight in merged.items():
        assert torch.equal(weight, before[name] + added[name] if name in added else before[name])


def test_an_adapter_less_itself_is_nothing(base: Path, tmp_path: Path) -> None:
    adapter_of(tmp_path / "one", base, selected(base, k=2), 1)
    with pytest.raises((ModelError, NumericsError), match=r"zero|no weight changes"):
        merge.run([tmp_path / "one"] * 2, tmp_path / "out", weights=[1, -1], quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_chain_of_bases(base: Path, tmp_path: Path) -> None:
    """An adapter of a merged model merges onto that one; onto the first base, or in a sum, it is refused."""
    adapter_of(tmp_path / "one", base, selected(base, k=2), 1)
    merge.run(tmp_path / "one", tmp_path / "middle", quiet=True)
    adapter_of(tmp_path / "two", tmp_path / "middle", selected(tmp_path / "middle", k=2), 2)
    merge.run(tmp_path / "two", tmp_path / "end", quiet=True)
    assert (tmp_path / "end" / "model.safetensors").is_file()
    with pytest.raises(ModelError, match="another base than the first adapter"):
        merge.run([tmp_path / "one", tmp_path / "two"], tmp_path / "sum", weights=[1, 1], quiet=True)


def test_what_cannot_be_added_is_refused(base: Path, tmp_path: Path) -> None:
    selection = selected(base, k=2)
    one = adapter_of(tmp_path / "one", base, selection, 1)
    head = dataclasses.replace(one, whole={"lm_head.bias": torch.ones(96)})
    for other, why in (
        (dataclasses.replace(one, settings={"dtype": "bf16"}), "dtype bf16"),
        (dataclasses.replace(one, settings={"dtype": "fp32", "method": "lora"}), "trained by lora"),
        (dataclasses.replace(one, task="sequence-classification"), "for sequence-classification"),
    ):
        with pytest.raises(ModelError, match=why):
            combine([("a", one), ("b", other)], [1, 1])
    with pytest.raises(ModelError, match=r"its weight is 0\.5"):
        combine([("a", one), ("b", head)], [1, 0.5])
    with pytest.raises(ModelError, match="another adapter brings it"):
        combine([("a", head), ("b", head)], [1, 1])
    assert combine([("a", one), ("b", head)], [0.5, 1])[0].whole.keys() == head.whole.keys()
    for weights in ([1.0], [0.0, 0.0]):
        with pytest.raises(RecipeError):
            combine([("a", one), ("b", one)], weights)


def test_classifiers_with_one_head(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    pico_bert().save_pretrained(folder)
    selection = selected(folder, k=2, task="sequence-classification", num_labels=2)
    for name in ("a", "b"):
        write_tiny_adapter(tmp_path / name, folder, selection, None, "sequence-classification", num_labels=2)
    result = merge.run([tmp_path / "a", tmp_path / "b"], tmp_path / "out", weights=[1, 1], quiet=True)
    assert result.stats.changed


def test_on_the_command_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    adapter_of(tmp_path / "one", base, selected(base, k=2), 1, task="instruct")
    adapter_of(tmp_path / "two", base, selected(base, criterion="random", k=2), 2)
    pair = [str(tmp_path / "one"), str(tmp_path / "two")]

    def code(*arguments: str) -> object:
        with pytest.raises(SystemExit) as stopped:
            app.main(["merge", *arguments])
        return stopped.value.code

    assert code(*pair, "--weights", "1,-0.5", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "-0.5 × two" in said
    assert "were chosen by several" in said
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| sum of | 1 × one, -0.5 × two |" in card
    assert not (tmp_path / "out" / "recipe.yaml").exists()
    for wrong, why in (
        ([*pair, "--weights", "1,1"], "needs --out"),
        ([*pair, "more"], "no --weights"),
        ([*pair, "--weights", "1,x", "--out", "o"], "not a list of numbers"),
        ([*pair, "--weights", "1", "--out", str(tmp_path / "o")], "1 number for 2 adapters"),
    ):
        assert code(*wrong) == 2
        assert why in capsys.readouterr().err
