"""What stands in a merged folder's files, tensor by tensor: read from the files, not through a model.

A model that ties two weights loads one of their copies, so it cannot tell whether the other is right.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_llama
from safetensors.torch import load_file, save_file
from tiny_choice import selected
from tiny_merge import write_tiny_adapter
from torch import Tensor
from transformers import BertModel

from neuroada_cli import files, hub
from neuroada_cli.adapter.folder import write_adapter
from neuroada_cli.adapter.whole import refuse_whole
from neuroada_cli.commands import merge
from neuroada_cli.errors import ModelError, NumericsError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
WEIGHTS = "model.safetensors"


def tied_base(folder: Path) -> dict[str, Tensor]:
    """A base whose files hold the tied weight under both of its names."""
    pico_llama(tied=True).save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    tensors[HEAD] = tensors[EMBEDDING].clone()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return tensors


def test_both_stored_copies_of_a_tied_weight_get_the_deltas(tmp_path: Path) -> None:
    before = tied_base(tmp_path / "base")
    adapter = write_tiny_adapter(
        tmp_path / "adapter", tmp_path / "base", selected(tmp_path / "base", ["lm_head"], k=2)
    )
    merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    after = load_file(tmp_path / "out" / WEIGHTS)
    expected = before[HEAD].scatter_add(
        1, adapter.selection.indices["lm_head"].long(), adapter.deltas["lm_head"]
    )
    assert not torch.equal(expected, before[HEAD])
    for name in (HEAD, EMBEDDING):
        assert torch.equal(after[name], expected), name


def test_both_stored_copies_of_a_tied_weight_that_was_trained_whole_are_replaced(tmp_path: Path) -> None:
    before = tied_base(tmp_path / "base")
    trained = before[EMBEDDING] + 1
    chosen = selected(tmp_path / "base", ["up_proj"], k=1)
    adapter = write_tiny_adapter(tmp_path / "adapter", tmp_path / "base", chosen, {EMBEDDING: trained})
    with pytest.raises(ModelError, match=r"was trained apart from lm_head\.weight"):  # as PEFT trains one
        merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    zero = {name: torch.zeros_like(delta_OK) for name, delta_OK in adapter.deltas.items()}
    settings = adapter.settings | {"method": "full"}
    with files.atomic_folder(tmp_path / "adapter", overwrite=True) as folder:
        write_adapter(folder, dataclasses.replace(adapter, deltas=zero, settings=settings))
    merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    after = load_file(tmp_path / "out" / WEIGHTS)
    for name in (HEAD, EMBEDDING):
        assert torch.equal(after[name], trained), name


@pytest.mark.parametrize("missing", ["pooler", "classifier"])
def test_a_classifier_without_its_pooler_or_head_is_refused(tmp_path: Path, missing: str) -> None:
    """Some encoders are stored without a pooler; then it is fresh, and trained whole with the head."""
    base = tmp_path / "base"
    model = pico_bert()
    BertModel(model.config, add_pooling_layer=False).save_pretrained(base)
    fresh = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.startswith(("classifier", "bert.pooler"))
    }
    selection = selected(base, ["query"], k=1, task="sequence-classification", num_labels=2)

    def merged(whole: dict[str, Tensor]) -> None:
        write_tiny_adapter(
            tmp_path / "adapter", base, selection, whole, "sequence-classification", num_labels=2
        )
        merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True, overwrite=True)

    with pytest.raises(ModelError, match=rf"has no .*{missing}.* and the adapter brings none"):
        merged({name: tensor for name, tensor in fresh.items() if missing not in name})
    assert not (tmp_path / "out").exists()
    merged(fresh)
    after = load_file(tmp_path / "out" / WEIGHTS)
    for name, tensor in fresh.items():
        assert torch.equal(after[name], tensor), name


def test_place_holders_are_no_weights_that_could_change(tmp_path: Path) -> None:
    """Rows of different length: a place holder stands on a frozen weight, which keeps its bits."""
    pico_llama().save_pretrained(tmp_path / "base")
    chosen = selected(tmp_path / "base", ["up_proj"], k=3)
    for index_OK in chosen.indices.values():
        index_OK[::2, 1:] = -1
        index_OK[1::4, 2:] = -1
    adapter = write_tiny_adapter(tmp_path / "adapter", tmp_path / "base", chosen)
    result = merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    before, after = load_file(tmp_path / "base" / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    real = sum(int((index_OK >= 0).sum()) for index_OK in chosen.indices.values())
    assert result.stats.entries == result.stats.changed == real
    for name, index_OK in chosen.indices.items():
        expected = before[f"{name}.weight"].clone()
        for row, columns in enumerate(index_OK.tolist()):
            for place, column in enumerate(columns):
                if column >= 0:
                    expected[row, column] += adapter.deltas[name][row, place]
        assert torch.equal(after[f"{name}.weight"], expected)


def test_nan_in_a_base_is_not_handed_on(tmp_path: Path) -> None:
    pico_llama().save_pretrained(tmp_path / "base")
    chosen = selected(tmp_path / "base", ["q_proj"], k=1)
    tensors = load_file(tmp_path / "base" / WEIGHTS)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "base" / WEIGHTS, metadata={"format": "pt"})
    fingerprint = hub.fingerprint(tmp_path / "base")
    selection = type(chosen)(chosen.indices, chosen.k, chosen.criterion, fingerprint, chosen.tied)
    write_tiny_adapter(tmp_path / "adapter", tmp_path / "base", selection)
    with pytest.raises(
        NumericsError,
        match=r"model\.norm\.weight of the base holds NaN or infinity in row 3; download the base",
    ):
        merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_what_rounding_loses_and_what_was_never_learnt_are_told_apart(tmp_path: Path) -> None:
    pico_llama().bfloat16().save_pretrained(tmp_path / "base")
    chosen = selected(tmp_path / "base", ["q_proj"], k=3)
    adapter = write_tiny_adapter(tmp_path / "adapter", tmp_path / "base", chosen, dtype="bf16")
    for delta_OK in adapter.deltas.values():
        delta_OK[:, 0] = 0.0  # never learnt
        delta_OK[:, 1] = 1e-9  # too small for bf16
        delta_OK[:, 2] = 1.0
    with files.atomic_folder(tmp_path / "adapter", overwrite=True) as folder:
        write_adapter(folder, adapter)
    stats = merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True).stats
    rows = sum(len(index_OK) for index_OK in chosen.indices.values())
    assert (stats.entries, stats.changed, stats.lost) == (3 * rows, rows, rows)
    assert stats.largest_delta == 1.0


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    pico_bert().save_pretrained(tmp_path / "base")
    base = hub.open_base(tmp_path / "base", "sequence-classification", num_labels=2)
    adapter = write_tiny_adapter(
        tmp_path / "adapter", base.folder, None, None, "sequence-classification", num_labels=2
    )
    refuse_whole(base.graph, dataclasses.replace(adapter, whole={"classifier.bias": torch.zeros(2)}), "here")
    wrong = dataclasses.replace(adapter, whole={"classifier.bias": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"classifier\.bias is \[3\], this model's is \[2\]$"):
        refuse_whole(base.graph, wrong, "here")
