"""What a task is: what a row of a data set means under a protocol, and how an answer to it is scored.

A protocol fixes prompts, loss mask, decoding, extraction and scoring; results under different protocols
cannot be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

from neuroada_cli.data.batch import Example
from neuroada_cli.data.images import Picture, root_of
from neuroada_cli.data.lazy import Lazy, Made
from neuroada_cli.data.reading import Row
from neuroada_cli.data.typed import require_plain
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.hub.kinds import Work
from neuroada_cli.tasks.notes import Notes

BY_LOSS = ("perplexity", "loss")  # metrics of rows that are learnt as a whole; lower is better
Kind = Literal["generation", "classification", "regression"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Protocol:
    """loss_mask names what is learnt; every result file carries name and mask.

    max_length  tokens of a training row, unless data.max_length says otherwise
    beams       1: greedy decoding, else plain beam search
    rules       family of tasks -> prompts and scoring, of a protocol in a file of its own; those of the two
                below stand in the families' files
    """

    name: str
    loss_mask: Literal["target only", "prompt and target"]
    max_length: int
    beams: int
    rules: Mapping[str, Rules] = field(default_factory=dict)

    @property
    def loss_on_prompt(self) -> bool:
        return self.loss_mask == "prompt and target"


PROTOCOLS = {
    "reft": Protocol("reft", "target only", max_length=512, beams=1),
    "llm-adapters": Protocol("llm-adapters", "prompt and target", max_length=256, beams=4),
    "peft": Protocol("peft", "prompt and target", max_length=768, beams=1),
}


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen: the most likely one, or with a temperature one that is drawn.

    beams  1: one path, else the best of so many
    """

    beams: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0

    def __str__(self) -> str:
        beams = f"{self.beams} beams" if self.beams > 1 else ""
        if self.temperature is None:
            return beams or "greedy"
        drawn = f"T {self.temperature:g}, top-p {self.top_p:g}, top-k {self.top_k}"
        return f"sampling ({drawn}{', ' if beams else ''}{beams})"


@dataclass(frozen=True)
class Scoring:
    """How one protocol turns what a model wrote into a score.

    extract   (prompt, completion) -> the answer found in it; "" for none
    correct   (extracted, reference) -> whether it counts
    strict    a stricter scorer on the completion, reported in its own column
    credit    (extracted, reference) -> 0 to 1, of rules that give a part of a point; the score is their mean
    sampling  what `eval.decoding: sampling` means, where the protocol offers it beside its own decoding
    """

    extract: Callable[[str, str], str]
    correct: Callable[[str, str], bool]
    max_new_tokens: int
    strict: Callable[[str, str], bool] | None = None
    sampling: Decoding | None = None
    credit: Callable[[str, str], float] | None = None


@dataclass(frozen=True)
class Task:
    """One task.

    example     (row, number, protocol name) -> Example
    sets        split -> default source ("set" or "set:split") of the rows
    scoring     protocol name -> Scoring, for generation
    metrics     names in `tasks.metrics`, the first one ranks checkpoints (not for generation)
    num_labels  classes; 1 for regression, None for generation
    published   a benchmark of the papers: rows are tokenised and answers decoded by their code's rules
    pictures    its rows come with pictures
    """

    name: str
    family: str
    kind: Kind
    example: Callable[[Row, int, str], Example]
    sets: dict[Split, str] = field(default_factory=dict)
    scoring: dict[str, Scoring] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)
    num_labels: int | None = None
    labels: tuple[str, ...] = ()
    published: bool = False
    pictures: bool = False

    @property
    def by_loss(self) -> bool:
        """Scored by how likely its rows are, not by what is written: plain text has no question."""
        return self.metrics[0] in BY_LOSS

    @property
    def work(self) -> Work:
        """What it asks of a model."""
        return Work(self.kind, self.pictures)


@dataclass(frozen=True)
class Rules:
    """What a protocol does with one family of tasks.

    example  (row, number) -> Example
    scoring  task -> Scoring
    """

    example: Callable[[Row, int], Example]
    scoring: Callable[[Task], Scoring]


