"""Which file of a folder holds a split: by its name, and never one of several without a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from neuroada_cli.data.formats import STATE
from neuroada_cli.data.reading import ENDINGS
from neuroada_cli.errors import DataError

LISTED = tuple(ending for ending in ENDINGS if ".txt" not in ending)  # any folder may hold texts
NAMED = 4  # files that a line names


class Found(NamedTuple):
    """file  holds the split
    part    by its name it holds so many rows of the split: test_1000.jsonl.xz
    others  files that would have been taken, were it not there
    """

    file: Path
    part: bool = False
    others: tuple[Path, ...] = ()

    @property
    def said(self) -> tuple[str, ...]:
        """What is to be said of the choice."""
        if not self.others:
            return ()
        names = _listed(["/".join(other.parts[-2:]) for other in self.others])  # these lines are kept
        return (f"taken, although there is {names}, too",)


def find_file(place: Path, split: str) -> Found | None:
    """The file that holds a split: `place` itself, place.<ending> (training rows), place/<split>.<ending>, or
    the one part of it there is (place/<split>_1000.<ending>); the first of these, and the others.

    Raises DataError for a folder of other splits, and for a split in several parts.
    """
    if place.is_file():
        return Found(place)
    beside = [place.with_name(place.name + ending) for ending in ENDINGS] if place.name else []
    there = [file for file in beside if file.is_file()] if split == "train" else []
    if place.is_dir():
        # folders that `datasets` saved
        states = [state for state in (place / STATE, place / split / STATE) if state.is_file()]
        there += [state for state in states if (state.parent / "dataset_info.json").is_file()]
        there += [file for ending in ENDINGS if (file := place / f"{split}{ending}").is_file()]
        if not there:
            return _part(place, split)
    return Found(there[0], others=tuple(there[1:])) if there else None


def _part(folder: Path, split: str) -> Found | None:
    """The one file that is named as a part of a split."""
    there = sorted(file.name for file in folder.iterdir() if file.name.endswith(LISTED))
    numbered = re.compile(rf"{re.escape(split)}_(\d+)\.")
    parts = sorted((name for name in there if numbered.match(name)), key=lambda name: _number(numbered, name))
    if len(parts) > 1:
        raise DataError(
            f"holds {len(parts)} parts of {split} ({_listed(parts)}), and which of them is meant is not said",
            str(folder),
            f"write one {split}.jsonl of all, or name one ({folder / parts[0]}) and the others in data.also",
        )
    if parts:
        return Found(folder / parts[0], part=True)
    if not there:
        return None  # some folder that happens to have the set's name
    raise DataError(
        f"has no split {split} (it holds {', '.join(there)})", str(folder), "name one as SET:SPLIT"
    )


def _number(numbered: re.Pattern[str], name: str) -> tuple[int, str]:
    found = numbered.match(name)
    return int(found[1]) if found else 0, name


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
