"""Answers of a language model: greedy, in length-sorted, left-padded batches with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from neuroada_cli.data.batch import pad_id, token_ids
from neuroada_cli.errors import DataError

# (numbers of the rows just done, their completions, tokens generated)
OnBatch = Callable[[list[int], list[str], int], None]


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 16,
    on_batch: OnBatch | None = None,
    beams: int = 1,
) -> list[str]:
    """The completions of `prompts`, in their order, without the end token.

    Whatever the model's own generation settings say, decoding is greedy (or plain beam search with `beams`).
    Rows of similar length share a batch, longest first, and a batch ends with its last row's end token.
    Raises DataError for a prompt that leaves no room in the model's context.
    """
    encoded = [token_ids(tokenizer, prompt) for prompt in prompts]
    _refuse_long(model, encoded, max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    completions = [""] * len(prompts)
    pad = pad_id(tokenizer)
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            texts, count = _complete(
                model, tokenizer, [encoded[i] for i in numbers], pad, max_new_tokens, beams
            )
            for number, text in zip(numbers, texts, strict=True):
                completions[number] = text
            if on_batch is not None:
                on_batch(numbers, texts, count)
    return completions


def _complete(
    model: Any, tokenizer: Any, rows: list[list[int]], pad: int, max_new_tokens: int, beams: int
) -> tuple[list[str], int]:
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    length = max(map(len, rows))
    tokens_BS = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=device)
    attention_BS = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    ends = _end_ids(model, tokenizer)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=ends,
        use_cache=True,
    )
    output_BS = model.generate(tokens_BS, attention_mask=attention_BS, generation_config=settings)
    new = [_until_end(row, ends) for row in output_BS[:, length:].tolist()]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in new], sum(map(len, new))


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end token, and those the model names (chat models end a turn with their own)."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = [named] if isinstance(named, int) else list(named or [])
    return sorted({*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in ends), len(row))]


def _refuse_long(model: Any, encoded: list[list[int]], max_new_tokens: int) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]), default=None)
    if context is None or longest is None:
        return
    if len(encoded[longest]) + max_new_tokens > context:
        raise DataError(
            f"row {longest} has {len(encoded[longest])} tokens; {max_new_tokens} new ones do not fit "
            f"the model's context of {context}",
            fix="lower eval.max_new_tokens (--max-new-tokens)",
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
