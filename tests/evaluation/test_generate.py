"""Generation equals the obvious loop: one row, no cache, no padding, the most likely token each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from tiny_run import one_thread  # noqa: F401
from tiny_tokenizer import EOS, SIZE, byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from neuroada_cli import hub
from neuroada_cli.data.seams import token_ids
from neuroada_cli.errors import DataError, NumericsError
from neuroada_cli.evaluation import greedy
from neuroada_cli.evaluation.generate import generate
from neuroada_cli.evaluation.together import can_be_together
from neuroada_cli.tasks.task import Decoding

PROMPTS = ["What is it?\n", "a", "A much longer prompt than the others, to pad them.", "What was it?\n", "éü"]
NEW = 12


def writer(seed: int = 0) -> LlamaForCausalLM:
    return pico_llama(vocabulary=SIZE, max_position_embeddings=128, initializer_range=0.4).train(seed == 1)


@torch.no_grad()
def obvious(model: LlamaForCausalLM, prompt: str, ends: tuple[int, ...] = (EOS,)) -> list[int]:
    tokenizer = byte_tokenizer()
    ids = token_ids(tokenizer, prompt)
    start = len(ids)
    while len(ids) < start + NEW:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            return ids[start:-1]
    return ids[start:]


def test_it_equals_the_obvious_loop_in_the_order_given() -> None:
    model, tokenizer = writer(), byte_tokenizer()
    expected = [tokenizer.decode(obvious(model, p), skip_special_tokens=True) for p in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    for batch_size in (1, 2, 16):
        assert generate(model, tokenizer, PROMPTS, NEW, batch_size) == expected


@pytest.mark.parametrize("kind", ["rwkv", "xlnet"])
def test_a_model_that_looks_beside_a_row_writes_the_same_in_every_batch(kind: str) -> None:
    """RWKV mixes the rows of a batch where they go on by a token, and XLNet attends to what is padded."""
    torch.manual_seed(0)
    sizes = {
        "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 128},
        "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.4},
    }[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=SIZE, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1 if kind == "xlnet" else 3)
    tokenizer = byte_tokenizer()
    alone = [generate(model, tokenizer, [prompt], NEW)[0] for prompt in PROMPTS]
    assert len(set(alone)) > 2
    for prompts in (PROMPTS, [*PROMPTS, "b", "c"]):
        assert generate(model, tokenizer, prompts, NEW, 16)[: len(PROMPTS)] == alone
    expected = {"rwkv": "none", "xlnet": "of one length"}[kind]
    assert can_be_together(model, [[5, 6], [5, 6, 7]], 0) == expected
    assert can_be_together(writer(), [[5, 6], [5, 6, 7]], 0) == "all"


def test_the_models_own_settings_do_not_matter_and_come_back() -> None:
    model, tokenizer = writer(), byte_tokenizer()
    expected = generate(model, tokenizer, PROMPTS, NEW)
    own = model.generation_config
    for key, value in {
        "do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 3.0, "num_beams": 3,
        "no_repeat_ngram_size": 1, "max_length": 5, "min_new_tokens": 9, "bad_words_ids": [[5]],
        "suppress_tokens": [7, 8, 9],
    }.items():  # fmt: skip
        setattr(own, key, value)
    model.train()
    assert generate(model, tokenizer, PROMPTS, NEW) == expected
    assert model.generation_config is own
    assert model.training


def test_longest_first_and_every_batch_is_reported_once() -> None:
    seen: list[list[int]] = []
    tokens = 0

    def keep(numbers: list[int], texts: list[str], count: int) -> None:
        nonlocal tokens
        seen.append(numbers)
        tokens += count
        assert len(texts) == len(numbers)

    generate(writer(), byte_tokenizer(), PROMPTS, NEW, 2, keep)
    assert seen == [[2, 3], [0, 4], [1]]
    assert tokens == sum(len(obvious(writer(), p)) for p in PROMPTS)


def test_a_batch_ends_with_its_last_rows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token is one that the model does write, and another one that only its settings name."""
    monkeypatch.setattr(greedy, "reads_in_parts", lambda _: True)  # passes of its own
    model, tokenizer = writer(), byte_tokenizer()
    written = [obvious(model, p, ends=()) for p in PROMPTS]
    ends = (written[0][4], EOS)
    model.generation_config.eos_token_id = [ends[0], 77]
    lengths = [len(obvious(model, p, ends=(*ends, 77))) for p in PROMPTS]
    assert min(lengths) < NEW
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.register_forward_hook(count)
    short = [p for p, n in zip(PROMPTS, lengths, strict=True) if n < NEW]
    most = max(n for n in lengths if n < NEW)
    found = generate(model, tokenizer, short, NEW)
    assert calls == most + 1, "no token was written past the last row's end"
    assert [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in found] <= [NEW] * len(short)


