"""Gradient checkpointing: a block's activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from neuroada_cli.errors import ModelError

FLAG = "gradient_checkpointing"  # what transformers calls it on the modules that can


def enable_checkpointing(model: Any, within: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """Recompute each block's activations in the backward pass; it takes effect in training mode.

    within  makes a context to recompute a block in

    The deltas inside a block ask for gradients themselves, so the block's input need not: transformers' hook
    that makes the embeddings' output ask for one would only cost a backward pass through the first block.
    Raises ModelError for a model that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            "cannot recompute activations", type(model).__name__, "set train.gradient_checkpointing: false"
        )
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
    contexts = {"context_fn": lambda: (nullcontext(), within())}
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False, **contexts})
    model.disable_input_require_grads()


@contextmanager
def recomputing(model: Any, wanted: bool = True) -> Iterator[None]:
    """Inside, if `wanted`, blocks of a model in evaluation keep only their inputs for the backward pass.

    transformers recomputes only what says that it is in training, where dropout acts. So each block says so
    until it runs; then it and all that is in it see evaluation, and gradients are those without dropout.
    Raises ModelError for a model that cannot.
    """
    if not wanted:
        yield
        return
    enable_checkpointing(model)
    flagged = {name: module for name, module in model.named_modules() if hasattr(module, FLAG)}
    blocks = [m for name, m in flagged.items() if not any(_inside(other, name) for other in flagged)]
    for block in blocks:
        block._gradient_checkpointing_func = _Quiet(block, block._gradient_checkpointing_func)
        block.training = True  # of the block by itself, not of what is in it
    configs = {id(m.config): m.config for m in model.modules() if getattr(m, "config", None) is not None}
    cached = [config for config in configs.values() if getattr(config, "use_cache", False)]
    for config in cached:  # a block that runs twice would append its keys and values twice
        config.use_cache = False
    try:
        yield
    finally:
        for config in cached:
            config.use_cache = True
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()
        for block in blocks:
            block.training = False


def _inside(name: str, outer: str) -> bool:
    return name != outer and name.startswith(f"{outer}." if outer else "")


class _Quiet:
    """transformers' `recompute(run, *args)` for one block, which is in evaluation while it runs."""

    def __init__(self, block: nn.Module, recompute: Callable[..., Any]) -> None:
        self._block, self._recompute = block, recompute

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def quietly(*inputs: Any) -> Any:
            before, self._block.training = self._block.training, False
            try:
                return run(*inputs)
            finally:
                self._block.training = before

        return self._recompute(quietly, *args, **kwargs)
