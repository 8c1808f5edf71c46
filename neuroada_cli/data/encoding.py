"""From examples to tokens: what is asked, what is learnt, and the way back to the text that is scored.

The tokens in front of an answer are the tokens of its prompt and nothing else, in training and when a model
is asked; the first token that holds a character of the answer is learnt, and the last one ends it. Published
tasks keep the rule of the papers' code instead (`published`): prompt and target are tokenised together, and
the prompt by itself only to find how many tokens of the whole are not learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, Literal, Protocol

from rich.text import Text

from neuroada_cli.data.batch import IGNORED, Encoded, Example
from neuroada_cli.data.seams import Coder, Cut
from neuroada_cli.errors import DataError, ModelError
from neuroada_cli.foreign_text import printable
from neuroada_cli.hub.endings import endings

FEW = 32  # tokens of an answer that may all be spaces
NOTHING_LEFT = "set data.too_long: cut, or raise it where the model takes more"
PART = 500  # rows that are tokenised at once
Watch = Callable[[int], object]
TooLong = Literal["refuse", "cut", "drop"]


class RowSink(Protocol):
    """What takes encoded rows part by part."""

    def extend(self, rows: Sequence[Encoded], /) -> None: ...


@dataclass(frozen=True)
class EncodeReport:
    """What encoding did.

    rows, tokens, targets, longest   rows that are left, all their tokens, the learnt ones, and of one row
    longest_answer  of an encoder-decoder: tokens of one decoder
    truncated  rows whose end was cut off; shortened: whose prompt lost its beginning; dropped: left out
    seams      rows whose prompt and answer share a token when they are written together
    ended      rows with an end token inside their answer: what stands behind it is never written
    unknown    rows with the unknown token in what is learnt
    """

    rows: int
    tokens: int
    targets: int
    truncated: int
    longest: int
    longest_answer: int = 0
    shortened: int = 0
    dropped: int = 0
    seams: int = 0
    ended: int = 0
    unknown: int = 0

    def with_more(self, more: EncodeReport) -> EncodeReport:
        """Of these rows and more of them."""
        summed = {name: value + getattr(more, name) for name, value in vars(self).items()}
        longest = {name: max(vars(self)[name], vars(more)[name]) for name in ("longest", "longest_answer")}
        return EncodeReport(**{**summed, **longest})


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    kind: str = "generation",
    loss_on_prompt: bool = False,
    published: bool = False,
    too_long: TooLong = "refuse",
    watch: Watch | None = None,
) -> tuple[list[Encoded], EncodeReport]:
    """Encode rows for training or validation.

    max_length      tokens per row
    kind            generation, classification or regression
    loss_on_prompt  learn the prompt's tokens, too (protocol `llm-adapters`)
    published       keep the papers' rule for the seam of prompt and answer
    too_long        what becomes of longer rows. refuse: their end is cut off, and a row whose prompt alone
                    fills max_length stops the run; cut: the beginning of the prompt goes, then the answer's
                    end; drop: they are left out
    watch           told how many rows more are done
    Raises DataError for no rows at all, rows without an answer, and what too_long refuses or leaves nothing
    of; ModelError for a tokenizer that cannot end a text, or fails.
    """
    if not examples:
        raise DataError("there are no rows", fix="check data.train and data.limit")
    if kind != "generation":
        return _encode_labels(examples, tokenizer, max_length, kind, too_long)
    rows: list[Encoded] = []
    report = encode_into(rows, examples, tokenizer, max_length, loss_on_prompt, published, too_long, watch)
    return rows, report


def encode_into(
    rows: RowSink,
    examples: Iterable[Example],
    tokenizer: Any,
    max_length: int,
    loss_on_prompt: bool,
    published: bool,
    too_long: TooLong,
    watch: Watch | None = None,
) -> EncodeReport:
    """The same for rows of text, part by part: no more than a part of them is in memory here."""
    texts = _Texts(tokenizer, max_length, loss_on_prompt, too_long)
    report, problems, count = EncodeReport(0, 0, 0, 0, 0), _Problems(), 0
    for part in _parts(examples):
        count += len(part)
        problems.empty += [e.row for e in part if texts.is_empty(e)]
        if problems.empty:  # only counted from here on
            continue
        cuts = texts.coded(part, published)
        if not published:  # there the answer may stand in the prompt's last token, which is counted
            problems.empty_tokens += [
                e.row for e, cut in zip(part, cuts, strict=True) if texts.says_nothing(e, cut)
            ]
        made = [texts.row(example, cut) for example, cut in zip(part, cuts, strict=True)]
        kept = [each for each in made if each is not None]
        problems.barren += [row.row for row, _ in kept if not texts.teaches(row)]
        rows.extend([row for row, _ in kept])
        report = report.with_more(_counted(texts, part, cuts, kept))
        if watch is not None:
            watch(len(part))
    refuse_without_answer(problems.empty or problems.empty_tokens, count)
    if not report.rows:
        raise DataError(f"all {count} rows are longer than data.max_length={max_length}", fix=NOTHING_LEFT)
    _refuse_without_target(report.rows, problems.barren, max_length)
    return report


def _parts(examples: Iterable[Example]) -> Iterator[list[Example]]:
    every = (each for example in examples for each in (*example.apart, example))
    while part := list(islice(every, PART)):
        yield part


@dataclass
class _Problems:
    """Rows without an answer, whose answer's tokens say nothing, and with nothing that is learnt."""

    empty: list[int] = field(default_factory=list)
    empty_tokens: list[int] = field(default_factory=list)
    barren: list[int] = field(default_factory=list)