def test_by_the_library_nothing_behind_a_rows_end_is_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that end early are filled up with padding there, which is a text like any other."""
    model, tokenizer = writer(), byte_tokenizer()
    monkeypatch.setattr("neuroada_cli.evaluation.generate.can_leave", lambda model: False)
    end = obvious(model, PROMPTS[0], ends=())[4]
    model.generation_config.eos_token_id = end
    expected = [obvious(model, prompt, (end, EOS)) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1
    counted: list[int] = []
    found = generate(
        model, tokenizer, PROMPTS, NEW, on_batch=lambda _, __, count: counted.append(count), special=True
    )
    assert found == [tokenizer.decode(row) for row in expected]
    assert sum(counted) == sum(map(len, expected))


def test_beams() -> None:
    model, tokenizer = writer(), byte_tokenizer()
    [prompt] = PROMPTS[:1]
    ids = torch.tensor([token_ids(tokenizer, prompt)])
    plain = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=4, do_sample=False, max_new_tokens=NEW,
        pad_token_id=0, eos_token_id=EOS,
    )  # fmt: skip
    expected = tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
    assert generate(model, tokenizer, PROMPTS, NEW, decoding=Decoding(beams=4))[0] == expected


SAMPLING = Decoding(temperature=2.0, top_p=0.95, top_k=40)


@pytest.mark.parametrize("beams", [1, 4])
def test_sampling_is_the_same_again_whatever_was_drawn_before(beams: int) -> None:
    model, tokenizer = writer(), byte_tokenizer()
    how = replace(SAMPLING, beams=beams)
    first = generate(model, tokenizer, PROMPTS, NEW, 2, decoding=how, seed=1)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert generate(model, tokenizer, PROMPTS, NEW, 2, decoding=how, seed=1) == first
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers go on as they would"
    assert generate(model, tokenizer, PROMPTS, NEW, 2, decoding=how, seed=2) != first
    assert generate(model, tokenizer, PROMPTS, NEW, 2) != first


def test_sampling_goes_on_after_a_stop_as_if_there_was_none() -> None:
    """The longest rows come first; what is left falls into the same batches."""
    model, tokenizer = writer(), byte_tokenizer()
    whole = generate(model, tokenizer, PROMPTS, NEW, 2, decoding=SAMPLING, seed=1)
    left = [PROMPTS[i] for i in (0, 1, 4)]
    expected = [whole[i] for i in (0, 1, 4)]
    assert generate(model, tokenizer, left, NEW, 2, decoding=SAMPLING, seed=1) == expected


def test_sampling_draws_by_the_models_probabilities() -> None:
    """Top-k 1 leaves the most likely token; without limits the first tokens come as often as they should."""
    model, tokenizer = writer(), byte_tokenizer()
    [prompt] = PROMPTS[:1]
    only = generate(model, tokenizer, [prompt], NEW, decoding=replace(SAMPLING, top_k=1))
    assert only == generate(model, tokenizer, [prompt], NEW)
    cold = Decoding(temperature=1e-3)
    assert generate(model, tokenizer, [prompt], NEW, decoding=cold) == only
    ids = torch.tensor([token_ids(tokenizer, prompt)])
    with torch.no_grad():
        chance_V = (model(ids).logits[0, -1] / 0.5).softmax(-1)
    token = int(chance_V.argmax())
    drawn = generate(model, tokenizer, [prompt] * 400, 1, 400, decoding=Decoding(temperature=0.5), seed=3)
    share = sum(text == tokenizer.decode([token]) for text in drawn) / 400
    expected = float(chance_V[token])
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("beams", [1, 4])
def test_sampling_from_a_broken_model_is_an_error(value: str, beams: int) -> None:
    model = writer()
    with torch.no_grad():
        model.lm_head.weight[5] = float(value)
    with pytest.raises(NumericsError, match="NaN"):
        generate(model, byte_tokenizer(), PROMPTS, NEW, decoding=replace(SAMPLING, beams=beams))


def test_not_a_number_is_an_error_not_a_wrong_answer() -> None:
    model = writer()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        generate(model, byte_tokenizer(), PROMPTS, NEW)


def test_prompts_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"has 2 tokens; 127 new ones do not fit.*context of 128.*lower eval"):
        generate(writer(), byte_tokenizer(), PROMPTS, 127)
    with pytest.raises(DataError, match="choose a model with a longer context"):
        generate(writer(), byte_tokenizer(), ["x" * 200], 1)
    with pytest.raises(DataError, match="a prompt is empty"):
        generate(writer(), byte_tokenizer(bos=False), [""], 1)


def test_a_long_prompt_is_answered_in_the_room_that_it_leaves() -> None:
    model, tokenizer = writer(), byte_tokenizer(eos_token="<unk>")
    prompts = ["x" * 120, "y" * 120, "z" * 117, "a"]
    written: dict[int, int] = {}

    def keep(numbers: list[int], texts: list[str], count: int) -> None:
        written[numbers[0]] = count

    alone = generate(model, tokenizer, prompts, NEW, 1, keep, special=True)
    assert written == {0: 7, 1: 7, 2: 10, 3: NEW}, "none of them writes the end token"
    assert generate(model, tokenizer, prompts, NEW, 4, special=True) == alone


def test_a_real_model_tells_its_story(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs the small real model")
    model, tokenizer = hub.load_model(folder, "causal-lm", "fp32").model, hub.load_tokenizer(folder)
    prompts = ["Once upon a time", "Lily and her mom went to the park. They", "Once"]
    together = generate(model, tokenizer, prompts, 16, 3)
    assert together == [generate(model, tokenizer, [p], 16)[0] for p in prompts]
    assert "there was a little girl named Lily" in together[0]
