"""What trains: one small protocol, one file per method, one readable dict.

A method turns a loaded model into one that trains (`attach`), names the parameters an optimizer steps, and
says what has to happen around that step. The training loop and the benchmark know nothing else about it.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from neuroada_cli.errors import RecipeError
from neuroada_cli.methods.bitfit import BitFit, Head
from neuroada_cli.methods.full import Full
from neuroada_cli.methods.loreft import LoReft
from neuroada_cli.methods.mask import Mask
from neuroada_cli.methods.neuroada import NeuroAda
from neuroada_cli.methods.peft import Lora
from neuroada_cli.methods.smt import Smt
from neuroada_cli.methods.state import MethodState


class Method(Protocol):
    """One instance per model.

    name        as in the recipe's `train.method`
    own_decay   True: `before_step` applies the weight decay itself and AdamW must apply none
    """

    name: str
    own_decay: bool

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """Freeze and prepare the model.

        indices  module name -> int [O, K], the selection
        whole    names of parameters that train in full beside it (a fresh head, biases)
        """
        ...

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """What the optimizer steps, without the parameters named in `whole`."""
        ...

    def whole_parameters(self) -> list[nn.Parameter]:
        """What the optimizer steps for `whole`: a group of its own (`optim.head_lr`, no decay)."""
        ...

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """Just before the optimizer's step. decay = lr x weight_decay, used only with `own_decay`."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Just after the optimizer's step: bring the weights in memory up to date."""
        ...

    def state(self, model: nn.Module) -> MethodState: ...

    def load_state(self, model: nn.Module, state: MethodState) -> None:
        """Exactly back to a saved state. Raises ValueError when names or shapes differ."""
        ...


METHODS: dict[str, Callable[..., Method]] = {
    "neuroada": NeuroAda,
    "mask": Mask,
    "full": Full,
    "lora": partial(Lora, "lora"),
    "dora": partial(Lora, "dora"),
    "loreft": LoReft,
    "smt": Smt,
    "bitfit": BitFit,
    "head": Head,
}
# the methods that add layers of their own, with what they take from the recipe's section `peer`
ADAPTERS: dict[str, tuple[str, ...]] = {
    "lora": ("rank", "alpha", "dropout"),
    "dora": ("rank", "alpha", "dropout"),
    "loreft": ("rank", "dropout", "positions"),
}
BY_SELECTION = ("neuroada", "mask", "smt")  # the methods that train the chosen connections, and nothing else


def check_method(name: str) -> None:
    """Raises RecipeError with a did-you-mean for a name that is none of METHODS."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose {', '.join(METHODS)}"
        raise RecipeError(f"train.method={name[:80]} is not a method", fix=hint)


def build(
    name: str,
    peer: Mapping[str, Any] | None = None,
    seed: int = 0,
    delta_dtype: str = "fp32",
    reselects: bool = False,
) -> Method:
    """A fresh method.

    peer         settings of one of ADAPTERS;  seed  of what it draws at random
    delta_dtype, reselects  neuroada's
    """
    if name in ADAPTERS:
        given = {key: value for key, value in (peer or {}).items() if key in ADAPTERS[name]}
        return METHODS[name](**given, seed=seed)
    return METHODS[name](delta_dtype, reselects) if name == NeuroAda.name else METHODS[name]()


__all__ = [
    "ADAPTERS",
    "BY_SELECTION",
    "METHODS",
    "BitFit",
    "Full",
    "Head",
    "LoReft",
    "Lora",
    "Mask",
    "Method",
    "MethodState",
    "NeuroAda",
    "Smt",
    "build",
    "check_method",
]
