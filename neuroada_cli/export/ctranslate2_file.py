"""CTranslate2's own converter, with what it leaves out:

    python -m neuroada_cli.export.ctranslate2_file MODEL OUT DTYPE TRUST FILE...

The FILEs of the model's folder are copied. The converter looks for settings where transformers 5 has them no
longer, and says nothing; the engine computes what is put in here.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

from neuroada_cli.machine import kernels

# whether a block's norms come first, and whether there is one behind the embedding
NORMS = {"bart": (False, True), "mbart": (True, True), "pegasus": (True, False)}


def convert(model: str, out: str, dtype: str, trust_remote_code: bool, copied: list[str]) -> None:
    """Whatever the converter raises for a model that it does not know."""
    its: Any = importlib.import_module("ctranslate2.converters.transformers")

    class Converter(its.TransformersConverter):  # type: ignore[misc]
        def load_model(self, model_class: Any, name: str, **settings: Any) -> Any:
            loaded = super().load_model(model_class, name, **settings)
            self.config = loaded.config
            _older_names(self.config)
            return loaded

        def _load(self) -> Any:
            spec = super()._load()
            _scaling_of_llama3(spec, self.config)
            return spec

    Converter(model, copy_files=copied, trust_remote_code=trust_remote_code).convert(out, quantization=dtype)


def _older_names(config: Any) -> None:
    """What transformers computes for the type of model, under the names that the converter reads.

    T5 v1.1 and mT5 do not scale what their head is given: the converter goes by tie_word_embeddings, which
    is true for every T5 by now. Gemma's rotary base it looks for in rope_theta, and finds none.
    """
    if config.model_type in ("t5", "mt5"):
        config.tie_word_embeddings = getattr(config, "scale_decoder_outputs", False)
    rotary = getattr(config, "rope_parameters", None)
    if isinstance(rotary, dict) and "rope_theta" in rotary:
        config.rope_theta = rotary["rope_theta"]
    if config.model_type in NORMS:
        config.normalize_before, config.normalize_embedding = NORMS[config.model_type]
    if not hasattr(config, "position_embedding_type"):
        config.position_embedding_type = "absolute"  # the only one of BERT and its kin that is left


def _scaling_of_llama3(spec: Any, config: Any) -> None:
    """The converter says that angles are scaled, and not by how much: they stay as they are."""
    rotary = getattr(config, "rope_parameters", None)
    if not isinstance(rotary, dict) or rotary.get("rope_type") != "llama3":
        return
    for layer in spec.decoder.layer:
        # its class takes no new names, and is read through its __dict__
        held = vars(layer.self_attention)
        held["rotary_scaling_factor"] = np.float32(rotary["factor"])
        held["original_max_position_embeddings"] = np.int32(rotary["original_max_position_embeddings"])


if __name__ == "__main__":
    if sys.argv[4] != "1":
        kernels.keep_out()
    convert(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "1", sys.argv[5:])
