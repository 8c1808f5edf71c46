"""The states of all random generators as tensors and plain numbers, so that no pickle is needed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroada_cli.ranks.group import ALONE, Ranks

STREAM = re.compile(r"(?:rank([1-9][0-9]{0,5})\.)?(?:python|numpy|torch|cuda\.[0-9]+)")
WORDS = 624  # of a Mersenne twister's state


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch (all devices): dropout and whatever a model draws."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(seed: int, rank: int) -> int:
    """The seed of a rank's own streams; rank 0 has that of a run of one process."""
    return (seed + 1_000_003 * rank) % 2**32


def capture(ranks: Ranks = ALONE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers) of Python's, NumPy's, torch's and, where in use, CUDA's generators.

    Of several ranks each has its own streams: those of rank 0 are named as in a run of one process, those of
    the others "rank1.torch" and so on, their numbers stand in a list "ranks". All ranks call it.
    """
    version, words, python_gauss = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states = torch.cuda.get_rng_state_all() if ranks.alone else [torch.cuda.get_rng_state()]
        tensors |= {f"cuda.{i}": state for i, state in enumerate(states)}
    numbers: dict[str, Any] = {
        "python": [version, python_gauss],
        "numpy": [kind, int(position), int(has_gauss), float(gauss)],
    }
    if ranks.alone:
        return tensors, numbers
    of_ranks = {name: ranks.stacked(tensor) for name, tensor in tensors.items()}
    tensors = {
        _prefix(rank) + name: states[rank] for rank in range(ranks.size) for name, states in of_ranks.items()
    }
    first, *others = ranks.collected(numbers)
    return tensors, first | {"ranks": others}


def _prefix(rank: int) -> str:
    return f"rank{rank}." if rank else ""


def check_numbers(numbers: Any) -> None:
    """Raises ValueError unless these are numbers as `capture` gives them."""
    if not isinstance(numbers, Mapping):
        raise ValueError("rng has not exactly the keys python, numpy")
    others = numbers.get("ranks", [])
    if not isinstance(others, list):
        raise ValueError("rng.ranks is no list")
    first = {key: value for key, value in numbers.items() if key != "ranks"}
    for each in (first, *others):
        _check_numbers(each)


def _check_numbers(numbers: Any) -> None:
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


def restore(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
    """Raises ValueError when something is missing or malformed.

    A rank that was not there at the save keeps the streams that it began with. CUDA states of devices that
    this machine lacks are left out: a run moved to another machine is not bit-exact anyway.
    """
    check_numbers(numbers)
    others = numbers.get("ranks", [])
    if odd := [name for name in tensors if _owner(name) not in range(len(others) + 1)]:
        raise ValueError(f"{odd[0][:40]} is no state of a random generator")
    for rank, each in enumerate((numbers, *others)):
        prefix = _prefix(rank)
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if _owner(name) == rank}
        states = _checked(own)
        if rank == ranks.number:
            _put_back(own, states, each, ranks.alone)


def _owner(name: str) -> int:
    """The rank whose stream it is; -1 for what is none."""
    found = STREAM.fullmatch(name)
    return -1 if found is None else int(found[1] or 0)


def _checked(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torch's states among those of one rank."""
    _words(own, "python", WORDS + 1)
    _words(own, "numpy", WORDS)
    states = {name: tensor for name, tensor in own.items() if name not in ("python", "numpy")}
    for name, tensor in states.items():
        if tensor.dtype != torch.uint8 or tensor.ndim != 1:
            raise ValueError(f"{name[:40]} is no state of a random generator")
    return states


def _put_back(
    own: Mapping[str, Tensor], states: Mapping[str, Tensor], numbers: Mapping[str, Any], alone: bool
) -> None:
    version, python_gauss = numbers["python"]
    kind, position, has_gauss, gauss = numbers["numpy"]
    keys = own["numpy"].numpy().astype(np.uint32)
    try:
        random.setstate((version, tuple(own["python"].tolist()), python_gauss))
        np.random.set_state((kind, keys, position, has_gauss, gauss))
        torch.set_rng_state(states["torch"])
        here = range(torch.cuda.device_count()) if alone else range(min(1, torch.cuda.device_count()))
        for device in here:
            if (state := states.get(f"cuda.{device}")) is not None:
                torch.cuda.set_rng_state(state, device if alone else "cuda")
    except (KeyError, RuntimeError) as error:  # torch says so of a state of another size or content
        raise ValueError(f"the state of torch's random generator is broken: {error}") from None


def _words(tensors: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    words = tensors.get(name)
    if words is None or words.dtype != torch.int64 or words.shape != (count,):
        raise ValueError(f"the state of the random generator {name} is not {count} words")
    if int(words.min()) < 0 or int(words.max()) >= 2**32:
        raise ValueError(f"the state of the random generator {name} holds other words than it can")
    return words
