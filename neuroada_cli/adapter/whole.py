"""Whether what an adapter trained whole fits a model: asked before it is put on or merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.errors import ModelError
from neuroada_cli.methods import METHODS

RESIZED = "its embeddings were resized before training: merge it in PEFT (merge_and_unload)"


def refuse_whole(model: nn.Module, adapter: Adapter, where: str) -> None:
    """Raises ModelError for a tensor that is no parameter of the model, of another shape, or trained apart
    from others that the model has in the same weight.

    model  loaded, with the adapter's layers on it, or its module graph
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in adapter.whole.items():
        wanted = parameters.get(name)
        if wanted is None or wanted.shape != tensor.shape:
            here = "this model has none" if wanted is None else f"this model's is {list(wanted.shape)}"
            resized = wanted is not None and _is_embedding(model, wanted)
            raise ModelError(
                f"the adapter's {name} is {list(tensor.shape)}, {here}", where, RESIZED if resized else None
            )
    if METHODS[method_of(adapter.settings)].chosen:
        _refuse_apart(parameters, adapter.whole, where)


def _refuse_apart(parameters: Mapping[str, Tensor], whole: Mapping[str, Tensor], where: str) -> None:
    """PEFT gives what its `modules_to_save` names a weight of its own, also where the model shares it. We
    train such a weight as one, and beside connections only biases and fresh heads.
    """
    users: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        users.setdefault(id(parameter), []).append(name)
    for name, tensor in whole.items():
        if not name.endswith(".weight"):
            continue
        for other in users[id(parameters[name])]:
            if other == name or (other in whole and torch.equal(whole[other], tensor)):
                continue
            raise ModelError(
                f"the adapter's {name} was trained apart from {other}, which is the same weight in this "
                "model: no plain checkpoint can hold both",
                where,
                "use it in PEFT as it is, or train without it in modules_to_save",
            )


def _is_embedding(model: Any, parameter: Tensor) -> bool:
    """Whether a parameter has a row for every token."""
    return any(parameter is own for own in _of_tokens(model))


def _of_tokens(model: Any) -> Iterator[Tensor]:
    for found in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(NotImplementedError, AttributeError):
            yield from getattr(model, found)().parameters()
