"""LoReFT against its definition: where it edits, what it computes, and that its rows stay orthonormal.

B = rows, S = sequence length, D = hidden size, R = rank
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import pico_bert, pico_llama
from tiny_families import tiny
from torch import Tensor, nn
from transformers import DynamicCache, OpenAIGPTConfig, OpenAIGPTForSequenceClassification

from neuroada_cli.data.batch import Encoded, collate
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.loop.recomputing import enable_checkpointing
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.facts import Sizes, edited_blocks
from neuroada_cli.methods.loreft import Intervention, PromptPositions, _Edit, prompt_ends, tell_prompts

TARGETS = {f"model.layers.{n}.mlp.{kind}_proj": torch.zeros(0) for n in range(2) for kind in ("up", "down")}
RANK, POSITIONS = 3, 2


def edited(model: nn.Module, dropout: float = 0.0) -> Any:
    method = METHODS["loreft"].build({"rank": RANK, "dropout": dropout, "positions": POSITIONS}, seed=5)
    method.attach(model, TARGETS)
    with torch.no_grad():
        for block in model.model.layers:  # type: ignore[union-attr]
            block.loreft.source.weight *= 3
    return method


@pytest.mark.parametrize(
    ("mask", "length", "expected"),
    [
        ([1] * 10, None, [0, 1, 8, 9]),
        ([1] * 10, 6, [0, 1, 4, 5]),  # what comes behind the prompt is an answer
        ([0, 0, 0, 1, 1, 1, 1, 1], None, [3, 4, 6, 7]),  # padded on the left, as for a generation
        ([1, 1, 1, 1, 1, 0, 0], None, [0, 1, 3, 4]),
        ([1] * 10, 3, [0, 2]),  # short: half of it at either end, none twice
        ([1] * 10, 1, []),
        ([1] * 10, 0, []),
        ([1] * 10, 4, [0, 1, 2, 3]),
    ],
)
def test_first_and_last_positions_of_the_prompt(
    mask: list[int], length: int | None, expected: list[int]
) -> None:
    lengths_B = None if length is None else torch.tensor([length])
    rows_N, positions_N = prompt_ends(torch.tensor([mask]), lengths_B, POSITIONS)
    assert positions_N.tolist() == expected
    assert set(rows_N.tolist()) <= {0}


def by_hand(model: nn.Module, tokens_S: list[int], prompt: int) -> Tensor:
    """Logits [S, V] with every block's output edited in a plain loop; the hooks are off."""
    blocks: Any = model.model.layers  # type: ignore[union-attr]
    half = min(POSITIONS, prompt // 2)
    places = [*range(half), *range(prompt - half, prompt)]

    def edit(block: Any, _: object, output: Tensor) -> Tensor:
        output = output.clone()
        rows_RD = block.loreft.rotate.weight
        for place in places:
            h_D = output[0, place]
            w_RD, b_R = block.loreft.source.weight, block.loreft.source.bias
            output[0, place] = h_D + rows_RD.T @ (w_RD @ h_D + b_R - rows_RD @ h_D)
        return output

    kept = [block._forward_hooks.copy() for block in blocks]
    for block in blocks:
        block._forward_hooks.clear()
    handles = [block.register_forward_hook(edit) for block in blocks]
    with torch.no_grad():
        logits_SV: Tensor = model(input_ids=torch.tensor([tokens_S])).logits[0]
    for handle in handles:
        handle.remove()
    for block, hooks in zip(blocks, kept, strict=True):
        block._forward_hooks.update(hooks)
    return logits_SV


def test_a_padded_batch_is_edited_like_each_row_by_hand() -> None:
    model = pico_llama()
    edited(model)
    rows = [([5, 6, 7, 8, 9, 10, 11], 5), ([20, 21, 22, 23], 3), ([30, 31, 32, 33, 34], 1)]
    batch = collate(
        [Encoded(ids, list(ids), i, prompt=prompt) for i, (ids, prompt) in enumerate(rows)], pad=0
    )
    tell_prompts(model, batch.prompts_B)
    with torch.no_grad():
        logits_BSV = model(input_ids=batch.tokens_BS, attention_mask=batch.attention_BS).logits
    for i, (ids, prompt) in enumerate(rows):
        torch.testing.assert_close(
            logits_BSV[i, : len(ids)], by_hand(model, ids, prompt), rtol=1e-4, atol=1e-5
        )
    plain_SV = pico_llama()(input_ids=torch.tensor([rows[0][0]])).logits[0]
    assert not torch.allclose(logits_BSV[0, : len(rows[0][0])], plain_SV)


def test_prompts_are_told_by_the_loss_and_forgotten_after_it() -> None:
    model = pico_llama()
    edited(model)
    ids, prompt = [5, 6, 7, 8, 9, 10, 11], 4
    batch = collate([Encoded(ids, [-100] * prompt + ids[prompt:], 0, prompt=prompt)], pad=0)
    for _ in range(2):  # also after `logits_are_final` has tried the model once
        loss, targets = token_loss(model, batch)
        logits_SV = by_hand(model, ids, prompt)
        expected = nn.functional.cross_entropy(
            logits_SV[prompt - 1 : -1], torch.tensor(ids[prompt:]), reduction="sum"
        )
        torch.testing.assert_close(loss.detach(), expected)
        assert targets == len(ids) - prompt
    with torch.no_grad():
        whole_SV = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(whole_SV, by_hand(model, ids, len(ids)))


def test_a_generation_edits_the_prompt_and_nothing_after_it() -> None:
    model = pico_llama()
    edited(model)
    prompts = [[5, 6, 7, 8, 9, 10], [20, 21, 22]]
    tokens_BS = torch.tensor([prompts[0], [0, 0, 0, *prompts[1]]])
    mask_BS = (torch.arange(6) >= torch.tensor([[0], [3]])).long()
    made_BS = model.generate(
        input_ids=tokens_BS, attention_mask=mask_BS, max_new_tokens=5, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(by_hand(model, ids, len(prompt))[-1].argmax()))
        assert made_BS[row, 6:].tolist() == ids[len(prompt) :]


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "rwkv"])
def test_a_model_of_states_writes_what_it_would_if_it_read_all_anew(name: str) -> None:
    """Its cache says that it has read, not how much."""
    model = tiny(name)
    METHODS["loreft"].build({"rank": RANK, "positions": POSITIONS}, seed=5).attach(
        model, dict.fromkeys(find_targets(model, ["all-linear"]), torch.zeros(0))
    )
    made = model.generate(
        input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]]), max_new_tokens=4, min_new_tokens=4, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    tell_prompts(model, torch.tensor([6]))
    with torch.no_grad():
        whole_SV = model(input_ids=made.sequences, use_cache=False).logits[0, 5:-1]
    torch.testing.assert_close(torch.cat(made.logits), whole_SV, rtol=1e-3, atol=1e-4)


