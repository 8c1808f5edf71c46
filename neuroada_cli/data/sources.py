"""Where rows come from: a folder given once, local files, the published addresses, the hub.

A source is written `set` or `set:split`. Local files and fetched URLs are read strictly (`data.reading`), the
hub goes through `datasets`. What was fetched from a URL is kept in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import urllib.parse
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from neuroada_cli.data.fetching import Unreachable, fetched
from neuroada_cli.data.finding import Found, find_file
from neuroada_cli.data.formats import PACKED, row_bytes
from neuroada_cli.data.hub_rows import hub_rows
from neuroada_cli.data.lazy import Lazy
from neuroada_cli.data.made_pictures import make_pictures
from neuroada_cli.data.made_rows import FOR_READERS, make_rows
from neuroada_cli.data.picture_folders import class_folders, rows_of_classes
from neuroada_cli.data.reading import FileRows, Row, read_as, streamed
from neuroada_cli.errors import DataError, RecipeError, UserError, unreadable
from neuroada_cli.foreign_text import HAS_SECRETS, INSTEAD, has_secrets
from neuroada_cli.machine.network import hub_answers

LLM_ADAPTERS = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
# set -> public address; {split} is filled in. Hub ids are "owner/name:config".
KNOWN_SETS: dict[str, str] = {
    **{
        name: f"{LLM_ADAPTERS}/ft-training_set/{name}.json"
        for name in ("commonsense_170k", "commonsense_15k", "math_10k")
    },
    **{
        name: f"{LLM_ADAPTERS}/dataset/{name}/{{split}}.json"
        for name in (
            "boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge",
            "openbookqa", "MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP", "mawps",
        )
    },
    "c4_demo": "https://raw.githubusercontent.com/hiyouga/LLaMA-Factory/main/data/c4_demo.jsonl",
    "gsm8k_openai": "openai/gsm8k:main",
    "metamath": "meta-math/MetaMathQA",
    "cifar10": "uoft-cs/cifar10",
    "textvqa": "lmms-lab/textvqa",
    **{
        f"glue_{name}": f"nyu-mll/glue:{name}"
        for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    },
}  # fmt: skip
# sets made by the package itself, with how many rows a split has
GENERATED: dict[str, Callable[[str, int], list[Row]]] = {"due_dates": make_rows, "shapes": make_pictures}
GENERATED_ROWS = {"train": 4000, "validation": 400, "test": 800}

STREAMED_FROM = 256 << 20  # bytes; rows in memory and their tokens take ten to thirty times as many
LINES = (".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
ENVIRONMENT = "NEUROADA_DATA"


@dataclass(frozen=True)
class Rows:
    """Rows of one split.

    source   where they came from
    sha256   of the content of all rows that were there, not of the file (which may be packed)
    lines    their line numbers in a local file
    numbers  their numbers in the source, when they are only a part of it
    partial  the source is named as a part of the split (test_1000 for test)
    key      under which the rows lay in a file that is one JSON object
    spare    columns that stand there for readers, and for no task
    said     what of the source is not in the rows, or is otherwise there
    """

    rows: Sequence[Row]
    source: str
    sha256: str
    lines: Sequence[int] | None = None
    numbers: list[int] | None = None
    partial: bool = False
    key: str | None = None
    spare: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, chosen: Sequence[int]) -> Rows:
        """The rows at these places, which remember where they come from."""
        lines = None if self.lines is None else [self.lines[i] for i in chosen]
        numbers = [i if self.numbers is None else self.numbers[i] for i in chosen]
        return replace(self, rows=[self.rows[i] for i in chosen], lines=lines, numbers=numbers)

    @property
    def remarks(self) -> list[str]:
        """What is to be said once of the source: where rows lay in a file that holds more than rows, and what
        became of others'."""
        said = [f"{self.label}: {each}" for each in self.said]
        if self.key is not None:
            said.append(f"{self.label} is one object: its rows are those under {self.key[:40]!r}")
        return said

    @property
    def place(self) -> str:
        """The source for messages about its rows."""
        return self.source if self.key is None else f"{self.source}, under {self.key[:40]!r}"

    @property
    def label(self) -> str:
        """The source for result files, which others read: of a path on this machine only the end."""
        path = Path(self.source)
        return "/".join(path.parts[-2:]) if path.exists() else self.source


