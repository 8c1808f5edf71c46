"""Encoded rows are kept in the user's cache folder, so that the same ones are encoded once.

The name of a file is a hash of all that its content depends on: every row, the tokenizer as it stands, the
settings, and the code that encodes. Whatever of it changes leads to another name, and an old file is never
read again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from neuroada_cli.data import encoding, seams, stored
from neuroada_cli.data.batch import Encoded, Example
from neuroada_cli.data.encoding import EncodeReport, RowSink
from neuroada_cli.data.lazy import Lazy, fingerprint_of
from neuroada_cli.errors import ResourceError, UserError
from neuroada_cli.files.cached import keep_to, used
from neuroada_cli.files.disk import explained
from neuroada_cli.hub.endings import endings
from neuroada_cli.hub.tokenizer_class import without_calls
from neuroada_cli.machine.cache import cache_folder

MANY = 1000  # rows, below which encoding is as fast as looking
MOST_BYTES = 4 << 30  # of the folder
FOLDER, ENDING = "rows", ".safetensors"
Made = tuple[Sequence[Encoded], EncodeReport]
Make = Callable[[RowSink], EncodeReport]  # hands its rows over, and counts them


def encoded_once(examples: Sequence[Example], tokenizer: Any, settings: Sequence[object], make: Make) -> Made:
    """What `make` gives, or gave before. A cache that cannot be written is none.

    settings  what the result depends on beside rows and tokenizer
    Tokens of examples that are made lazily stay in the file. Raises ResourceError where it cannot be written.
    """
    own = _state(tokenizer) if len(examples) >= MANY or isinstance(examples, Lazy) else None
    if isinstance(examples, Lazy):
        return _left_in_file(examples, own, settings, make)
    if own is None or any(example.pictures for example in examples):
        return _in_memory(make)
    file = _file_of(examples, own, settings)
    if (found := stored.opened(file)) is not None:
        used(file)
        with suppress(UserError):
            return list(found), found.report
    made = _in_memory(make)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with stored.writing(file) as writer:
            writer.extend(made[0])
            writer.finish(made[1])
    except (UserError, OSError):
        return made
    keep_to(file.parent, ENDING, MOST_BYTES)
    return made


def _in_memory(make: Make) -> Made:
    rows: list[Encoded] = []
    report = make(rows)
    return rows, report


def _left_in_file(examples: Lazy[Example], own: str | None, settings: Sequence[object], make: Make) -> Made:
    once = own is None  # who knows what this tokenizer gives the next time
    file = _file_of(examples, own or secrets.token_hex(16), settings)
    found = stored.opened(file)
    if found is None:
        try:
            with explained(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            with stored.writing(file) as writer:
                writer.finish(make(writer))
        except ResourceError as error:
            fix = "make room, or let $NEUROADA_CACHE name a folder with room"
            raise ResourceError(error.what, error.where, fix) from None
        found = stored.Stored(file)
    used(file)
    keep_to(file.parent, ENDING, MOST_BYTES, kept=file)
    if once:
        with suppress(OSError):
            file.unlink()
    return found, found.report


def _file_of(examples: Sequence[Example], own: str, settings: Sequence[object]) -> Path:
    digest = hashlib.sha256(json.dumps([_rules(), repr(settings), own]).encode())
    digest.update(fingerprint_of(examples).encode())
    return cache_folder() / FOLDER / f"{digest.hexdigest()}{ENDING}"


def _state(tokenizer: Any) -> str | None:
    """Everything that a tokenizer's result depends on; None for one that does not say it, or whose code is
    not transformers' own.
    """
    backend = getattr(without_calls(tokenizer), "backend_tokenizer", None)
    kind = type(tokenizer)
    if backend is None or not kind.__module__.startswith("transformers."):
        return None
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    ends = sorted(endings(tokenizer).ids)
    return json.dumps([kind.__qualname__, special, ends, repr(tokenizer), backend.to_str()])


@lru_cache(maxsize=1)
def _rules() -> list[str]:
    """The code that encodes, and the libraries' versions."""
    source = b"".join(Path(str(module.__file__)).read_bytes() for module in (encoding, seams, stored))
    versions = [importlib.metadata.version(package) for package in ("transformers", "tokenizers")]
    return [hashlib.sha256(source).hexdigest(), Path(__file__).read_text(encoding="utf-8"), *versions]
