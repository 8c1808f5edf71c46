"""Which models ask their config for the padding token while they compute."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

READ = "pad_token_id"


def reads_padding(model: Any) -> bool:
    """Whether a model, or the model that a module graph is of, finds padding by its config's `pad_token_id`:
    decoders that classify take a row's last token that is another.

    Any other model is better off without the key where its config lacks it: the constructor would mark a row
    of the embedding by it, and some types set that row to 0 whenever they load (Funnel).
    """
    told: bool | None = getattr(model, "reads_padding", None)
    return any(map(_reads, {type(module) for module in model.modules()})) if told is None else told


def _reads(of_class: type[nn.Module]) -> bool:
    code = getattr(inspect.unwrap(of_class.forward), "__code__", None)
    return code is not None and READ in (*code.co_names, *code.co_consts)