def test_a_model_that_writes_without_a_cache_is_refused_and_as_a_classifier_it_is_not() -> None:
    def attach(model: nn.Module) -> None:
        targets = dict.fromkeys(find_targets(model, ["all-linear"]), torch.zeros(0))
        METHODS["loreft"].build({"rank": 2}).attach(model, targets)

    with pytest.raises(ValueError, match="keeps no cache while it writes"):
        attach(tiny("openai-gpt"))
    config = OpenAIGPTConfig(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    attach(OpenAIGPTForSequenceClassification(config))


@pytest.mark.parametrize(
    "states", [torch.zeros(4, 2, 6, 32), torch.zeros(12, 32), torch.zeros(2, 3, 32), torch.zeros(3, 6, 32)]
)
def test_states_that_are_not_one_for_each_token_are_refused(states: Tensor) -> None:
    """Gemma 3n hands four versions of each on: rows and positions would be looked up among those."""
    where = PromptPositions(POSITIONS)
    where.look(nn.Module(), (torch.ones(2, 6, dtype=torch.int64),), {})
    block = nn.Module()
    block.loreft = Intervention(32, RANK)
    with pytest.raises(ModelError, match="not one for each of 2 x 6 tokens"):
        _Edit(where)(block, (), states)
    assert _Edit(where)(block, (), (torch.zeros(2, 6, 32), None))[0].shape == (2, 6, 32)


@pytest.mark.parametrize("name", ["past_key_values", "cache", "cache_params", None])
def test_a_cache_is_known_under_any_name(name: str | None) -> None:
    """transformers renames the argument; a filled cache means that the token was generated."""
    where, cache = PromptPositions(POSITIONS), DynamicCache()
    token_BS = torch.tensor([[5]])
    for expected in (True, False):
        args, named = ((token_BS,), {name: cache}) if name else ((token_BS, cache), {})
        where.look(nn.Module(), args, named)
        assert (where.chosen is not None) == expected
        cache.update(torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 6, 4), 0)


