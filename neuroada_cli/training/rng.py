"""The states of all random generators as tensors and plain numbers, so that no pickle is needed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch (all devices): dropout and whatever a model draws."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers) of Python's, NumPy's, torch's and, where in use, CUDA's generators."""
    version, words, python_gauss = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    numbers = {
        "python": [version, python_gauss],
        "numpy": [kind, int(position), int(has_gauss), float(gauss)],
    }
    return tensors, numbers


def restore(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Raises KeyError or ValueError when something is missing or malformed. CUDA states of devices that this
    machine lacks are left out: a run moved to another machine is not bit-exact anyway.
    """
    version, python_gauss = numbers["python"]
    kind, position, has_gauss, gauss = numbers["numpy"]
    random.setstate((version, tuple(tensors["python"].tolist()), python_gauss))
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(tensors["torch"])
    for device in range(torch.cuda.device_count()):
        if (state := tensors.get(f"cuda.{device}")) is not None:
            torch.cuda.set_rng_state(state, device)
