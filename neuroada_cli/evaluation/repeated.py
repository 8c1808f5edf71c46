"""What a model wrote, without the prompt that other tools leave in front of it and without special tokens.

Generated ids hold the prompt's as well, and a tool that decodes all of them writes what begins a text, and a
chat template's heads, before the question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Special tokens as tokenizers write them: <s> </s> <bos> <|im_start|> <start_of_turn> [CLS] [INST] <<SYS>>
MARK = (
    r"(?:<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?s>|<</?SYS>>"
    r"|<(?:bos|eos|pad|unk|cls|sep|mask|start_of_turn|end_of_turn)>|\[/?(?:BOS|EOS|PAD|UNK|CLS|SEP|INST)\])"
)
ROLE = r"(?:system|developer|user|human|instruction|question|prompt)"
_NOTHING = r"[\s#:>*_]"  # what may stand around a role's name; a sign or a digit would be an answer's
_EMPTY = re.compile(rf"(?:{MARK}|\b{ROLE}\b|{_NOTHING})*", re.IGNORECASE)
_BEGUN = re.compile(rf"\s*(?:{MARK}|{ROLE}\s*(?:\n|:))", re.IGNORECASE)
_ASKS = re.compile(
    rf"(?:(?:^|\n|{MARK}){_NOTHING}*(?:user|human)\b|<</SYS>>)(?:{MARK}|{_NOTHING})*$", re.IGNORECASE
)
_ANSWERS = re.compile(rf"(?:\s*(?:{MARK}|(?:assistant|model|gpt)\s*?(?:\n|:|(?={MARK}))))+", re.IGNORECASE)
_FIRST, _LAST = re.compile(rf"(?:\s*{MARK})+", re.IGNORECASE), re.compile(rf"{MARK}$", re.IGNORECASE)


def without_prompt(written: str, prompts: Iterable[str]) -> str:
    """`written` without one copy of the first of `prompts` that it begins with, and without special tokens at
    both ends.

    In front of the copy may stand special tokens, names of roles and a system message, but no words of an
    answer. Its spaces may be others: decoding is no exact way back.
    """
    text = _without_ends(written)
    for prompt in prompts:
        words = prompt.split()
        found = re.search(r"\s*".join(map(re.escape, words)), text) if words else None
        if found is not None and _is_head(text[: found.start()]):
            return _without(_ANSWERS, text[found.end() :])
    return _without(_FIRST, text)


def _is_head(before: str) -> bool:
    """Whether it says nothing of its own, or is a chat template's text up to the user's turn."""
    if _EMPTY.fullmatch(before) is not None:
        return True
    return _BEGUN.match(before) is not None and _ASKS.search(before) is not None


def _without(start: re.Pattern[str], text: str) -> str:
    found = start.match(text)
    return text if found is None else text[found.end() :]


def _without_ends(text: str) -> str:
    while (found := _LAST.search(bare := text.rstrip())) is not None:
        text = bare[: found.start()]
    return text
