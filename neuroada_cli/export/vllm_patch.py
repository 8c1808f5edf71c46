"""What merging an adapter would change in its base, as vLLM's sparse weight patches (0.23 and later).

A patch is a tensor's name in the checkpoint, flat positions in it, and the new values there; a running server
takes it in place, without a merged copy. Beside the new values stand the base's, by which it is taken back:

    patch.safetensors    "<name>.indices" int32 or int64 [N], strictly increasing
                         "<name>.values" and "<name>.base" [N] in the checkpoint's data type
                         metadata neuroada_patch: JSON, name -> {"shape", "dtype"}

N = changed entries of a tensor
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuroada_cli import files
from neuroada_cli.errors import ModelError, NumericsError
from neuroada_cli.merging.merge import Merge
from neuroada_cli.show.numbers import describe_dtype

FILE, METADATA = "patch.safetensors", "neuroada_patch"
HOW_TO = """import json

import torch
from safetensors import safe_open
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)


def patches(file, which="values"):  # which="base" takes the adapter off again
    with safe_open(file, "pt") as held:
        for name, about in json.loads(held.metadata()["neuroada_patch"]).items():
            yield CheckpointWeightPatch(
                name, tuple(about["shape"]), getattr(torch, about["dtype"]),
                held.get_tensor(f"{name}.{which}"), held.get_tensor(f"{name}.indices"),
            )


def apply(model, file, which="values"):
    return load_checkpoint_weight_patches(model, list(patches(file, which)))
"""


@dataclass(frozen=True)
class Patch:
    """The changes of one stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    index_N: Tensor
    value_N: Tensor
    base_N: Tensor


def patches_of(merge: Merge) -> Iterator[Patch]:
    """Every tensor that the merge changes, in the order of the base's files.

    Raises ModelError for what the base lacks, NumericsError for a result that is not finite.
    """
    for entry in merge.plan:
        if not entry.folds and not entry.parts and entry.whole is None:
            continue
        if entry.source is None:
            raise ModelError(
                f"{entry.name} is not in the base, so nothing of a server's can be patched with it",
                str(merge.base.folder),
                "merge the adapter",
            )
        before = merge.weights.tensor(entry.source).to(entry.dtype)
        (after,) = merge.tensors([entry])
        index_N = (after != before).reshape(-1).nonzero()[:, 0]
        if len(index_N):
            flat, base = after.reshape(-1)[index_N].clone(), before.reshape(-1)[index_N].clone()
            yield Patch(entry.source, tuple(entry.shape), entry.dtype, _narrow(index_N, after), flat, base)


def _narrow(index_N: Tensor, tensor: Tensor) -> Tensor:
    return index_N.to(torch.int32) if tensor.numel() <= 2**31 else index_N


def write(folder: Path, merge: Merge) -> int:
    """Write patch.safetensors and how to apply it. Returns how many weights change.

    Raises NumericsError for an adapter that changes nothing at this data type.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, object] = {}
    for patch in patches_of(merge):
        tensors[f"{patch.name}.indices"] = patch.index_N
        tensors[f"{patch.name}.values"], tensors[f"{patch.name}.base"] = patch.value_N, patch.base_N
        about[patch.name] = {"shape": list(patch.shape), "dtype": describe_dtype(patch.dtype)}
    if not tensors:
        raise NumericsError(
            f"no weight changes in {describe_dtype(merge.target)}",
            fix="train longer, or name a wider --dtype",
        )
    files.write_tensors(folder / FILE, tensors, {"format": "pt", METADATA: json.dumps(about)})
    files.write_text(folder / "apply_patch.py", HOW_TO)
    return sum(len(tensor) for name, tensor in tensors.items() if name.endswith(".values"))
