"""The outline of a hub model: everything but its weights, of which only the headers are fetched.

What has to know a model's shapes and no number of it (a dry run) works on such a folder as on any other: its
files of weights have the real headers and sizes, and behind them nothing that takes room on the disk. Its
numbers must not be read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from neuroada_cli import files
from neuroada_cli.errors import ModelError
from neuroada_cli.files.folders import is_model
from neuroada_cli.hub.packaged import PACKAGED
from neuroada_cli.hub.resolve import (
    ANSWER_SECONDS,
    HUB_ID,
    OUTLINE,
    WEIGHT_FILES,
    ask_hub,
    check_folder,
    local_folder,
    resolve_model,
    wanted_files,
)
from neuroada_cli.machine.cache import cache_folder
from neuroada_cli.machine.network import hub_answers


def resolve_outline(path_or_id: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """`resolve_model` for who reads no weight: of a hub id that is not here only the small files and the
    headers of the weights are fetched. Raises ModelError.
    """
    from huggingface_hub import constants

    path = Path(path_or_id).expanduser()
    elsewhere = (
        path_or_id not in PACKAGED
        and not path.exists()
        and HUB_ID.match(path_or_id) is not None
        and not _is_here(path_or_id, revision)
        and not constants.HF_HUB_OFFLINE
        and hub_answers(constants.ENDPOINT)
    )
    if not elsewhere:
        _refuse_bare_config(path)
        return resolve_model(path_or_id, revision, trust_remote_code)
    unreachable = f"{constants.ENDPOINT} did not answer"
    folder = ask_hub(path_or_id, lambda: _fetched(path_or_id, revision, trust_remote_code), unreachable)
    check_folder(folder, trust_remote_code)
    return folder


def _refuse_bare_config(folder: Path) -> None:
    """Raises ModelError for a folder with a config and no weights in any format, saying what is enough."""
    from neuroada_cli.hub.weights import ANY_WEIGHTS

    if not is_model(folder):
        return
    if not any(ANY_WEIGHTS.fullmatch(e.name) or e.name.endswith(".index.json") for e in folder.iterdir()):
        raise ModelError(
            "holds a config and no weights, whose headers are needed",
            str(folder),
            "name the hub id, of which a dry run fetches no more than them, or the whole model's folder",
        )


def is_outline(folder: Path) -> bool:
    return (folder / OUTLINE).is_file()


def weights_of(folder: Path) -> int:
    """Bytes of the weights that an outline stands for."""
    return int(files.read_json(folder / OUTLINE)["nbytes"])


def _is_here(hub_id: str, revision: str | None) -> bool:
    from neuroada_cli.hub.weights import holds_weights

    folder = local_folder(hub_id, revision)
    return folder is not None and holds_weights(folder)


def _fetched(hub_id: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    commit = HfApi().model_info(hub_id, revision=revision, timeout=ANSWER_SECONDS).sha
    wanted = wanted_files(hub_id, commit, trust_remote_code)
    weights = [name for name in wanted if WEIGHT_FILES.match(name)]
    name = hashlib.sha256(json.dumps([hub_id, commit, sorted(wanted)]).encode()).hexdigest()[:24]
    folder = cache_folder() / "outlines" / f"{hub_id.replace('/', '--')}-{name}"
    if is_outline(folder):
        return folder
    small = [each for each in wanted if each not in weights]
    here = Path(snapshot_download(hub_id, revision=commit, allow_patterns=small))
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sizes = [_outline(hub_id, commit, each, folder / each) for each in weights]
    for each in small:
        files.copy_file(here / each, folder / each)
    files.write_json(folder / OUTLINE, {"hub id": hub_id, "commit": commit, "nbytes": sum(sizes)})
    return folder


def _outline(hub_id: str, commit: str | None, name: str, file: Path) -> int:
    """Write a file of weights with its header and its size alone; returns its size."""
    from huggingface_hub import HfApi

    found = HfApi().parse_safetensors_file_metadata(hub_id, name, revision=commit)
    header: dict[str, Any] = {
        tensor: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for tensor, info in found.tensors.items()
    }
    if found.metadata:
        header["__metadata__"] = dict(found.metadata)
    text = json.dumps(header).encode()
    size = 8 + len(text) + max((info.data_offsets[1] for info in found.tensors.values()), default=0)

    def fill(out: BinaryIO) -> None:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(size)

    files.write_binary(file, fill)
    return size
