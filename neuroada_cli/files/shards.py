"""Which safetensors files a model folder is made of, one or those of an index, and what their headers say.

Nothing here needs torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from neuroada_cli.errors import ModelError, unreadable
from neuroada_cli.files.safetensors_header import TensorInfo, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 256 << 20


def headers(folder: Path) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    """(name -> TensorInfo in the order on disk, metadata), every header checked against its file's size; None
    for a folder without such files.

    Raises ModelError for missing, truncated or contradictory files, naming the file.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():  # before an index, as transformers has it
        return read_header(single)
    return _sharded(folder, index) if index.is_file() else None


def _sharded(folder: Path, index: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    weight_map = read_index(index)
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        if not path.is_file():
            raise ModelError(f"{shard} is missing", str(folder), "download or copy the model again")
        held, shard_metadata = read_header(path)
        metadata.update(shard_metadata)
        for name, info in held.items():
            if weight_map.get(name) != shard:
                place = weight_map.get(name, "nowhere")
                raise ModelError(f"{name} is in {shard}, but {INDEX} puts it {place}", str(folder))
            infos[name] = info
    lost = next((name for name in weight_map if name not in infos), None)
    if lost is not None:
        raise ModelError(f"{INDEX} puts {lost} in {weight_map[lost]}, which lacks it", str(folder))
    return infos, metadata


def refuse_bare_index(folder: Path) -> None:
    """Raises ModelError for shards whose index has no metadata: transformers loads no such model. Merging
    reads the files itself and needs none.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return
    read_index(index)
    if not isinstance(json.loads(index.read_text(encoding="utf-8")).get("metadata"), dict):
        raise ModelError(
            "has no metadata, without which transformers loads no model",
            str(index),
            'add "metadata": {} to it',
        )


def read_index(index: Path, ending: str = ".safetensors") -> dict[str, str]:
    """Tensor -> the file beside the index that holds it. Raises ModelError for what is not such an index."""
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ModelError("is too large for an index", str(index))
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = set(weight_map.values())
    except OSError as error:
        raise unreadable(error, index) from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"is not an index of {ending} files", str(index), "download the model again"
        ) from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(ending):
            raise ModelError(f"names {shard!r}, which is not a {ending} file beside it", str(index))
    if not weight_map:
        raise ModelError("lists no tensor", str(index))
    return dict(weight_map)
