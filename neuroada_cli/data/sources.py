"""Where rows come from: a folder given once, local files, the published addresses, the hub.

A source is written `set` or `set:split`. Local JSON, JSON lines (both also as .xz) are read here, strictly,
so that a bad line is named; parquet, hub and URLs go through `datasets`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuroada_cli.data import due_dates
from neuroada_cli.errors import DataError, RecipeError

Row = dict[str, Any]

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
    "gsm8k_openai": "openai/gsm8k:main",
    **{
        f"glue_{name}": f"nyu-mll/glue:{name}"
        for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    },
}  # fmt: skip
# sets made by the package itself, with how many rows a split has
GENERATED: dict[str, Callable[[str, int], list[Row]]] = {"due_dates": due_dates.make_rows}
GENERATED_ROWS = {"train": 4000, "validation": 400, "test": 800}

ENDINGS = (".jsonl", ".json", ".jsonl.xz", ".json.xz", ".parquet")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
ENVIRONMENT = "NEUROADA_DATA"


@dataclass(frozen=True)
class Rows:
    """Rows of one split. source says where they came from; sha256 is of their content, not of the file;
    lines are their line numbers in a local file.
    """

    rows: list[Row]
    source: str
    sha256: str
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def load_rows(source: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Rows:
    """The rows of a source.

    source    `set` or `set:split`; a set is looked for in data_dir, then as a file or folder, then among
              KNOWN_SETS, then as a hub id or URL
    split     used when the source names none
    data_dir  searched first; without it $NEUROADA_DATA
    Raises DataError for a set that is nowhere (saying where it was looked for), for malformed rows (file,
    line, and how many), and for a set without rows.
    """
    name, split = split_source(source, split)
    folder = data_dir or os.environ.get(ENVIRONMENT)
    places = [Path(folder) / name] if folder else []
    if folder and not Path(folder).is_dir():
        raise DataError("no such folder", str(folder), f"mend --data-dir (or ${ENVIRONMENT})")
    places.append(Path(name).expanduser())
    for place in places:
        file = find_file(place, split)
        if file is not None:
            return _checked(*read_file(file), str(file))
    if name in GENERATED:
        rows = GENERATED[name](split, GENERATED_ROWS.get(split, 0))
        return _checked(rows, None, f"{name} ({split}, made by neuroada)")
    address = KNOWN_SETS.get(name, name)
    if address.startswith(("https://", "http://")):
        return _checked(_from_url(address.replace("{split}", split), source, places), None, address)
    if HUB_ID.match(address.partition(":")[0]) and not Path(name).is_absolute():
        return _checked(_from_hub(address, split, source, places), None, f"{address} {split}")
    raise _nowhere(source, places)


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


def find_file(place: Path, split: str) -> Path | None:
    """The file that holds a split: `place` itself, place.<ending>, or place/<split>.<ending>."""
    if place.is_file():
        return place
    for ending in ENDINGS:
        if (file := place.with_name(place.name + ending)).is_file() and split == "train":
            return file
    if not place.is_dir():
        return None
    for ending in ENDINGS:
        if (file := place / f"{split}{ending}").is_file():
            return file
    # a part of a split, like test_1000.jsonl.xz: results name the file, so nobody takes it for the whole
    parts = [file for file in sorted(place.glob(f"{split}_[0-9]*")) if file.name.endswith(ENDINGS)]
    if parts:
        return parts[0]
    there = (
        ", ".join(sorted(file.name for file in place.iterdir() if file.name.endswith(ENDINGS))) or "nothing"
    )
    raise DataError(f"has no split {split} (it holds {there})", str(place), "name one as SET:SPLIT")


def take(rows: Sized, limit: int | None, seed: int) -> list[int]:
    """Row numbers of at most `limit` rows, chosen by seed, in the source's order."""
    if limit is None or limit >= len(rows):
        return list(range(len(rows)))
    chance = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(len(rows), generator=chance)[:limit].tolist())


# ---------------------------------------------------------------------------------------------------
# Local files