def _counted(
    texts: _Texts, part: Sequence[Example], cuts: Sequence[Cut], kept: Sequence[tuple[Encoded, str]]
) -> EncodeReport:
    return EncodeReport(
        rows=len(kept),
        tokens=sum(len(row) for row, _ in kept),
        targets=sum(_targets(row) for row, _ in kept),
        truncated=sum(cut == "end" for _, cut in kept),
        longest=max((len(row) for row, _ in kept), default=0),
        shortened=sum(cut == "beginning" for _, cut in kept),
        dropped=len(part) - len(kept),
        seams=sum(not cut.clean for cut in cuts),
        ended=sum(texts.ends_early(e, cut) for e, cut in zip(part, cuts, strict=True)),
        unknown=sum(texts.holds_unknown(row) for row, _ in kept),
    )


class _Texts:
    """Rows of text under one set of rules."""

    def __init__(self, tokenizer: Any, max_length: int, loss_on_prompt: bool, too_long: TooLong) -> None:
        self._coder = Coder(tokenizer)
        self._ends, self._end_texts = end_ids(tokenizer), end_texts(tokenizer)
        unknown = tokenizer.unk_token_id
        self._own_end, self._unknown = int(tokenizer.eos_token_id), None if unknown in self._ends else unknown
        self._max, self._on_prompt, self._too_long = max_length, loss_on_prompt, too_long

    def coded(self, examples: Sequence[Example], published: bool) -> list[Cut]:
        """The tokens of each row, parted where something that is learnt begins or ends."""
        cuts = [[*(c for span in e.learnt for c in span), len(e.prompt)] for e in examples]
        rendered = [e.rendered for e in examples]
        texts = [e.prompt + e.target for e in examples]
        found = self._coder.cut(texts, cuts, rendered)
        if not published:
            return found
        whole = self._coder.many(texts, rendered)
        heads = self._coder.many([e.prompt for e in examples], rendered)
        return [
            Cut(ids, [min(len(head), len(ids))], cut.clean)
            for ids, head, cut in zip(whole, heads, found, strict=True)
        ]

    def is_empty(self, example: Example) -> bool:
        """Whether the content is empty, whatever a template leaves of it: an end token is none."""
        return not example.target.strip() or is_no_more_than(self._end_texts, str(example.answer))

    def says_nothing(self, example: Example, cut: Cut) -> bool:
        """Whether of an answer that is not empty no token is left but its end: tokenizers drop characters."""
        if len(cut.ids) - cut.places[-1] > FEW + len(example.lead + example.end):
            return False
        return is_no_more_than(self._end_texts, self._coder.as_written(str(example.answer)))

    def ends_early(self, example: Example, cut: Cut) -> bool:
        return any(token in self._ends for token in cut.ids[cut.places[-1] : -1])

    def holds_unknown(self, row: Encoded) -> bool:
        return self._unknown is not None and isinstance(row.labels, list) and self._unknown in row.labels

    def teaches(self, row: Encoded) -> bool:
        """Whether a token is left that is learnt and, where prompts are learnt as well, no prompt; the first
        of a row is never predicted.
        """
        labels = row.labels if isinstance(row.labels, list) else []
        first = row.prompt if self._on_prompt and row.prompt is not None else 1
        return any(label != IGNORED for label in labels[max(1, first) :])

    def row(self, example: Example, cut: Cut) -> tuple[Encoded, str] | None:
        """(the row, what was cut off: "", "end" or "beginning"); None for one that is left out."""
        ids, prompt = list(cut.ids), cut.places[-1]
        if len(ids) <= prompt or ids[-1] not in self._ends:
            ids.append(self._own_end)
        labels = ids if self._on_prompt else self._labels(ids, cut.places)
        over = len(ids) - self._max
        if over <= 0:
            return Encoded(ids, list(labels), example.row, prompt=prompt), ""
        if self._too_long == "drop":
            return None
        if self._too_long == "refuse":
            return Encoded(
                ids[: self._max], list(labels[: self._max]), example.row, prompt=min(prompt, self._max)
            ), "end"
        start = len(self._coder.start) if ids[: len(self._coder.start)] == self._coder.start else 0
        gone = min(over, max(0, prompt - start - 1))
        ids, labels = ids[:start] + ids[start + gone :], labels[:start] + labels[start + gone :]
        return (
            Encoded(ids[: self._max], labels[: self._max], example.row, prompt=prompt - gone),
            "beginning" if gone == over else "end",
        )

    def _labels(self, ids: list[int], places: Sequence[int]) -> list[int]:
        labels = [IGNORED] * len(ids)
        for begin, end in zip(places[:-1:2], places[1:-1:2], strict=True):
            if ids[end - 1] not in self._ends and ids[end] in self._ends:
                end += 1  # some templates leave a turn's end to the next message, which begins with it
            labels[begin:end] = ids[begin:end]
        labels[places[-1] :] = ids[places[-1] :]
        return labels


