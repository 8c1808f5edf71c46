"""The states of all random generators as tensors and plain numbers, so that no pickle is needed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORDS = 624  # of a Mersenne twister's state


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


def check_numbers(numbers: Any) -> None:
    """Raises ValueError unless these are numbers as `capture` gives them."""
    if not isinstance(numbers, Mapping) or numbers.keys() != {"python", "numpy"}:
        raise ValueError("rng has not exactly the keys python, numpy")
    python, legacy = numbers["python"], numbers["numpy"]
    if not (isinstance(python, list) and len(python) == 2 and python[0] == random.getstate()[0]):
        raise ValueError("rng.python is of another generator")
    if not (isinstance(legacy, list) and len(legacy) == 4 and legacy[0] == "MT19937"):
        raise ValueError("rng.numpy is of another generator")
    whole = (
        type(legacy[1]) is int and 0 <= legacy[1] <= WORDS and type(legacy[2]) is int and legacy[2] in (0, 1)
    )
    if not whole or type(legacy[3]) is not float or (python[1] is not None and type(python[1]) is not float):
        raise ValueError("rng holds other numbers than its generators")


def restore(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Raises ValueError when something is missing or malformed.

    CUDA states of devices that this machine lacks are left out: a run moved to another machine is not
    bit-exact anyway.
    """
    check_numbers(numbers)
    words, keys = _words(tensors, "python", WORDS + 1), _words(tensors, "numpy", WORDS)
    states = {name: tensor for name, tensor in tensors.items() if name not in ("python", "numpy")}
    for name, tensor in states.items():
        if not re.fullmatch(r"torch|cuda\.[0-9]+", name) or tensor.dtype != torch.uint8 or tensor.ndim != 1:
            raise ValueError(f"{name[:40]} is no state of a random generator")
    version, python_gauss = numbers["python"]
    kind, position, has_gauss, gauss = numbers["numpy"]
    try:
        random.setstate((version, tuple(words.tolist()), python_gauss))
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(states["torch"])
        for device in range(torch.cuda.device_count()):
            if (state := states.get(f"cuda.{device}")) is not None:
                torch.cuda.set_rng_state(state, device)
    except (KeyError, RuntimeError) as error:  # torch says so of a state of another size or content
        raise ValueError(f"the state of torch's random generator is broken: {error}") from None


def _words(tensors: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    words = tensors.get(name)
    if words is None or words.dtype != torch.int64 or words.shape != (count,):
        raise ValueError(f"the state of the random generator {name} is not {count} words")
    if int(words.min()) < 0 or int(words.max()) >= 2**32:
        raise ValueError(f"the state of the random generator {name} holds other words than it can")
    return words
