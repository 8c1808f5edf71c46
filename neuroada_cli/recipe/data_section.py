"""The section `data` of a recipe: which rows, and how they are read."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from neuroada_cli.errors import nearest
from neuroada_cli.foreign_text import HAS_SECRETS, INSTEAD, has_secrets
from neuroada_cli.recipe.section import Section

MOST_OFTEN = 100  # times that an epoch shows a row
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
COLUMNS = (  # our names of the columns of rows of one's own
    "prompt", "completion", "instruction", "input", "output", "text", "system", "history", "messages",
    "tools", "label", "pair",
)  # fmt: skip


class DataSection(Section):
    task: str = Field(description="What the rows are: commonsense, math, rte, instruct, text_classes, …")
    protocol: str = Field(
        "reft",
        description="Prompts, loss mask, scoring rules: reft (the paper's), llm-adapters, peft (metamath).",
    )
    format: Literal["alpaca", "chat", "prompt-completion", "text"] | None = Field(
        None, description="Row format, for task `instruct` only; empty recognises it from the first row."
    )
    labels: list[str] = Field(
        [],
        description="Names of the classes, in the order of their numbers, for tasks `image_classes` and "
        "`text_classes`; empty: of texts those in the training rows.",
    )
    columns: dict[str, str] = Field(
        {},
        description="Our names of columns -> theirs, for `instruct`: {prompt: question, completion: answer}; "
        "for `text_classes`: {text: review, label: stars}.",
    )
    learn: Literal["last", "assistant", "all"] | None = Field(
        None,
        description="What of a conversation is learnt, for `instruct`: the last answer, every turn of the "
        "assistant, or all; empty: as the protocol has it (reft assistant, llm-adapters all).",
    )
    chat_template: str | None = Field(
        None, description="A .jinja file to use instead of the tokenizer's own chat template."
    )
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        {}, description="What else the chat template is told: {enable_thinking: false}."
    )
    date: datetime.date | None = Field(
        None,
        description="The day that a chat template is told; empty: that of the run's start, kept with it.",
    )
    train: str | None = Field(
        None,
        description="Training rows: known set, file, folder, hub id or URL; or a folder with a folder of "
        "pictures for each class.",
    )
    also: dict[str, float] = Field(
        {},
        description="Further training rows: source -> how often an epoch shows each of them (3: three times; "
        "0.25: a quarter of them, chosen by seed). Those of `train` are shown once.",
    )
    validation: str | None = Field(None, description="Validation rows, likewise.")
    validation_rows: Count | Share = Field(
        0,
        description="With no `validation`: hold out this many rows of the training set's end; below 1, this "
        "share of them.",
    )
    field: str | None = Field(
        None,
        description="Under which key the rows of `train` and `validation` lie in a file that is one JSON "
        "object (`data.rows`: a key within a key); empty: its only list of objects.",
    )
    limit: int | None = Field(None, ge=1, description="Use only this many training rows (seeded choice).")
    validation_limit: int | None = Field(None, ge=1, description="Use only this many validation rows.")
    streaming: bool | None = Field(
        None,
        description="Rows stay in their .jsonl file until they are asked for, and tokens on the disk: for "
        "sets larger than memory, with the same result; empty: for files from 256 MiB on.",
    )
    drop_leaked: bool = Field(
        False, description="Leave out training rows whose question a test set of `eval.tasks` asks, too."
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="Tokens per row; empty: the protocol's own (reft 512, llm-adapters 256).",
    )
    too_long: Literal["refuse", "cut", "drop"] = Field(
        "refuse",
        description="What becomes of a longer row, counted. refuse: its end is cut off, and a prompt that "
        "fills max_length by itself stops the run; cut: the prompt's beginning goes first, then the answer's "
        "end; drop: it is left out. A text that gets a class or a score is shortened by refuse and by cut; "
        "`eval` leaves no row out.",
    )
    data_dir: str | None = Field(
        None, description="Folder searched first for data sets (also $NEUROADA_DATA)."
    )

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_day(cls, day: Any) -> Any:
        if isinstance(day, int | float):
            raise ValueError("data.date is a number; write it as YYYY-MM-DD")
        return day

    @field_validator("columns")
    @classmethod
    def _are_ours(cls, columns: dict[str, str]) -> dict[str, str]:
        for ours in columns:
            if ours not in COLUMNS:
                raise ValueError(f"data.columns: {ours[:40]} is none of our names; {nearest(ours, COLUMNS)}")
        return columns

    @field_validator("also")
    @classmethod
    def _are_weights(cls, also: dict[str, float]) -> dict[str, float]:
        for source, weight in also.items():
            if has_secrets(source):
                raise ValueError(f"data.also {HAS_SECRETS}; {INSTEAD}")
            if not 0 < weight <= MOST_OFTEN:
                raise ValueError(f"data.also: {weight:g} is not above 0 and at most {MOST_OFTEN}")
        return also

    @field_validator("train", "validation")
    @classmethod
    def _holds_no_secret(cls, source: str | None, info: ValidationInfo) -> str | None:
        if source is not None and has_secrets(source):
            raise ValueError(f"data.{info.field_name} {HAS_SECRETS}; {INSTEAD}")
        return source
