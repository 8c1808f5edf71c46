"""Answers of a language model, in length-sorted, left-padded batches with a KV cache.

B = rows of a batch, S = sequence length, V = vocabulary
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import pad_id
from neuroada_cli.data.encoding import end_ids
from neuroada_cli.data.pairs import asked, front
from neuroada_cli.data.seams import Coder
from neuroada_cli.errors import DataError
from neuroada_cli.evaluation.greedy import can_leave
from neuroada_cli.evaluation.rounds import in_rounds
from neuroada_cli.evaluation.together import can_be_together
from neuroada_cli.evaluation.vllm_engine import VllmEngine
from neuroada_cli.hub.embeddings import refuse_unknown
from neuroada_cli.hub.positions import answer_positions_of, positions_of
from neuroada_cli.loop.loss import on_model
from neuroada_cli.loop.modes import evaluating
from neuroada_cli.loop.numerics import not_numbers
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.tasks.task import Decoding

if TYPE_CHECKING:
    from neuroada_cli.evaluation.writer import Writer

# (numbers of the rows just done, their completions, tokens generated)
OnBatch = Callable[[list[int], list[str], int], None]
GREEDY = Decoding()
# how the answers of an encoder-decoder begin is a part of the model, no habit of writing
BEGINNINGS = ("decoder_start_token_id", "bos_token_id", "forced_bos_token_id")


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | list[int]],
    max_new_tokens: int,
    batch_size: int = 16,
    on_batch: OnBatch | None = None,
    decoding: Decoding = GREEDY,
    seed: int = 0,
    special: bool = False,
    ranks: Ranks = ALONE,
    beside: Callable[[Sequence[int]], dict[str, Tensor]] | None = None,
    engine: VllmEngine | None = None,
) -> list[str]:
    """The completions of `prompts` (texts, or their tokens), in their order, without the end token.

    special  write special tokens as text and tidy nothing, so that an answer comes back as it was learnt
    ranks    take turns at the batches, which are the same ones; each ends with all completions
    beside   numbers of rows -> what the model is given beside their tokens, padded on the left
    engine   writes in place of the model, of which then only its settings are used

    Whatever the model's own generation settings say, `decoding` is what happens. Rows of similar length share
    a batch, longest first, and a batch ends with its last row's end token; rows of one length, or
    each by itself, where others would change what is written. Where the most likely token is
    taken and the model allows it (`greedy.can_leave`), rows leave when they end, a prefix that the prompts
    share is computed once, and what a text already held is guessed and asked at once.
    Sampling starts anew in every batch, from `seed` and the batch's tokens: the same rows in the same batches
    give the same texts, also when an evaluation goes on after a stop, on one device with one version of
    torch. Another batch size makes other batches, so it draws other texts; the caller's random state is left
    as it was.
    A row whose prompt leaves less room in the model's context than max_new_tokens writes what fits.
    Raises DataError where no prompt leaves room for max_new_tokens, or one leaves none at all; NumericsError
    for NaN.
    """
    coder, pairs = Coder(tokenizer), is_encoder_decoder(model)
    encoded = [_encoded(prompt, coder, tokenizer, pairs) for prompt in prompts]
    _refuse_unfit(model, encoded, max_new_tokens)
    refuse_unknown(model, ((None, row) for row in encoded), tokenizer.name_or_path)
    completions = [""] * len(prompts)
    settings = own_settings(model, tokenizer, max_new_tokens, decoding)
    with evaluating(model), torch.inference_mode(), settings:
        writer = _writer(model) if beside is None and engine is None else None

        def texts_of(batch: tuple[list[int], int]) -> tuple[list[str], int]:
            numbers, room = batch
            rows = [encoded[i] for i in numbers]
            if engine is not None:
                ends: Any = cast(Any, model).generation_config.eos_token_id
                new = engine.complete(rows, room, ends, decoding, seed)
                return _as_texts(tokenizer, new, special, pairs)
            with nullcontext() if decoding.temperature is None else drawing(model, rows, seed):
                also = {} if beside is None else beside(numbers)
                return _complete(model, tokenizer, rows, room, special, also, writer)

        shared = None if pairs else context_of(model)  # an answer with a decoder of its own takes none of it
        tried = writer is None and engine is None and beside is None and batch_size > 1
        together = can_be_together(model, encoded, pad_id(tokenizer)) if tried else "all"
        batch_size, alike = 1 if together == "none" else batch_size, together != "all"
        batches = _batches(encoded, batch_size, max_new_tokens, shared, alike)
        for (numbers, _), (texts, count) in in_rounds(batches, texts_of, ranks):
            for number, text in zip(numbers, texts, strict=True):
                completions[number] = text
            if on_batch is not None:
                on_batch(numbers, texts, count)
    return completions


def _batches(
    encoded: list[list[int]], batch_size: int, most: int, context: int | None, alike: bool
) -> Iterator[tuple[list[int], int]]:
    """(numbers of rows, how many tokens they may write), longest first; a batch has one room for all, and
    one length of prompts where these are to be `alike`.
    """
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))

    def kind(i: int) -> tuple[float, int]:
        return min(most, (context or math.inf) - len(encoded[i])), alike * len(encoded[i])

    for (room, _), group in groupby(order, kind):
        numbers = list(group)
        for start in range(0, len(numbers), batch_size):
            yield numbers[start : start + batch_size], int(room)


def _writer(model: Any) -> Writer | None:
    """Ours, where the most likely token is taken and the model allows it."""
    settings = model.generation_config
    if settings.do_sample or settings.num_beams > 1 or not can_leave(model):
        return None
    from neuroada_cli.evaluation.writer import Writer

    return Writer(model, settings.eos_token_id, next(model.parameters()).device)


def _complete(
    model: Any,
    tokenizer: Any,
    rows: list[list[int]],
    room: int,
    special: bool,
    also: dict[str, Tensor],
    writer: Writer | None,
) -> tuple[list[str], int]:
    if writer is not None:
        new = writer.complete(rows, room)
        broken = writer.broken
    else:
        new, broken = _by_library(model, rows, room, also, next(model.parameters()).device)
    if broken:
        raise not_numbers(
            model,
            "the model's outputs are not numbers (NaN), so nothing it writes means anything",
            "try --dtype fp32",
        )
    return _as_texts(tokenizer, new, special, is_encoder_decoder(model))


def _as_texts(tokenizer: Any, new: list[list[int]], special: bool, pairs: bool) -> tuple[list[str], int]:
    """(what each row wrote, tokens in all). What stands in front of every answer is a part of none."""
    tidied = {"clean_up_tokenization_spaces": False} if special else {}
    mark = front(tokenizer) if special and pairs else []
    count = sum(map(len, new))
    new = [row[len(mark) :] if row[: len(mark)] == mark else row for row in new]
    texts = [tokenizer.decode(row, skip_special_tokens=not special, **tidied) for row in new]
    return texts, count


def _by_library(
    model: Any, rows: list[list[int]], room: int, also: dict[str, Tensor], device: torch.device
) -> tuple[list[list[int]], bool]:
    """(what each row goes on with, without its end token; whether a score was NaN)."""
    pad, ends = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    length = max(map(len, rows))
    tokens_BS = torch.full((len(rows), length), pad)
    attention_BS = torch.zeros_like(tokens_BS)
    pairs = is_encoder_decoder(model)
    for row, ids in enumerate(rows):
        # what is written goes on behind the prompt; an encoder counts positions from the left
        place = slice(0, len(ids)) if pairs else slice(length - len(ids), length)
        tokens_BS[row, place], attention_BS[row, place] = torch.tensor(ids), 1
    tokens_BS, attention_BS = tokens_BS.to(device), attention_BS.to(device)
    watch = NanWatch(device, bool(model.generation_config.do_sample))
    output_BS = model.generate(
        tokens_BS, attention_mask=attention_BS, logits_processor=[watch], max_new_tokens=room,
        **on_model(model, also),
    )  # fmt: skip
    begun = 1 if pairs else length  # a decoder begins with its start token
    return [_until_end(row, ends) for row in output_BS[:, begun:].tolist()], bool(watch.seen)


class NanWatch:
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
def drawing(model: nn.Module, rows: list[list[int]], seed: int) -> Iterator[None]:
    """Inside, random numbers depend on `seed` and the rows alone; afterwards they are as before."""
    device = next(model.parameters()).device
    digest = hashlib.sha256(repr((seed, rows)).encode()).digest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        yield


@contextmanager
def own_settings(model: Any, tokenizer: Any, max_new_tokens: int, decoding: Decoding) -> Iterator[None]:
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
        **{key: getattr(before, key, None) for key in BEGINNINGS if is_encoder_decoder(model)},
    )
    try:
        yield
    finally:
        model.generation_config = before


def _end_ids(settings: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer, and those the model names (chat models end a turn with their own)."""
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return sorted({*(token for token in listed if type(token) is int), *end_ids(tokenizer)})


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in ends), len(row))]


