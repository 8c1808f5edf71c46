"""The only writer of files: atomic, fsynced, with a manifest of hashes; and the strict readers of them.

    atomic_folder, atomic_file, atomic_link     all or nothing, also under a kill or a full disk
    stream_tensors, write_tensors               safetensors, one tensor in memory at a time
    grown_tensors                               the same, where the first one comes in parts
    write_json, write_text, append_jsonl, settle, copy_file
    read_tensors, read_json, read_jsonl,
    verify_folder, own_file, take_stock         ModelError for anything that is not what was written
    Lock, Reading, clean_stale, remove_folder, require_space, require_place

No pickle is read or written here. What needs torch is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from neuroada_cli.files.atomic import atomic_file, atomic_folder, atomic_link, clean_stale, remove_folder
from neuroada_cli.files.disk import explained, require_place, require_space
from neuroada_cli.files.lock import Lock, Reading
from neuroada_cli.files.manifest import MANIFEST, is_ours, manifest_text, own_file, take_stock, verify_folder
from neuroada_cli.files.text import (
    append_jsonl,
    copy_file,
    cut,
    open_log,
    read_json,
    read_jsonl,
    settle,
    write_binary,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from neuroada_cli.files.tensors import Growing, grown_tensors, read_tensors, stream_tensors, write_tensors

__all__ = [
    "MANIFEST",
    "Growing",
    "Lock",
    "Reading",
    "append_jsonl",
    "atomic_file",
    "atomic_folder",
    "atomic_link",
    "clean_stale",
    "copy_file",
    "cut",
    "explained",
    "grown_tensors",
    "is_ours",
    "manifest_text",
    "open_log",
    "own_file",
    "read_json",
    "read_jsonl",
    "read_tensors",
    "remove_folder",
    "require_place",
    "require_space",
    "settle",
    "stream_tensors",
    "take_stock",
    "verify_folder",
    "write_binary",
    "write_json",
    "write_tensors",
    "write_text",
]


def __getattr__(name: str) -> Any:
    if name not in {"Growing", "grown_tensors", "read_tensors", "stream_tensors", "write_tensors"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from neuroada_cli.files import tensors

    return getattr(tensors, name)