def under(task: Task, protocol: Protocol) -> Task:
    """`task` with the prompts and the scoring of a protocol.

    Raises RecipeError when the protocol has no rules for it.
    """
    rules = protocol.rules.get(task.family)
    if rules is not None:
        scoring = {**task.scoring, protocol.name: rules.scoring(task)}
        return replace(
            task,
            example=lambda row, number, _: rules.example(row, number),
            scoring=scoring,
            published=False,  # its seam of prompt and answer is ours, not the papers'
        )
    if task.kind == "generation" and protocol.name not in task.scoring:
        raise RecipeError(
            f"protocol {protocol.name} has no rules for task {task.name}",
            fix=f"choose {', '.join(task.scoring)}",
        )
    return task


def decoding_of(task: Task, protocol: Protocol, named: Literal["greedy", "sampling"] | None) -> Decoding:
    """How answers to a task are written; `named` is `eval.decoding`, None: the protocol's own.

    Raises RecipeError where there is nothing to decode, or no sampling that goes with the protocol.
    """
    if named is None:
        return Decoding(protocol.beams)
    if task.kind != "generation":
        raise RecipeError(f"eval.decoding={named}, but {task.name} writes no text", fix="leave it out")
    if named == "greedy":
        return Decoding()
    sampling = task.scoring[protocol.name].sampling
    if sampling is None:
        raise RecipeError(
            f"eval.decoding=sampling: protocol {protocol.name} has none for {task.name}", fix="leave it out"
        )
    return sampling


def examples_of(
    task: Task,
    rows: Sequence[Row],
    protocol: str,
    source: str,
    lines: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
    notes: Notes | None = None,
) -> Sequence[Example]:
    """The examples of a task's rows: all of them are looked at, and of lazy rows made again when asked for.

    source   named in errors, and where the pictures of rows lie; lines: the line of each row in it, if known
    numbers  the rows' numbers in the source, where `rows` is only a part of it
    notes    collects which columns were read
    Raises DataError counting the rows that lack a field or hold the wrong type, naming the first.
    """
    root = root_of(source) if task.pictures else None

    def place_of(at: int) -> str:
        return f"{source}:{lines[at]}" if lines else f"{source}, row {number_of(at)}"

    def number_of(at: int) -> int:
        return at if numbers is None else numbers[at]

    def made(at: int, row: Row) -> Example:
        tracked = row if notes is None else notes.tracked(row)
        example = task.example(tracked, number_of(at), protocol)
        if not example.pictures:
            return example
        pictures = tuple(Picture(value, root, place_of(at)) for value in example.pictures)
        return replace(example, pictures=pictures)

    def again(at: int, row: Row) -> Example:
        with nullcontext() if notes is None else notes.unheard():
            return made(at, row)

    found: list[Example] = []
    bad: list[tuple[str, str, str]] = []
    needed = f"task {task.name} needs it in every row"
    lazily, digest = isinstance(rows, Lazy), hashlib.sha256()
    for at, row in enumerate(rows):
        try:
            example = made(at, row)
            if lazily:
                digest.update(repr(example).encode("utf-8", "surrogatepass") + b"\n")
            else:
                found.append(example)
        except KeyError as error:
            bad.append((place_of(at), f"has no field {error.args[0]!r}", needed))
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            bad.append((place_of(at), f"cannot be used: {error}", "mend such rows, or leave them out"))
    if bad:
        place, problem, fix = bad[0]
        more = f" ({len(bad)} of {len(rows)} rows are bad)" if len(bad) > 1 else ""
        raise DataError(f"{problem}{more}", place, fix)
    return Made(rows, again, digest.hexdigest()) if lazily else found


def text(row: Row, key: str) -> str:
    """A field that must be text. Raises KeyError or TypeError."""
    value = row[key]
    require_plain(key, value)
    if not isinstance(value, str):
        raise TypeError(f"{key} is {type(value).__name__}, not text")
    return value
