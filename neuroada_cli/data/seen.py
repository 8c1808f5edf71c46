"""Rows with pictures: checked once, all of them, and turned into a model's inputs a batch at a time.

Pixels of a whole data set would not fit into memory, so a row keeps where its picture lies, and what it was
when it was checked; a picture that has changed since stops the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from neuroada_cli.data.batch import Encoded, Example, Features
from neuroada_cli.data.encoding import EncodeReport
from neuroada_cli.data.images import content_hash, decoded, explained, opened
from neuroada_cli.errors import DataError

PROCESSOR = "the model's image processor"


def encode_pictures(
    examples: Sequence[Example], processor: Any, kind: str
) -> tuple[list[Encoded], EncodeReport]:
    """Rows of one picture and a class (or score) each; every picture is opened.

    Raises DataError for no rows at all, counting the pictures that cannot be used, and for what the model's
    image processor refuses; ResourceError without Pillow.
    """
    if not examples:
        raise DataError("there are no rows", fix="check data.train and data.limit")
    if odd := [e.row for e in examples if len(e.pictures) != 1]:
        raise DataError(
            f"{len(odd)} of {len(examples)} rows have not one picture (the first is row {odd[0]})",
            fix="give each row one picture",
        )
    hashes: list[str] = [""] * len(examples)

    def note(number: int, _: Any, data: bytes) -> None:
        hashes[number] = content_hash(data)

    opened([example.pictures[0] for example in examples], note)
    labels = [float(e.answer) if kind == "regression" else int(e.answer) for e in examples]
    rows = [
        Encoded([], label, example.row, pictures=example.pictures, seen=(digest,))
        for example, label, digest in zip(examples, labels, hashes, strict=True)
    ]
    features_of(processor)(rows[:1])  # what the processor refuses is told now
    count = len(rows)
    return rows, EncodeReport(rows=count, tokens=0, targets=count, truncated=0, longest=0)


def features_of(processor: Any) -> Features:
    """What turns the pictures of rows into the inputs of a model that classifies them."""

    def features(rows: Sequence[Encoded]) -> dict[str, Tensor]:
        pictures = [picture for row in rows for picture in pixels(row)]
        with explained(PROCESSOR):
            return dict(processor(images=pictures, return_tensors="pt"))

    return features


def pixels(row: Encoded) -> list[Any]:
    """The pictures of a row, opened. Raises DataError for one that is not what it was when it was checked."""
    found = []
    for picture, digest in zip(row.pictures, row.seen, strict=True):
        try:
            data = picture.data()
            if content_hash(data) != digest:
                raise ValueError("image has changed since it was checked")
            found.append(decoded(data))
        except ValueError as error:
            raise DataError(str(error), picture.place, "start again with the pictures as they are") from None
    return found
