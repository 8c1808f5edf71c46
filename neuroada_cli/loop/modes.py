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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards in the mode it was in.

    What a sharded model has put together for its last forward pass is let go; a backward pass would do it.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        if training:
            set_training(model)
        if hasattr(model, "reshard"):
            model.reshard()  # type: ignore[operator]
