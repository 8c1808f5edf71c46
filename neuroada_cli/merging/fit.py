"""Whether a merged classifier has a head; refused before a merge writes anything."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.errors import ModelError


def refuse_headless(base: hub.Base, whole: Mapping[str, Tensor]) -> None:
    """A classifier's head is in the adapter or in the base's files; nothing else may make one up.

    Raises ModelError naming the parameter that is in neither.
    """
    prefix = str(base.graph.base_model_prefix)
    for name, parameter in base.graph.named_parameters():
        if name in whole or (name.startswith(f"{prefix}.") and not hub.is_pooler(name)):
            continue
        if not base.places.fits(name):
            raise ModelError(
                f"has no {name} of shape {list(parameter.shape)}, and the adapter brings none",
                str(base.folder),
                "train the adapter with its head: without one the answers would be random",
            )
