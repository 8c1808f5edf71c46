"""What lies at an address, fetched once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import urllib.parse
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from neuroada_cli import files
from neuroada_cli.errors import DataError
from neuroada_cli.machine.cache import cache_folder
from neuroada_cli.machine.network import hub_answers


class Unreachable(DataError):
    """The host of an address does not answer, or is not to be asked."""


def fetched(url: str, kind: str) -> Path:
    """The file that holds what lies at `url`.

    kind  the folder of the cache it is kept in
    Raises DataError for an address that cannot be fetched (Unreachable: whose host does not answer),
    ResourceError for the disk.
    """
    from huggingface_hub import constants

    kept = kept_at(url, kind)
    if not kept.is_file():
        if constants.HF_HUB_OFFLINE:
            raise Unreachable("is not fetched, since HF_HUB_OFFLINE is set", url)
        parts = urllib.parse.urlsplit(url)
        if not _answers(f"{parts.scheme}://{parts.netloc}"):
            raise Unreachable("does not answer", url)
        with files.explained(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, kept)
    return kept


def kept_at(url: str, kind: str) -> Path:
    """Where it is kept, whether it is there or not."""
    name = Path(urllib.parse.urlsplit(url).path).name[-80:]
    return cache_folder() / kind / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


@lru_cache(maxsize=256)  # of a thousand pictures of one host that is away, one is asked for
def _answers(host: str) -> bool:
    return hub_answers(host)


def _fetch(url: str, kept: Path) -> None:
    """The hub client's downloader: it retries, resumes and honours the user's proxies."""
    from huggingface_hub.file_download import http_get

    def fill(file: BinaryIO) -> None:
        try:
            http_get(url, file)
        except Exception as error:  # whatever a foreign server brings about
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"cannot be fetched: {reason}", url) from error

    files.write_binary(kept, fill)
