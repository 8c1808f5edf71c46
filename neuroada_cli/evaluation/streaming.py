"""One answer, told while it is written.

S = sequence length
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.data.encoding import without_turn_end
from neuroada_cli.errors import DataError
from neuroada_cli.evaluation.generate import (
    GREEDY,
    NanWatch,
    context_of,
    drawing,
    is_encoder_decoder,
    own_settings,
)
from neuroada_cli.hub.embeddings import refuse_unknown
from neuroada_cli.hub.positions import answer_positions_of
from neuroada_cli.loop.modes import evaluating
from neuroada_cli.loop.numerics import not_numbers
from neuroada_cli.tasks.task import Decoding

UNFINISHED = "�"  # what a decoder writes for bytes of which more are to come

OnText = Callable[[str], object]


@dataclass(frozen=True)
class Answer:
    """text    without the end token, and without the turn end that the template writes in front of it
    tokens  that were written, the end token not counted
    ended   whether the model ended it; else it was cut at the room that it had, or stopped
    """

    text: str
    tokens: int
    ended: bool


def answer(
    model: nn.Module,
    tokenizer: Any,
    prompt: list[int],
    max_new_tokens: int,
    on_text: OnText = lambda text: None,
    decoding: Decoding = GREEDY,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    turn_end: str = "",
) -> Answer:
    """What the model writes behind the tokens of a prompt.

    on_text  told each piece as soon as it is whole; together they are the answer's text
    seed     of what sampling draws; the caller's random state is left as it was
    stop     asked after every token
    turn_end what a chat template ends an answer with in plain text: no part of an answer that ends in it;
             what may be its beginning is not told before more is known
    Where the prompt leaves less room in the model's context, the answer is as long as fits.
    Raises DataError for a prompt that leaves no room, NumericsError for NaN.
    """
    from transformers.generation import StoppingCriteriaList

    context, pairs = context_of(model), is_encoder_decoder(model)
    # each side of an encoder-decoder has positions of its own, and an answer begins with a token
    whole = (answer_positions_of(model), 1) if pairs else (context, len(prompt))
    room = max_new_tokens if whole[0] is None else min(max_new_tokens, whole[0] - whole[1])
    if not prompt or room < 1 or (pairs and context is not None and len(prompt) > context):
        raise DataError(
            f"the prompt has {len(prompt)} tokens, and the model takes {context}"
            if prompt
            else "the prompt is empty, and this tokenizer starts texts with nothing",
            fix="ask something shorter" if prompt else "ask something",
        )
    refuse_unknown(model, [(None, prompt)], tokenizer.name_or_path)
    some = next(model.parameters())
    tokens_1S = torch.tensor([prompt], device=some.device)
    watch = NanWatch(some.device, decoding.temperature is not None)
    pieces = _Pieces(tokenizer, on_text, turn_end)
    with evaluating(model), torch.inference_mode(), own_settings(model, tokenizer, room, decoding):
        pieces.ends = frozenset(model.generation_config.eos_token_id)  # type: ignore[union-attr,arg-type]
        with nullcontext() if decoding.temperature is None else drawing(model, [prompt], seed):
            model.generate(  # type: ignore[operator]
                tokens_1S,
                attention_mask=torch.ones_like(tokens_1S),
                logits_processor=[watch],
                max_new_tokens=room,
                streamer=pieces,
                stopping_criteria=StoppingCriteriaList([_Asked(stop)]),
            )
    if watch.seen:
        raise not_numbers(
            model,
            "the model's outputs are not numbers (NaN), so nothing it writes means anything",
            "try --dtype fp32",
        )
    return Answer(pieces.told, len(pieces.tokens), pieces.ended)


class _Asked:
    """Stops where somebody wishes it."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self._stop(), device=input_ids.device, dtype=torch.bool)


class _Pieces:
    """Text of the tokens so far, decoded as a whole each time: transformers' own streamer begins anew behind
    line breaks, where SentencePiece tokenizers then lose the spaces that indent a line.
    """

    def __init__(self, tokenizer: Any, on_text: OnText, turn_end: str) -> None:
        self._tokenizer, self._on_text, self._turn_end = tokenizer, on_text, turn_end
        self.ends: frozenset[int] = frozenset()
        self.tokens: list[int] = []
        self.told = ""
        self.ended = False
        self._begun = False

    def put(self, value: Tensor) -> None:
        if not self._begun:  # the prompt comes first
            self._begun = True
            return
        for token in value.flatten().tolist():
            self.ended |= token in self.ends
            if not self.ended:
                self.tokens.append(token)
        self._tell(_before_an_end(self._text().rstrip(UNFINISHED), self._turn_end.strip()))

    def end(self) -> None:
        self._tell(without_turn_end(self._text(), self._turn_end))

    def _text(self) -> str:
        return str(self._tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _tell(self, text: str) -> None:
        if text.startswith(self.told) and len(text) > len(self.told):
            piece, self.told = text[len(self.told) :], text
            self._on_text(piece)


def _before_an_end(text: str, end: str) -> str:
    """`text` without what may turn out to be a turn end, and without the space in front of that."""
    if not end:
        return text
    bare = text.rstrip()
    begun = next((n for n in range(min(len(end), len(bare)), 0, -1) if bare.endswith(end[:n])), 0)
    return bare[: len(bare) - begun].rstrip()
