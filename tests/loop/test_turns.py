"""What a process runs that was dealt no rows, beside the others: every part of the model, with a target."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import pico_bert, pico_llama
from tiny_pairs import pico_bart, pico_t5
from tiny_pictures import pico_vit

from neuroada_cli.data.batch import IGNORED, Batch, Encoded, collate
from neuroada_cli.loop.loss import LOSSES, count_targets
from neuroada_cli.loop.turns import idle, turns
from neuroada_cli.ranks.group import Ranks

TEXT = [Encoded([5, 6, 7, 8, 9], [IGNORED, IGNORED, 7, 8, 9], 0), Encoded([5], [IGNORED], 1)]
PAIRS = [replace(row, decoder=[0, 11, 12], labels=[IGNORED, 11, 12]) for row in TEXT]
CLASSES = [replace(row, labels=number) for number, row in enumerate(TEXT)]


def pictures() -> Batch:
    rows = [Encoded([], number, number) for number in range(2)]
    size = pico_vit().config.image_size
    return collate(rows, 0, lambda _: {"pixel_values": torch.zeros(2, 3, size, size)})


CASES = {
    "decoder": (pico_llama, lambda: collate(TEXT, 0), "generation"),
    "t5": (pico_t5, lambda: collate(PAIRS, 0), "generation"),
    "bart": (pico_bart, lambda: collate(PAIRS, 0), "generation"),
    "classifier": (pico_bert, lambda: collate(CLASSES, 0), "classification"),
    "pictures": (pico_vit, pictures, "classification"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_idle_process_runs_all_parts_that_the_others_do(name: str) -> None:
    make, batch_of, kind = CASES[name]
    model, batch = make(), batch_of()
    called: list[set[str]] = []
    for where, module in model.named_modules():
        module.register_forward_hook(lambda *_, where=where: called[-1].add(where))
    for each in (batch, idle(batch)):
        called.append(set())
        loss, _ = LOSSES[kind](model, each)
        assert loss.requires_grad
        assert torch.isfinite(loss)
    assert called[0] == called[1]
    assert idle(batch).rows == []


def test_what_is_told_of_pictures_stays_whole_and_gets_a_target_where_it_has_none() -> None:
    pixels = {"pixel_values": torch.ones(3, 2)}
    batch = replace(collate([replace(row, labels=[IGNORED] * len(row)) for row in TEXT], 0), features=pixels)
    made = idle(batch)
    assert count_targets(batch.labels_BS) == 0
    assert count_targets(made.labels_BS) == 1
    assert made.tokens_BS.equal(batch.tokens_BS)
    assert made.features["pixel_values"] is pixels["pixel_values"]


def test_the_last_turn_of_an_odd_number_is_idle_for_the_others() -> None:
    ranks = replace(Ranks(number=1, size=2), sharded=True)
    own, spare = turns([collate(PAIRS, 0) for _ in range(3)], ranks)
    assert (own.counts, own.own) == (True, True)
    assert (spare.counts, spare.own) == (False, False)
    assert spare.batch.decoder_BS is not None
