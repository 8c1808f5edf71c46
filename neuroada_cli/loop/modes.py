"""Training and evaluation mode, of models whose normalisations hold statistics of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def set_training(model: nn.Module) -> None:
    """Training mode, but for what normalises by running statistics (BatchNorm): it goes on by the base's.

    They are buffers, no parameters: an adapter, a checkpoint and a merged folder hold none, so whatever was
    learnt beside moved ones would be put beside others. By a batch's own statistics a row's loss would depend
    on the rows beside it, too, and on how a step is cut.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.eval()


CAPACITY = "expert_capacity"  # tokens that an expert takes at most, on routers that have such a bound


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards in the mode it was in.

    What a sharded model has put together for its last forward pass is let go; a backward pass would do it.
    NLLB-MoE's routers write the bound of the batch that they evaluate over the one that they train by.
    """
    training = model.training
    bounds = {module: getattr(module, CAPACITY) for module in model.modules() if hasattr(module, CAPACITY)}
    model.eval()
    try:
        yield
    finally:
        for module, bound in bounds.items():
            setattr(module, CAPACITY, bound)
        if training:
            set_training(model)
        if hasattr(model, "reshard"):
            model.reshard()  # type: ignore[operator]
