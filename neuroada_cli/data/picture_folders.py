"""Folders of pictures, a folder for each class: the form in which pictures are collected most.

FOLDER/train/cat/001.jpg      FOLDER/test/cat/104.jpg
FOLDER/train/dog/002.jpg      (or FOLDER/cat/001.jpg, where there are training pictures only)
"""

from __future__ import annotations

from pathlib import Path

from neuroada_cli.data.images import ENDINGS
from neuroada_cli.data.reading import Row
from neuroada_cli.errors import DataError


def class_folders(place: Path, split: str) -> Path | None:
    """The folder that holds a split's classes; None where there is none.

    Raises DataError for a folder that has classes of other splits only.
    """
    if not place.is_dir():
        return None
    if _holds_classes(place / split):
        return place / split
    others = sorted(entry.name for entry in _folders(place) if _holds_classes(entry))
    if others:
        raise DataError(
            f"has no split {split} (it holds {', '.join(others)})", str(place), "name one as SET:SPLIT"
        )
    return place if split == "train" and _holds_classes(place) else None


def rows_of_classes(folder: Path) -> list[Row]:
    """`image` (a path within the folder) and `label` (the class folder's name), in order of the names.

    Hidden files are left alone. Raises DataError counting what is no picture, and for a class without any.
    """
    rows: list[Row] = []
    others: list[Path] = []
    for of_class in _folders(folder):
        before = len(rows)
        for file in sorted(entry for entry in of_class.iterdir() if not entry.name.startswith(".")):
            if file.suffix.lower() in ENDINGS and file.is_file():
                rows.append({"image": file.relative_to(folder).as_posix(), "label": of_class.name})
            else:
                others.append(file)
        if len(rows) == before and not others:
            raise DataError("holds no picture", str(of_class), "remove the folder, or fill it")
    if others:
        raise DataError(
            f"{len(others)} entries of the class folders are no pictures", str(others[0]), "move them away"
        )
    return rows


def _holds_classes(folder: Path) -> bool:
    """Whether it holds folders with pictures in them."""
    return folder.is_dir() and any(
        entry.suffix.lower() in ENDINGS for of_class in _folders(folder) for entry in of_class.iterdir()
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