def load_rows(
    source: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    key: str | None = None,
    streaming: bool | None = None,
    console: Console | None = None,
) -> Rows:
    """The rows of a source.

    source    `set` or `set:split` (`file:key`); a set is looked for in data_dir, then as a file or folder,
              then among KNOWN_SETS, then as a hub id or URL; a folder may hold class folders of pictures
    split     used when the source names none
    data_dir  searched first; without it $NEUROADA_DATA
    key       under which the rows of a file that is one JSON object lie; None: its only list of objects
    streaming whether rows of a file here stay in it until they are asked for; None: those of large files that
              can be read so
    console   where is shown how far it is with a large file
    Raises DataError for a set that is nowhere (saying where it was looked for), for malformed rows (file,
    line, and how many), for a set without rows, and for an address that may hold secrets.
    """
    if has_secrets(source):
        raise DataError(f"a data set {HAS_SECRETS}", fix=INSTEAD)
    name, split = split_source(source, split)
    here, places = _find_here(name, split, data_dir)
    if here is not None:
        file = here.file
        if source != name and file in places:  # rows.json:test, the rows of a file that are under test
            key = split
        rows = _checked(_read(file, key, streaming, console), str(file))
        return replace(rows, partial=here.part, said=(*here.said, *rows.said))
    for place in places:
        if (folder := class_folders(place, split)) is not None:
            if streaming:
                raise _whole(folder)
            return _checked(FileRows(rows_of_classes(folder)), str(folder))
    address = KNOWN_SETS.get(name, name)
    is_url = address.startswith(("https://", "http://"))
    if streaming and (name in GENERATED or (_is_hub_id(address) and not is_url)):
        raise _whole(source)
    if name in GENERATED:
        if split not in GENERATED_ROWS:
            raise DataError(f"has no split {split}", name, f"choose {', '.join(GENERATED_ROWS)}")
        copies = [dict(row) for row in _made(name, split)]
        made = _checked(FileRows(copies), f"{name} ({split}, made by neuroada)")
        return replace(made, spare=FOR_READERS)
    if is_url:
        if name in KNOWN_SETS and "{split}" not in address and split != "train":
            raise _nowhere(source, places, f"{address} has training rows only")
        address = address.replace("{split}", split)
        if streaming and not urllib.parse.urlsplit(address).path.endswith(".jsonl"):
            raise _whole(address)  # before it is fetched
        return _checked(_from_url(address, source, places, key, streaming, console), address)
    if _is_hub_id(address):
        return _checked(_from_hub(address, split, source, places, key), f"{address} {split}")
    raise _nowhere(source, places)


@functools.cache
def _made(name: str, split: str) -> tuple[Row, ...]:
    """A run asks several times: to learn, to validate, and for what it must not be tested on."""
    return tuple(GENERATED[name](split, GENERATED_ROWS[split]))


def field_for(source: str, key: str | None) -> str | None:
    """`data.field` for a source beside the first: files of lines, and tables, hold rows and nothing else."""
    name = split_source(source, "")[0]
    for packed in PACKED:
        name = name.removesuffix(packed)
    return None if name.endswith(LINES) else key


def _read(
    file: Path, key: str | None, streaming: bool | None, console: Console | None, url: str | None = None
) -> FileRows:
    """url: where the file was fetched from. Raises DataError for a file that should be streamed and cannot
    be: by its name before it is read."""
    path, place = (urllib.parse.urlsplit(url).path, url) if url else (str(file), str(file))
    lines = path.endswith(".jsonl")
    if streaming and not lines:
        raise _whole(place)
    wanted = file.stat().st_size >= STREAMED_FROM if streaming is None else streaming
    found = streamed(file, place, console) if wanted and key is None and lines else None
    if found is not None:
        return found
    whole = read_as(file, Path(path).name, place, key)  # which tells what is wrong with it
    if streaming:
        raise _whole(place)
    return whole


def _whole(place: Path | str) -> DataError:
    """What should be streamed, and can only be read as a whole."""
    packed = str(place).endswith(PACKED)
    fix = "unpack it first" if packed else "write one object a line to a .jsonl file"
    return DataError(
        "can only be read as a whole: data.streaming is for .jsonl files", str(place),
        f"{fix}, or remove data.streaming",
    )  # fmt: skip


