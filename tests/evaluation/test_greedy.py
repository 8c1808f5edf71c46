"""Rows that leave, and a prefix computed once, give what the library's own decoding gives."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_run import one_thread  # noqa: F401
from tiny_tokenizer import EOS, SIZE, byte_tokenizer
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from neuroada_cli.evaluation import generate as generating
from neuroada_cli.evaluation import greedy
from neuroada_cli.evaluation import writer as writing
from neuroada_cli.evaluation.generate import generate
from neuroada_cli.evaluation.lookup import Lookup, Row, depth
from neuroada_cli.evaluation.writer import Writer
from neuroada_cli.loop.caches import CACHE
from neuroada_cli.methods.loreft import LoReft

NEW = 14
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


OWN_NAME = next(name for name in CACHE if name in inspect.signature(LlamaForCausalLM.forward).parameters)


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


def shapes(model: LlamaForCausalLM) -> list[tuple[int, int]]:
    """Filled with (rows, columns) of every pass from now on."""
    seen: list[tuple[int, int]] = []

    def note(_: object, __: object, given: dict[str, Tensor]) -> None:
        rows, columns = given["input_ids"].shape
        seen.append((rows, columns))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def test_a_row_that_has_ended_and_a_shared_prefix_take_no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "depth", lambda *_: 0)
    monkeypatch.setattr(greedy, "reads_in_parts", lambda _: True)  # passes of its own
    model, tokenizer = writer(), byte_tokenizer()
    ending_early(model, generate(model, tokenizer, PROMPTS, NEW, 6))
    seen, tokens = shapes(model), list[int]()
    generate(model, tokenizer, PROMPTS, NEW, 6, lambda _, __, count: tokens.append(count))
    encoded = [list(map(ord, "s" + prompt)) for prompt in PROMPTS]
    shared = writing.shared_prefix(encoded)
    assert seen[0] == (1, shared), "with the start token"
    groups = writing.in_groups([len(row) for row in encoded], writing.OVERHEAD["cpu"])
    begun = seen[1 : 1 + len(groups)]
    assert sum(rows for rows, _ in begun) == len(PROMPTS)
    rows = [count for count, columns in seen[1 + len(groups) :] if columns == 1]
    assert len(rows) == len(seen) - 1 - len(groups)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < len(PROMPTS)
    assert sum(rows) + len(PROMPTS) <= tokens[0] + len(PROMPTS), "one pass per token, and one for the end"


def test_rows_of_a_length_are_fed_together() -> None:
    assert writing.in_groups([9, 9, 9, 9], 16) == [[0, 1, 2, 3]]
    assert writing.in_groups([100, 98, 40, 39, 5], 16) == [[0, 1], [2, 3], [4]]
    assert writing.in_groups([100, 98, 40, 39, 5], 10**6) == [[0, 1, 2, 3, 4]]
    assert writing.in_groups([7], 16) == [[0]]


@pytest.mark.parametrize("right", [0, 3, 5])
def test_guesses_save_passes_and_change_no_text(monkeypatch: pytest.MonkeyPatch, right: int) -> None:
    """Of 5 guessed tokens the first few are what the row goes on with; rows end within guesses, too."""
    model, tokenizer = writer(), byte_tokenizer()
    ending_early(model, generate(model, tokenizer, PROMPTS, NEW, 6))
    ends = model.generation_config.eos_token_id
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    monkeypatch.setattr(writing, "depth", lambda *_: 0)
    seen = shapes(model)
    truth = [
        Writer(model, ends, torch.device("cpu")).complete([prompt], NEW + 6)[0] + ends[:1]
        for prompt in prompts
    ]
    alone = len(seen)
    seen.clear()

    def some_right(_: Lookup, row: Row, most: int) -> float:
        at, after = len(row.written), truth[prompts.index(row.ids[: row.begun])]
        wrong = [(token + 1) % SIZE for token in after[at + right : at + 5]]
        row.guess = [*after[at : at + right], *wrong][:most]
        return 1.0

    monkeypatch.setattr(Lookup, "guess", some_right)
    monkeypatch.setattr(writing, "depth", lambda *_: 5)
    together = Writer(model, ends, torch.device("cpu")).complete(prompts, NEW)
    assert together == [row[:-1][:NEW] for row in truth]
    assert len({len(row) for row in together}) > 2, "rows end at different places"
    assert right == 0 or len(seen) < alone / (right + 1)


def test_a_text_that_repeats_itself_is_guessed_and_a_wrong_guess_is_not_repeated() -> None:
    lookup, row = Lookup(), Row([9, 1, 2, 3, 4, 1, 2, 3])
    likely = lookup.guess(row, 7)
    assert row.guess == [4, 1, 2, 3, 4, 1, 2], "round and round"
    lookup.take(row, [4, 1])
    assert row.written == [4, 1]
    assert lookup.guess(row, 3) > likely
    for _ in range(20):
        lookup.take(row, [7, 1, 2, 3])
        assert lookup.guess(row, 4) >= 0
    other = Row([5, 2, 3, 4])
    lookup.guess(other, 2)
    assert other.guess == [1, 7], "what another row wrote behind the same three tokens"
    for token in range(50, 80):
        lookup.guess(other, 1)
        lookup.take(other, [token])
    assert lookup.guess(Row([1, 2]), 5) >= 0


def test_how_many_guesses_are_asked_is_what_they_are_worth() -> None:
    assert depth([(16, 0.99)], 16) == 16
    assert depth([(16, 0.01)], 16) == 0
    assert depth([(3, 0.99)], 16) == 3
    assert depth([(0, 0.9)] * 16, 16) == 0
    assert depth([(16, 0.9)] + [(0, 0.5)] * 15, 16) == 0, "fifteen rows would be padded for one"
    assert depth([(16, 0.9)] + [(0, 0.5)] * 15, 512) == 6, "which is worth it where a pass is dear"


def test_what_batches_before_have_computed_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "reads_in_parts", lambda _: True)  # passes of its own
    model, tokenizer = writer(), byte_tokenizer()
    model.generation_config.eos_token_id = EOS
    alone = [generate(model, tokenizer, [prompt], NEW)[0] for prompt in PROMPTS]
    seen = shapes(model)
    assert generate(model, tokenizer, PROMPTS, NEW, 2) == alone
    shared = writing.shared_prefix([list(map(ord, "s" + prompt)) for prompt in PROMPTS])
    assert [columns for _, columns in seen].count(shared) == 1
    assert all(columns < shared for _, columns in seen[1:]), "the prefix was there for the later batches"
    half = writer().to(torch.bfloat16)
    half.generation_config.eos_token_id = EOS
    whole = generate(half, tokenizer, PROMPTS, NEW, 2)
    order = sorted(range(len(PROMPTS)), key=lambda at: -len(PROMPTS[at]))[2:]
    resumed = generate(half, tokenizer, [PROMPTS[at] for at in sorted(order)], NEW, 2)
    assert resumed == [whole[at] for at in sorted(order)], "goes on as if it had not been stopped"


LESS = [LONG[:40] + rest for rest in ("but otherwise", "?")]  # share a part of what PROMPTS share


def encoded(prompts: list[str]) -> list[list[int]]:
    return [byte_tokenizer()(prompt)["input_ids"] for prompt in prompts]


def test_a_later_batch_may_share_less_of_what_was_computed() -> None:
    model, cpu = writer(), torch.device("cpu")
    alone = [Writer(model, [EOS], cpu).complete([prompt], NEW)[0] for prompt in encoded(LESS)]
    after = Writer(model, [EOS], cpu)
    after.complete(encoded(PROMPTS), NEW)
    seen = shapes(model)
    assert after.complete(encoded(LESS), NEW) == alone
    assert seen[0][0] != 1, "its beginning was there"


def test_in_16_bits_a_batch_is_computed_as_if_it_were_the_first() -> None:
    half, cpu = writer().to(torch.bfloat16), torch.device("cpu")
    after = Writer(half, [EOS], cpu)
    after.complete(encoded(PROMPTS), NEW)
    seen = shapes(half)
    texts = after.complete(encoded(LESS), NEW)
    passes = [*seen]
    seen.clear()
    assert Writer(half, [EOS], cpu).complete(encoded(LESS), NEW) == texts
    assert seen == passes


def test_a_prompt_that_is_the_prefix_of_another_keeps_a_token_to_ask_with() -> None:
    assert writing.shared_prefix([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3]]) == 2
    assert writing.shared_prefix([[1], [1]]) == 0
    assert writing.shared_prefix([[5, 6], [6, 5]]) == 0
    model, tokenizer = writer(), byte_tokenizer()
    prompts = [LONG, LONG + "x", LONG]
    alone = [generate(model, tokenizer, [prompt], NEW)[0] for prompt in prompts]
    assert generate(model, tokenizer, prompts, NEW) == alone


def last_token_turned(_: object, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """As an intervention at the end of a prompt does: what is last depends on how a text is cut."""
    return torch.cat([output[:, :-1], output[:, -1:].roll(1, -1)], dim=1)


@pytest.mark.parametrize("how", ["loreft", "hook"])
def test_what_edits_prompts_is_left_to_the_library(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = writer(), byte_tokenizer()
    assert greedy.can_leave(model)
    if how == "loreft":
        LoReft(rank=4, positions=3).attach(model, {"model.layers.0.mlp.up_proj": torch.zeros(0)})
    else:
        model.model.layers[0].register_forward_hook(last_token_turned)
    assert not greedy.can_leave(model)
    alone = [generate(model, tokenizer, [prompt], NEW)[0] for prompt in PROMPTS]
    monkeypatch.setattr(generating, "can_leave", lambda _: False)
    assert [generate(model, tokenizer, [prompt], NEW)[0] for prompt in PROMPTS] == alone
    if how == "loreft":  # which knows padding
        assert generate(model, tokenizer, PROMPTS, NEW, 4) == alone


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
    windows = GPTNeoConfig(
        vocab_size=SIZE, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
    )
    assert not greedy.can_leave(GPTNeoForCausalLM(windows).eval())
    windows.attention_layers = ["global", "global"]
    assert greedy.can_leave(GPTNeoForCausalLM(windows).eval())
    small = GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=1, n_head=2, eos_token_id=EOS))
    expected = generate(small, byte_tokenizer(), PROMPTS[:2], 4, 1)
    assert generate(small, byte_tokenizer(), PROMPTS[:2], 4, 2) == expected
