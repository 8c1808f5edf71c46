"""A tuned model and its base, to be asked in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.load import Adapted, Target
from neuroada_cli.delta.model import disabled
from neuroada_cli.errors import ModelError
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Side:
    """One of the models: inside `on` it is `model` that answers.

    loaded  as what it was loaded, which is asked whether its files were written over
    """

    name: str
    loaded: Adapted
    on: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def model(self) -> nn.Module:
        return self.loaded.model


@dataclass(frozen=True)
class Loading:
    """How models are loaded; None: as `adapter.load` does without it."""

    dtype: str | None = None
    device: str | None = None
    base: str | None = None
    revision: str | None = None
    attention: str | None = None
    trust_remote_code: bool = False


def sides(target: Target, trained: Recipe | None, how: Loading, both: bool) -> tuple[Adapted, list[Side]]:
    """What `target` means, loaded; both: its base as well, which comes first.

    trained  the recipe of a merged folder, which names its base (`how.base` goes before it)
    The base of an adapter costs no memory of its own where its connections can be taken off and put back;
    that of a merged folder, and of a method that trains all weights, is loaded beside it.
    Raises ModelError for anything missing or broken, and for `both` where no base is known.
    """
    work = hub.Work()
    base = how.base if target.adapter is not None else None
    loaded = adapted.load(
        target, work, how.dtype, how.device or "cpu", base=base, revision=how.revision,
        attention=how.attention, trust_remote_code=how.trust_remote_code, keep_base=both,
    )  # fmt: skip
    tuned = Side("tuned" if both else "answer", loaded)
    if not both:
        return loaded, [tuned]
    if loaded.adapter is not None and METHODS[method_of(loaded.adapter.settings)].chosen:
        _refuse_fresh(loaded)
        return loaded, [Side("base", loaded, lambda: _without(loaded.model, loaded.before)), tuned]
    place = how.base or (loaded.adapter.base if loaded.adapter else trained.model.path if trained else None)
    if place is None:
        raise ModelError("has no base that is known", target.name, "name it with --base")
    settings = loaded.adapter.settings if loaded.adapter else {}
    other = adapted.load(
        Target(place, None), work, how.dtype or settings.get("dtype"), how.device or "cpu",
        attention=how.attention, trust_remote_code=how.trust_remote_code,
    )  # fmt: skip
    return loaded, [Side("base", other), tuned]


def _refuse_fresh(loaded: Adapted) -> None:
    """Raises ModelError for a parameter that the base lacks: without it, the base has no answers."""
    whole = loaded.adapter.whole if loaded.adapter is not None else {}
    missing = [name for name in whole if name not in loaded.before]
    if missing:
        raise ModelError(
            f"{missing[0]} is trained whole, and the base has none",
            str(loaded.folder),
            "ask it without its base",
        )


@contextmanager
@torch.no_grad()
def _without(model: nn.Module, before: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the model is its base."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].clone() for name in before}
    try:
        for name, tensor in before.items():
            parameters[name].copy_(tensor)
        with disabled(model):
            yield
    finally:
        for name, tensor in kept.items():
            parameters[name].copy_(tensor)