def read_file(file: Path) -> tuple[list[Row], list[int] | None]:
    """(rows, their line numbers) of a local file. Raises DataError with file:line, counting the bad lines."""
    if file.name.endswith(".parquet"):
        return _parquet(file), None
    try:
        data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    except lzma.LZMAError:
        raise DataError("is not a whole .xz file", str(file), "copy it again") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", str(file)) from None
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    if data.lstrip()[:1] == b"[":
        return _json_array(data, file), None
    return _json_lines(data, file)


def _json_array(data: bytes, file: Path) -> list[Row]:
    try:
        rows = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError("not UTF-8 text", f"{file}:{line}", "save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", f"{file}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", str(file)) from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"row {number} is a {type(row).__name__}, not an object", str(file))
    return list(rows)


def _json_lines(data: bytes, file: Path) -> tuple[list[Row], list[int]]:
    rows: list[Row] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        problem = _parse_line(line, rows)
        if problem is None:
            lines.append(number)
        else:
            bad.append((number, problem))
    if bad:
        number, problem = bad[0]
        more = f" ({len(bad)} of {len(bad) + len(rows)} lines are bad)" if len(bad) > 1 else ""
        raise DataError(f"{problem}{more}", f"{file}:{number}", "mend or remove it")
    return rows, lines


def _parse_line(line: bytes, rows: list[Row]) -> str | None:
    """Adds the line's row; or says what is wrong with it."""
    if b"\0" in line:
        return "holds a NUL byte"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg}"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not an object"
    rows.append(row)
    return None


def _parquet(file: Path) -> list[Row]:
    try:
        import pyarrow.parquet  # comes with datasets

        return list(pyarrow.parquet.read_table(file).to_pylist())
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"is not a parquet file: {str(error).splitlines()[0]}", str(file)) from None


# ---------------------------------------------------------------------------------------------------
# Elsewhere


def _from_url(url: str, source: str, places: list[Path]) -> list[Row]:
    from neuroada_cli.hub.resolve import hub_answers

    if not hub_answers(url):
        raise _nowhere(source, places, f"{url} does not answer")
    import datasets

    kind = "parquet" if url.endswith(".parquet") else "json"
    try:
        return list(datasets.load_dataset(kind, data_files=url, split="train").to_list())
    except Exception as error:  # whatever a foreign server and file bring about
        raise DataError(f"cannot be loaded: {str(error).splitlines()[0][:200]}", url) from error


def _from_hub(address: str, split: str, source: str, places: list[Path]) -> list[Row]:
    from huggingface_hub import constants

    from neuroada_cli.hub.resolve import hub_answers

    name, _, config = address.partition(":")
    if not constants.HF_HUB_OFFLINE and not hub_answers(constants.ENDPOINT):
        raise _nowhere(source, places, "the hub does not answer")
    import datasets

    try:
        return list(datasets.load_dataset(name, config or None, split=split).to_list())
    except Exception as error:  # whatever a foreign data set brings about
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"cannot be loaded: {reason}", f"{address} {split}") from error


def _nowhere(source: str, places: list[Path], also: str = "") -> DataError:
    looked = ", ".join(f"{place}{_held(place)}" for place in places)
    also = f", and {also}" if also else ""
    return DataError(
        f"no such data set (looked at {looked}{also})",
        source,
        f"name a file, a folder, a hub id or a URL, or give --data-dir (or ${ENVIRONMENT})",
    )


def _held(place: Path) -> str:
    """The splits of a folder that lacks the wanted one."""
    if not place.is_dir():
        return ""
    names = sorted(file.name for file in place.iterdir() if file.name.endswith(ENDINGS))
    return f" (which holds {', '.join(names)})" if names else " (which holds no data files)"


def _checked(rows: list[Row], lines: list[int] | None, source: str) -> Rows:
    if not rows:
        raise DataError("holds no rows", source)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return Rows(rows, source, digest.hexdigest(), lines)


def require_source(source: str | None, key: str) -> str:
    """Raises RecipeError for a task that has no data set of its own."""
    if source is None:
        raise RecipeError(f"{key} is missing: this task has no data set of its own", fix=f"set {key}")
    return source