def refuse_foreign(source: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> None:
    """For a source that a stranger's file names: it may lie here, or be a known set, but nothing is fetched.

    Raises DataError for an address or hub id that is none of KNOWN_SETS.
    """
    name, split = split_source(source, split)
    if name in KNOWN_SETS or _find_here(name, split, data_dir)[0] is not None:
        return
    if name.startswith(("https://", "http://")) or _is_hub_id(name):
        raise DataError(
            "is named by the adapter, which may be a stranger's, and not fetched",
            name,
            "name a recipe of your own with --recipe, or give --data-dir",
        )


def file_here(source: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The file on this machine that `load_rows` would read; None for rows from elsewhere, or nowhere."""
    try:
        found = _find_here(*split_source(source, split), data_dir)[0]
    except DataError:  # whoever reads it tells that
        return None
    return None if found is None else found.file


def _find_here(
    name: str, split: str, data_dir: str | os.PathLike[str] | None
) -> tuple[Found | None, list[Path]]:
    """(the file on this machine that holds a split, the places that were looked at)."""
    folder = data_dir or os.environ.get(ENVIRONMENT)
    places = [Path(folder) / name] if folder else []
    if folder and not Path(folder).is_dir():
        raise DataError("no such folder", str(folder), f"mend --data-dir (or ${ENVIRONMENT})")
    places.append(Path(os.path.expanduser(name)))
    for place in places:
        try:
            found = find_file(place, split)
        except OSError as error:
            raise unreadable(error, place, DataError) from None
        if found is not None:
            return found, places
    return None, places


def _is_hub_id(name: str) -> bool:
    return HUB_ID.match(name.partition(":")[0]) is not None and not Path(name).is_absolute()


def split_source(source: str, split: str) -> tuple[str, str]:
    """("math_10k:train_no_test_overlap", "train") -> ("math_10k", "train_no_test_overlap")."""
    if source.startswith(("https://", "http://")):
        return source, split
    name, colon, named = source.rpartition(":")
    if not colon or "/" in named or not named:
        return source, split
    if HUB_ID.match(name):  # owner/name:config is the hub's way of naming a part
        return source, split
    return name, named


def take(rows: Sized, limit: int | None, seed: int) -> list[int]:
    """Row numbers of at most `limit` rows, chosen by seed, in the source's order."""
    if limit is None or limit >= len(rows):
        return list(range(len(rows)))
    chance = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(len(rows), generator=chance)[:limit].tolist())


# ---------------------------------------------------------------------------------------------------
# Elsewhere


def _from_url(
    url: str,
    source: str,
    places: list[Path],
    key: str | None,
    streaming: bool | None,
    console: Console | None,
) -> FileRows:
    try:
        kept = fetched(url, "data")
    except Unreachable as error:
        raise _nowhere(source, places, f"{url} {error.what}") from None
    return _read(kept, key, streaming, console, url)


def _from_hub(address: str, split: str, source: str, places: list[Path], key: str | None) -> FileRows:
    from huggingface_hub import constants

    name, _, config = address.partition(":")
    if not constants.HF_HUB_OFFLINE and not hub_answers(constants.ENDPOINT):
        raise _nowhere(source, places, "the hub does not answer")
    try:
        return hub_rows(name, config or None, split, key)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign data set brings about
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"cannot be loaded: {reason}", f"{address} {split}") from error


def _nowhere(source: str, places: list[Path], also: str = "") -> DataError:
    looked = ", ".join(map(str, places))
    also = f", and {also}" if also else ""
    return DataError(
        f"no such data set (looked at {looked}{also})",
        source,
        f"name a file, a folder, a hub id or a URL, or give --data-dir (or ${ENVIRONMENT})",
    )


def _checked(found: FileRows, source: str) -> Rows:
    if not found.rows:
        raise DataError("holds no rows", source)
    if isinstance(found.rows, Lazy):  # hashed when it was looked at
        return Rows(found.rows, source, found.rows.fingerprint(), found.lines)
    digest = hashlib.sha256()
    for row in found.rows:
        digest.update(row_bytes(row))
    return Rows(found.rows, source, digest.hexdigest(), found.lines, key=found.key, said=found.said)


def require_source(source: str | None, key: str) -> str:
    """Raises RecipeError for a task that has no data set of its own."""
    if source is None:
        raise RecipeError(f"{key} is missing: this task has no data set of its own", fix=f"set {key}")
    return source
