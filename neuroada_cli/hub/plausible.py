"""Whether a config can be that of the tensors beside it, before anything is built as large as it says.

Its counts are compared with the files by `files.claims`. What passes there is compared shape by shape, and
building is given up once it has made far more parameters than the files could fill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from neuroada_cli.errors import ModelError
from neuroada_cli.files.claims import MEND, NUMBERED
from neuroada_cli.files.folders import CONFIG
from neuroada_cli.hub.weights import Weights, stored_name

# Parameters per stored tensor, where files hold several as one, and as many beside them.
PARAMETERS, SPARE = 8, 2000


def refuse_other_shapes(
    graph: nn.Module, weights: Weights, stored: Mapping[str, str], made_anew: Callable[[str], bool]
) -> None:
    """Raises ModelError naming the first parameter that the files hold in another shape than the config says.

    stored     parameter -> the tensor that is this very parameter
    made_anew  whether one of another shape is no fault, since it is made anew (a head)
    """
    for name, parameter in graph.named_parameters():
        if name not in stored or made_anew(name):
            continue
        shape = weights.info(stored[name]).shape
        if shape != tuple(parameter.shape) and weights.info(stored[name]).dtype.is_floating_point:
            raise ModelError(
                f"{stored[name]} has the shape {list(shape)}, by config.json it is {list(parameter.shape)}",
                str(weights.folder),
                MEND,
            )


def refuse_missing_blocks(graph: nn.Module, weights: Weights, holds: Callable[[str], bool]) -> None:
    """Raises ModelError for a list of blocks of which the files hold the first ones only: loading would make
    the others of random numbers.

    holds  whether the files have a parameter
    """
    asked = _lists(name for name, _ in graph.named_parameters())
    held = _lists(name for name, _ in graph.named_parameters() if holds(name))
    for place, numbers in asked.items():
        if place in held and max(held[place]) < max(numbers):
            raise ModelError(
                f"asks for {len(numbers):,} blocks in {place}, the files hold {len(held[place]):,}",
                str(weights.folder / CONFIG),
                MEND,
            )


def unasked_blocks(graph: nn.Module, weights: Weights) -> Iterator[str]:
    """One line for each list of blocks of which the files hold more than the config asks for."""
    asked = _lists(name for name, _ in graph.named_parameters())
    for place, numbers in _lists(weights.names).items():
        own = stored_name(asked, place, str(getattr(graph, "base_model_prefix", "")))
        more = sorted(numbers - asked[own]) if own is not None else []
        if more and more[0] > max(asked[own or place]):
            numbered = f"{more[0]}" if len(more) == 1 else f"{more[0]}-{more[-1]}"
            yield (
                f"the files hold {place}.{numbered}, config.json asks for {len(asked[own or place]):,} "
                "blocks there: what is stored beyond them is not used"
            )


def _lists(names: Iterable[str]) -> dict[str, set[int]]:
    """What holds numbered blocks (model.layers) -> their numbers."""
    lists: dict[str, set[int]] = {}
    for name in names:
        for found in NUMBERED.finditer(name):
            lists.setdefault(name[: found.start(1)].rstrip("."), set()).add(int(found[1]))
    return lists


@contextmanager
def bounded(weights: Weights) -> Iterator[None]:
    """Inside, building a model that has far more parameters than the files have tensors is given up.

    Raises ModelError.
    """
    most, made = PARAMETERS * len(weights.names) + SPARE, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ModelError(
                f"asks for more than {most:,} parameters, the files hold {len(weights.names):,} tensors",
                str(weights.folder / "config.json"),
                MEND,
            )

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
