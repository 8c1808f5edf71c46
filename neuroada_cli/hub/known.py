"""What was found out of a model's files before: kept in the cache folder, for later commands.

Asking needs transformers' code, whose import alone takes seconds of processor time; yet the answer follows
from the bytes of a few files and the versions of the packages, which are what it is kept under. Where code of
ours decides as well, its own bytes belong to what it is kept under (`code_of`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from neuroada_cli import files
from neuroada_cli.errors import UserError
from neuroada_cli.files.cached import keep_to
from neuroada_cli.machine.cache import cache_folder

T = TypeVar("T")
MOST_BYTES = 256 << 20  # of each kind of answer
PACKAGES = ("torch", "transformers", "tokenizers", "neuroada-cli")


def known(
    what: str,
    told_by: Sequence[Path],
    about: object,
    find: Callable[[], T],
    to_record: Callable[[T], Any],
    from_record: Callable[[Any], T],
) -> T:
    """`find()`, or what it gave for files of the same bytes under the same versions.

    what     a name of the kind of answer: the cache's folder of it
    told_by  all files that the answer depends on; one that is not there counts as that
    about    what else it depends on: plain values
    to_record    JSON's values of an answer; None where it is not to be kept
    from_record  raises one of LookupError, TypeError, ValueError, AttributeError, RuntimeError for no record
    """
    file = cache_folder() / what / f"{_key(told_by, about)}.json"
    with suppress(UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        return from_record(files.read_json(file))
    found = find()
    record = to_record(found)
    if record is not None:
        with suppress(UserError, OSError):  # a cache that cannot be written costs time and nothing else
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(file, record)
            keep_to(file.parent, ".json", MOST_BYTES)
    return found


@cache
def code_of(*rooms: str) -> str:
    """A hash of the code in these folders of the package."""
    package = Path(__file__).parents[1]
    sources = sorted(source for room in rooms for source in (package / room).rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _key(told_by: Sequence[Path], about: object) -> str:
    versions = [metadata.version(name) for name in PACKAGES]
    asked = hashlib.sha256(json.dumps([versions, about], sort_keys=True).encode())
    for file in told_by:
        here = file.is_file()
        asked.update(f"{file.name} {here}".encode())
        asked.update(hashlib.sha256(file.read_bytes() if here else b"").digest())
    return asked.hexdigest()
