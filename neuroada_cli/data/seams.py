"""Where one part of a text ends and the next begins, in tokens.

A tokenizer may draw the end of a prompt and the start of its answer into one token ("Label: " and "bad" into
"▁bad"). Then that token belongs to neither: masked, it takes the answer's first letters out of training;
learnt, it stands behind another prompt than the one that is asked later. So a text is cut before it is
tokenised wherever an answer begins or ends, unless its tokens part there anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuroada_cli.errors import ModelError

# Texts to stand before one that goes on: behind them no tokenizer puts the space that it starts a text with.
ANCHORS = ("\n", ":", ".", "a", "0", "|", "-")


@dataclass(frozen=True)
class Cut:
    """ids     tokens of a text
    places  of each cut: how many tokens stand before it
    clean   whether the text's own tokens part at every cut; else it was tokenised in parts
    """

    ids: list[int]
    places: list[int]
    clean: bool


class Coder:
    """One tokenizer's way from text to tokens: one start token where it adds one, never an end."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bos: str | None = getattr(tokenizer, "bos_token", None)
        self._unknown: int | None = getattr(tokenizer, "unk_token_id", None)
        plain, full = self._plain(["a"])[0], list(tokenizer("a", verbose=False)["input_ids"])
        starts = range(len(full) - len(plain) + 1)
        self.start: list[int] = full[: next((n for n in starts if full[n:][: len(plain)] == plain), 0)]

    def ids(self, text: str, rendered: bool = False) -> list[int]:
        """rendered: a chat template wrote the text, and with it all its special tokens."""
        return self.many([text], [rendered])[0]

    def many(self, texts: Sequence[str], rendered: Sequence[bool]) -> list[list[int]]:
        """The same of many texts, which is much faster."""
        return [self._begun(*each) for each in zip(texts, self._plain(texts), rendered, strict=True)]

    def _begun(self, text: str, plain: list[int], rendered: bool) -> list[int]:
        own = rendered or (bool(self._bos) and text.startswith(str(self._bos)))
        return plain if own else [*self.start, *plain]

    def cut(self, texts: Sequence[str], cuts: Sequence[Sequence[int]], rendered: Sequence[bool]) -> list[Cut]:
        """Tokens of each text, parted at its cuts (characters, ascending, at least one)."""
        whole = self.many(texts, rendered)
        jobs = [(at, place) for at, places in enumerate(cuts) for place in places]
        heads = self.many([texts[at][:place] for at, place in jobs], [rendered[at] for at, _ in jobs])
        of_text: list[list[list[int]]] = [[] for _ in texts]
        for (at, _), head in zip(jobs, heads, strict=True):
            of_text[at].append(head)
        found = []
        for at, ids in enumerate(whole):
            if all(self._begins(ids, head) for head in of_text[at]):
                found.append(Cut(ids, [len(head) for head in of_text[at]], True))
            else:
                found.append(self._in_parts(texts[at], cuts[at], of_text[at], ids))
        return found

    def _in_parts(self, text: str, cuts: Sequence[int], heads: Sequence[list[int]], whole: list[int]) -> Cut:
        """Each part behind the one before it, whose tokens stay as they are."""
        ids, places = list(heads[0]), [len(heads[0])]
        longer = [*heads[1:], whole]
        for begin, end, upto in zip(cuts, [*cuts[1:], len(text)], longer, strict=True):
            ids = list(upto) if self._begins(upto, ids) else ids + self.going_on(text[begin:end])
            places.append(len(ids))
        return Cut(ids, places[:-1], ids == whole)

    def _begins(self, whole: list[int], head: list[int]) -> bool:
        """Whether a text's tokens begin with those of its beginning. An unknown token at the end of these may
        stand for more of the text than theirs.
        """
        return whole[: len(head)] == head and (not head or head[-1] != self._unknown)

    def going_on(self, text: str) -> list[int]:
        """Tokens of a text that other text stands before."""
        if not text:
            return []
        second: list[int] | None = None
        for anchor in ANCHORS:
            before, both = self._plain([anchor, anchor + text])
            if both[: len(before)] != before or not before:
                continue
            rest = both[len(before) :]
            if self.decode(both) == self.decode(before) + text:
                return rest
            second = rest if second is None else second
        return self._plain([text])[0] if second is None else second

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones too, and nothing tidied."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def as_written(self, text: str) -> str:
        """What is left of a text when this tokenizer has written it: not all of them keep case and spaces."""
        return self.decode(self.going_on(text))

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # a tokenizer is foreign, its code too: anything may come out of it
            where = str(getattr(self._tokenizer, "name_or_path", "")) or None
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ModelError(f"the tokenizer fails on {self._failing(texts)}: {reason}", where) from error
        return [list(ids) for ids in found]

    def _failing(self, texts: Sequence[str]) -> str:
        for text in texts:
            try:
                self._tokenizer([text], add_special_tokens=False, verbose=False)
            except Exception:
                return f"{text[:40]!r}"
        return "these rows"


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """A prompt's tokens as the model gets them: one start where the tokenizer adds one, no end."""
    return Coder(tokenizer).ids(text)