def end_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer. Raises ModelError for a tokenizer without any."""
    found = endings(tokenizer)
    if found.problem is not None:
        where = str(getattr(tokenizer, "name_or_path", "")) or None
        raise ModelError(found.problem, where, "set eos_token in its tokenizer_config.json")
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, so no answer could end", fix="set its eos_token")
    return found.ids


def end_texts(tokenizer: Any) -> list[str]:
    """The same tokens as text."""
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(end_ids(tokenizer))) if token]


def prompt_ids(examples: Sequence[Example], tokenizer: Any, published: bool = False) -> list[list[int]]:
    """The tokens that a model is asked with: of each example those that stand before its answer in training.

    A published protocol tokenises the prompt by itself.
    """
    coder = Coder(tokenizer)
    if published:
        return coder.many([e.prompt for e in examples], [e.rendered for e in examples])
    earlier = [[*(c for span in e.learnt for c in span), len(e.prompt)] for e in examples]
    return [
        cut.ids for cut in coder.cut([e.prompt for e in examples], earlier, [e.rendered for e in examples])
    ]


def answer_in(example: Example, written: str) -> str:
    """What a model wrote as its answer: `written` without what the chat template adds on both sides.

    A turn end is taken off where the text ends in it; a model that goes on behind it has answered before.
    """
    end, lead = example.end.strip(), example.lead.strip()
    text = written
    if end:
        bare = text.rstrip()
        text = bare.removesuffix(end) if bare.endswith(end) else text.partition(end)[0]
    if lead:
        # a thought of the model's own ends like the one in the row, which may be empty
        mark = lead.split()[-1]
        bare = text.lstrip()
        text = bare.removeprefix(lead) if bare.startswith(lead) else text.partition(mark)[2] or text
    return text


def without_turn_end(text: str, end: str) -> str:
    """What was written, without the turn end that a chat template writes as plain text, where the text ends
    in it; the space that the template puts in front of it goes with it. end: "" for none.
    """
    bare = text.rstrip()
    whole = next((each for each in (end.rstrip(), end.strip()) if each and bare.endswith(each)), "")
    return bare.removesuffix(whole) if whole else text


def is_no_more_than(ends: Sequence[str], answer: str) -> bool:
    """Whether an answer is empty but for end tokens, which answer nothing."""
    for text in ends:
        answer = answer.replace(text, "")
    return not answer.strip()


def refuse_without_answer(empty: Sequence[int], count: int) -> None:
    """Raises DataError for `empty` rows of `count`, by their numbers."""
    if empty:
        raise DataError(
            f"{len(empty)} of {count} rows have no answer to learn (the first is row {empty[0]})",
            fix="fill their answers in, or drop these rows",
        )


def _refuse_without_target(rows: int, barren: Sequence[int], max_length: int) -> None:
    if barren:
        raise DataError(
            f"{len(barren)} of {rows} rows have nothing to learn within data.max_length={max_length}: "
            f"their prompt alone fills it (the first is row {barren[0]})",
            fix="raise data.max_length, or set data.too_long: drop (or cut)",
        )


def _targets(row: Encoded) -> int:
    return sum(label != IGNORED for label in row.labels[1:]) if isinstance(row.labels, list) else 1


# ---------------------------------------------------------------------------------------------------
# Classes and scores


def _encode_labels(
    examples: Sequence[Example], tokenizer: Any, max_length: int, kind: str, too_long: TooLong
) -> tuple[list[Encoded], EncodeReport]:
    made = [_encode_label(e, tokenizer, max_length, kind) for e in examples]
    rows = [row for row in made if not (row.cut and too_long == "drop")]
    if not rows:
        raise DataError(
            f"all {len(made)} rows are longer than data.max_length={max_length}", fix=NOTHING_LEFT
        )
    return rows, EncodeReport(
        rows=len(rows),
        tokens=sum(map(len, rows)),
        targets=len(rows),
        truncated=sum(row.cut for row in rows),
        longest=max(map(len, rows)),
        dropped=len(made) - len(rows),
    )


def _encode_label(example: Example, tokenizer: Any, max_length: int, kind: str) -> Encoded:
    whole = tokenizer(example.prompt, example.pair, verbose=False)
    cut = len(whole["input_ids"]) > max_length
    # cutting is the tokenizer's: it shortens the longer text and keeps the end markers
    encoded = (
        tokenizer(example.prompt, example.pair, truncation=True, max_length=max_length) if cut else whole
    )
    label = float(example.answer) if kind == "regression" else int(example.answer)
    return Encoded(list(encoded["input_ids"]), label, example.row, encoded.get("token_type_ids"), cut=cut)


# ---------------------------------------------------------------------------------------------------


def preview(row: Encoded, tokenizer: Any, marks: bool = False) -> Text:
    """A row as the model sees it: tokens that are learnt stand out, the rest is dim; \\n is shown as ↵.

    marks  what is learnt stands in ⟦ ⟧ as well, for where there are no colours
    """
    text = Text()
    tokens = row.input_ids + (row.decoder or [])[1:]
    learnt = row.labels if isinstance(row.labels, list) else []
    learnt = learnt if row.decoder is None else learnt[1:]
    labels = [IGNORED] * (len(tokens) - len(learnt)) + learnt
    # runs, not single tokens: one character may be several tokens
    for ignored, run in groupby(zip(tokens, labels, strict=True), lambda pair: pair[1] == IGNORED):
        piece = printable(tokenizer.decode([token for token, _ in run]), keep="\n\t").replace("\n", "↵\n")
        piece = f"⟦{piece}⟧" if marks and not ignored else piece
        text.append(piece, style="dim" if ignored else "bold black on bright_green")
    return text
