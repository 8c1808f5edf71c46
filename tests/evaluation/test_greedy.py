"""Rows that leave, and a prefix computed once, give what the library's own decoding gives."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_tokenizer import EOS, SIZE, byte_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from neuroada_cli.evaluation import generate as generating
from neuroada_cli.evaluation import greedy
from neuroada_cli.evaluation.generate import generate

NEW = 24
LONG = "A long beginning that every one of the prompts has in common, and then: "
PROMPTS = [LONG + rest for rest in ("x", "what is it?", "é", "12 + 30 =", "so it goes on and on", "no")]


def writer() -> LlamaForCausalLM:
    return pico_llama(vocabulary=SIZE, max_position_embeddings=256, initializer_range=0.4).eval()


def ending_early(model: LlamaForCausalLM, texts: list[str]) -> None:
    """Most rows end at different places: their ends are tokens that the model writes."""
    written = [byte_tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
    model.generation_config.eos_token_id = [row[3 + 2 * n] for n, row in enumerate(written[:3])]


@pytest.mark.parametrize("prompts", [PROMPTS, ["a", "What is it?\n", "éü", "no"]], ids=["prefix", "none"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_writes_what_the_library_writes(
    monkeypatch: pytest.MonkeyPatch, prompts: list[str], attention: str
) -> None:
    model, tokenizer = writer(), byte_tokenizer()
    model.set_attn_implementation(attention)
    assert greedy.can_leave(model)
    ending_early(model, generate(model, tokenizer, prompts, NEW, 4))
    ours = generate(model, tokenizer, prompts, NEW, 4)
    monkeypatch.setattr(generating, "can_leave", lambda _: False)
    assert generate(model, tokenizer, prompts, NEW, 4) == ours
    assert len({len(text) for text in ours}) > 2, "rows end at different places"


OWN_NAME = next(
    name for name in greedy.CACHE if name in inspect.signature(LlamaForCausalLM.forward).parameters
)


class Older(LlamaForCausalLM):
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        use_cache: bool,
    ) -> Any:
        asked = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return super().forward(**asked, **{OWN_NAME: past_key_values}, use_cache=use_cache)


class Newer(LlamaForCausalLM):
    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any, use_cache: bool
    ) -> Any:
        asked = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return super().forward(**asked, **{OWN_NAME: cache}, use_cache=use_cache)


@pytest.mark.parametrize("kind", [Older, Newer])
def test_the_cache_is_handed_over_by_the_name_that_a_model_has_for_it(kind: type[LlamaForCausalLM]) -> None:
    """`past_key_values` up to transformers 5.23, `cache` afterwards, whichever is installed here."""
    plain, tokenizer = writer(), byte_tokenizer()
    model = kind(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    model.generation_config.eos_token_id = EOS
    plain.generation_config.eos_token_id = EOS
    assert greedy.can_leave(model)
    assert generate(model, tokenizer, PROMPTS, NEW, 6) == generate(plain, tokenizer, PROMPTS, NEW, 6)


def test_a_row_that_has_ended_and_a_shared_prefix_take_no_more_work() -> None:
    model, tokenizer = writer(), byte_tokenizer()
    ending_early(model, generate(model, tokenizer, PROMPTS, NEW, 6))
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, __, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    tokens: list[int] = []
    generate(model, tokenizer, PROMPTS, NEW, 6, lambda _, __, count: tokens.append(count))
    shared = greedy.shared_prefix([list(map(ord, "s" + prompt)) for prompt in PROMPTS])
    assert seen[0] == (1, shared), "with the start token"
    assert seen[1][0] == len(PROMPTS)
    rows = [batch for batch, _ in seen[1:]]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < len(PROMPTS)
    assert sum(rows) <= tokens[0] + len(PROMPTS), "one pass per written token and one for the end"


def test_a_prompt_that_is_the_prefix_of_another_keeps_a_token_to_ask_with() -> None:
    assert greedy.shared_prefix([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3]]) == 2
    assert greedy.shared_prefix([[1], [1]]) == 0
    assert greedy.shared_prefix([[5, 6], [6, 5]]) == 0
    model, tokenizer = writer(), byte_tokenizer()
    prompts = [LONG, LONG + "x", LONG]
    alone = [generate(model, tokenizer, [prompt], NEW)[0] for prompt in prompts]
    assert generate(model, tokenizer, prompts, NEW) == alone


def test_models_whose_rows_depend_on_more_are_left_to_the_library() -> None:
    sizes = {
        "vocab_size": SIZE, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    assert not greedy.can_leave(MistralForCausalLM(MistralConfig(**sizes, sliding_window=8)))
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not greedy.can_leave(pico_llama(vocabulary=SIZE, rope_parameters=scaled))

    class Own(LlamaForCausalLM):
        def prepare_inputs_for_generation(self, *given: object, **named: object) -> object:
            return super().prepare_inputs_for_generation(*given, **named)

    assert not greedy.can_leave(Own(writer().config))
    assert not greedy.can_leave(torch.nn.Linear(2, 2))
    small = GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=1, n_head=2, eos_token_id=EOS))
    expected = generate(small, byte_tokenizer(), PROMPTS[:2], 4, 1)
    assert generate(small, byte_tokenizer(), PROMPTS[:2], 4, 2) == expected
