"""Whether what an adapter trained whole fits a base; refused before a merge writes anything."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.errors import ModelError


def whole_names(base: hub.Weights, skeleton: nn.Module, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors trained whole under every name that the base stores them by (a tied weight may have two), or
    under the model's name where the base lacks them.

    Raises ModelError for a tensor that is no parameter of the model, or of another shape.
    """
    prefix = str(skeleton.base_model_prefix)
    parameters = dict(skeleton.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    found: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        wanted = parameters.get(name)
        if wanted is None or wanted.shape != tensor.shape:
            here = "this model has none" if wanted is None else f"this model's is {list(wanted.shape)}"
            raise ModelError(f"the adapter's {name} is {list(tensor.shape)}, {here}", str(base.folder))
        stored = {hub.stored_name(base, each, prefix) for each in names[id(wanted)]}
        found |= dict.fromkeys(sorted(filter(None, stored)) or [name], tensor)
    return found


def refuse_headless(base: hub.Weights, skeleton: nn.Module, whole: Mapping[str, Tensor]) -> None:
    """A classifier's head is in the adapter or in the base's files; nothing else may make one up.

    Raises ModelError naming the parameter that is in neither.
    """
    prefix = str(skeleton.base_model_prefix)
    for name, parameter in skeleton.named_parameters():
        if name in whole or (name.startswith(f"{prefix}.") and not hub.is_pooler(name)):
            continue
        stored = hub.stored_name(base, name, prefix)
        if stored is None or base.info(stored).shape != tuple(parameter.shape):
            raise ModelError(
                f"has no {name} of shape {list(parameter.shape)}, and the adapter brings none",
                str(base.folder),
                "train the adapter with its head: without one the answers would be random",
            )