def _refuse_unfit(model: Any, encoded: list[list[int]], max_new_tokens: int) -> None:
    if any(not row for row in encoded):
        raise DataError(
            "a prompt is empty, and this tokenizer starts rows with nothing", fix="remove the row"
        )
    context, lengths = context_of(model), [len(row) for row in encoded]
    if context is None or not lengths:
        return
    if is_encoder_decoder(model):
        answers = answer_positions_of(model) or context
        return _refuse_longer(max(lengths), max_new_tokens, context, answers)
    if max(lengths) >= context:
        raise DataError(
            f"the longest prompt has {max(lengths)} tokens, which fill the model's context of {context}",
            fix="choose a model with a longer context, or leave this task out",
        )
    if min(lengths) + max_new_tokens > context:
        raise DataError(
            f"the shortest prompt has {min(lengths)} tokens; {max_new_tokens} new ones do not fit behind it "
            f"into the model's context of {context}",
            fix="lower eval.max_new_tokens (--max-new-tokens)",
        )


def context_of(model: Any) -> int | None:
    """How many tokens a prompt and its answer may have together; None where the model sets no bound."""
    return positions_of(model)


def _encoded(prompt: str | list[int], coder: Coder, tokenizer: Any, pairs: bool) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    return asked(tokenizer, prompt)[0] if pairs else coder.ids(prompt)


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _refuse_longer(longest: int, max_new_tokens: int, context: int, answers: int) -> None:
    """Each side of an encoder-decoder has positions of its own."""
    if longest > context:
        raise DataError(
            f"the longest prompt has {longest} tokens, and the encoder takes {context}",
            fix="shorten the prompts, or choose a model with a longer context",
        )
    if max_new_tokens >= answers:
        raise DataError(
            f"{max_new_tokens} new tokens do not fit into the decoder's {answers}",
            fix="lower eval.max_new_tokens (--max-new-tokens)",
        )
