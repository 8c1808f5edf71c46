"""The only writer of files: atomic, fsynced, with a manifest of hashes; and the strict readers of them.

    atomic_folder, atomic_file, atomic_link     all or nothing, also under a kill or a full disk
    stream_tensors, write_tensors               safetensors, one tensor in memory at a time
    write_json, write_text, append_jsonl, copy_file
    read_tensors, read_json, verify_folder      ModelError for anything that is not what was written
    Lock, clean_stale, require_space

No pickle is read or written anywhere.
"""

from neuroada_cli.files.atomic import atomic_file, atomic_folder, atomic_link, clean_stale
from neuroada_cli.files.disk import explained, require_space
from neuroada_cli.files.lock import Lock
from neuroada_cli.files.manifest import MANIFEST, verify_folder
from neuroada_cli.files.tensors import read_tensors, stream_tensors, write_tensors
from neuroada_cli.files.text import append_jsonl, copy_file, read_json, write_json, write_text

__all__ = [
    "MANIFEST",
    "Lock",
    "append_jsonl",
    "atomic_file",
    "atomic_folder",
    "atomic_link",
    "clean_stale",
    "copy_file",
    "explained",
    "read_json",
    "read_tensors",
    "require_space",
    "stream_tensors",
    "verify_folder",
    "write_json",
    "write_tensors",
    "write_text",
]
