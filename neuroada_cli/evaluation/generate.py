"""Answers of a language model, in length-sorted, left-padded batches with a KV cache.

B = rows of a batch, S = sequence length, V = vocabulary
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import pad_id, token_ids
from neuroada_cli.errors import DataError, NumericsError
from neuroada_cli.loop.validate import evaluating
from neuroada_cli.tasks.task import Decoding

# (numbers of the rows just done, their completions, tokens generated)
OnBatch = Callable[[list[int], list[str], int], None]
GREEDY = Decoding()


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 16,
    on_batch: OnBatch | None = None,
    decoding: Decoding = GREEDY,
    seed: int = 0,
) -> list[str]:
    """The completions of `prompts`, in their order, without the end token.

    Whatever the model's own generation settings say, `decoding` is what happens. Rows of similar length share
    a batch, longest first, and a batch ends with its last row's end token.
    Sampling starts anew in every batch, from `seed` and the batch's tokens: the same rows in the same batches
    give the same texts, also when an evaluation goes on after a stop, on one device with one version of
    torch. Another batch size makes other batches, so it draws other texts; the caller's random state is left
    as it was.
    Raises DataError for a prompt that leaves no room in the model's context, NumericsError for NaN.
    """
    encoded = [token_ids(tokenizer, prompt) for prompt in prompts]
    _refuse_unfit(model, encoded, max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    completions = [""] * len(prompts)
    settings = _own_settings(model, tokenizer, max_new_tokens, decoding)
    with evaluating(model), torch.inference_mode(), settings:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = [encoded[i] for i in numbers]
            with nullcontext() if decoding.temperature is None else _drawing(model, rows, seed):
                texts, count = _complete(model, tokenizer, rows)
            for number, text in zip(numbers, texts, strict=True):
                completions[number] = text
            if on_batch is not None:
                on_batch(numbers, texts, count)
    return completions


def _complete(model: Any, tokenizer: Any, rows: list[list[int]]) -> tuple[list[str], int]:
    device = next(model.parameters()).device
    pad, ends = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    length = max(map(len, rows))
    tokens_BS = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=device)
    attention_BS = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    watch = _NanWatch(device, bool(model.generation_config.do_sample))
    output_BS = model.generate(tokens_BS, attention_mask=attention_BS, logits_processor=[watch])
    if watch.seen:
        raise NumericsError(
            "the model's outputs are not numbers (NaN), so nothing it writes means anything",
            fix="try --dtype fp32; if that fails, too, its weights are broken",
        )
    new = [_until_end(row, ends) for row in output_BS[:, length:].tolist()]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in new], sum(map(len, new))


class _NanWatch:
    """Remembers on the device whether any score was NaN, so that looking costs one transfer per batch.

    Sampling cannot draw from NaN, nor from infinity, and on a GPU would not come back from the attempt: there
    it goes on with other scores, until the batch's end.
    """

    def __init__(self, device: torch.device, sampling: bool) -> None:
        self.seen = torch.zeros((), dtype=torch.bool, device=device)
        self._sampling = sampling

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        if not self._sampling:
            self.seen |= scores_BV.isnan().any()
            return scores_BV
        broken_BV = scores_BV.isnan() | scores_BV.isposinf()
        self.seen |= broken_BV.any()
        return scores_BV.masked_fill(broken_BV, 0.0)


@contextmanager
def _drawing(model: nn.Module, rows: list[list[int]], seed: int) -> Iterator[None]:
    """Inside, random numbers depend on `seed` and the rows alone; afterwards they are as before."""
    device = next(model.parameters()).device
    digest = hashlib.sha256(repr((seed, rows)).encode()).digest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        yield


@contextmanager
def _own_settings(model: Any, tokenizer: Any, max_new_tokens: int, decoding: Decoding) -> Iterator[None]:
    """Inside, the model's generation settings are ours.

    They are replaced, not passed along: `generate` fills what a caller leaves open (a repetition penalty,
    say) from the model's own.
    """
    from transformers import GenerationConfig

    before = model.generation_config
    drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    sampling = decoding.temperature is not None
    model.generation_config = GenerationConfig(
        do_sample=sampling,
        **(drawn if sampling else {}),
        num_beams=decoding.beams,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=_end_ids(before, tokenizer),
        use_cache=True,
    )
    try:
        yield
    finally:
        model.generation_config = before


def _end_ids(settings: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end token, and those the model names (chat models end a turn with their own)."""
    named = getattr(settings, "eos_token_id", None)
    ends = [named] if isinstance(named, int) else list(named or [])
    return sorted({*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in ends), len(row))]


def _refuse_unfit(model: Any, encoded: list[list[int]], max_new_tokens: int) -> None:
    if any(not row for row in encoded):
        raise DataError(
            "a prompt is empty, and this tokenizer starts rows with nothing", fix="remove the row"
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, encoded), default=0)
    if context is not None and longest + max_new_tokens > context:
        raise DataError(
            f"the longest prompt has {longest} tokens; {max_new_tokens} new ones do not fit behind it into "
            f"the model's context of {context}",
            fix="lower eval.max_new_tokens (--max-new-tokens)"
            if longest < context
            else "choose a model with a longer context, or leave this task out",
        )