@pytest.mark.parametrize("decay", [0.0, 0.1])  # torch's own parametrization makes zeros of decayed rows
def test_rows_stay_orthonormal_and_the_base_stays(decay: float) -> None:
    model = pico_llama()
    before = {name: p.clone() for name, p in model.named_parameters()}
    method = edited(model)
    optimizer = torch.optim.AdamW(method.parameters(model), lr=0.02, weight_decay=decay)
    model.train()
    ids = [5, 6, 7, 8, 9, 10, 11]
    batch = collate([Encoded(ids, [-100] * 4 + ids[4:], 0, prompt=4)], pad=0)
    losses = []
    for _ in range(60):
        loss, _count = token_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for block in model.model.layers:
        rows_RD = block.loreft.rotate.weight
        torch.testing.assert_close(rows_RD @ rows_RD.T, torch.eye(RANK), rtol=0, atol=1e-5)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_it_trains_as_many_numbers_as_the_paper_counts() -> None:
    """0.031 % of LLaMA-7B at rank 8: 32 blocks of 4,096."""
    count = METHODS["loreft"].count
    assert count is not None
    assert count(Sizes({f"h.{n}.up": (1, 1) for n in range(32)}, width=4096, rank=8)) == 2_097_408
    model = pico_llama()
    method = edited(model)
    assert sum(p.numel() for p in method.parameters(model)) == count(
        Sizes({"h.0.up": (1, 1), "h.1.up": (1, 1)}, width=32, rank=RANK)
    )


def test_the_random_start_is_the_seed_s_alone() -> None:
    torch.manual_seed(1)
    one, expected = pico_llama(), torch.get_rng_state()
    edited(one)
    assert torch.equal(torch.get_rng_state(), expected)
    two = pico_llama()
    torch.manual_seed(99)
    edited(two)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_recomputed_activations_give_the_same_gradients() -> None:
    ids = [5, 6, 7, 8, 9, 10, 11]
    batch = collate([Encoded(ids, [-100] * 4 + ids[4:], 0, prompt=4)], pad=0)
    grads = []
    for checkpointing in (False, True):
        model = pico_llama()
        method = edited(model)
        model.train()
        if checkpointing:
            enable_checkpointing(model)
        token_loss(model, batch)[0].backward()
        grads.append([p.grad for p in method.parameters(model)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_an_encoder_is_edited_at_the_ends_of_the_whole_row() -> None:
    model = pico_bert()
    targets = {f"bert.encoder.layer.{n}.output.dense": torch.zeros(0) for n in range(2)}
    plain_BC = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits
    METHODS["loreft"].build({"rank": 2}, seed=0).attach(model, targets)
    assert edited_blocks(targets) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    edited_BC = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits
    padded_BC = model(
        input_ids=torch.tensor([[5, 6, 7, 8, 9, 0, 0]]), attention_mask=torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    ).logits
    assert not torch.allclose(edited_BC, plain_BC)
    torch.testing.assert_close(edited_BC, padded_BC, rtol=1e-4, atol=1e-5)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no numbered block"):
        edited_blocks(["lm_head"])
