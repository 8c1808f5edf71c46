"""NeuroAda as an adapter of axolotl (0.21): `adapter: neuroada` in its YAML.

axolotl finds it by the entry point `axolotl.plugins`; where that is switched off, name it:

    plugins: [neuroada_cli.peft_plugin.axolotl.NeuroAdaPlugin]
    adapter: neuroada
    neuroada_k: 1

What it saves is merged by `neuroada merge`; axolotl's `merge-lora` knows LoRA's tensors only.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from pydantic import BaseModel, Field

ADAPTER = "neuroada"


class NeuroAdaArgs(BaseModel):
    """Keys that axolotl's configuration gets. Layers without a word about them: all linear ones but heads."""

    neuroada_k: int | None = Field(None, ge=1, description="Trainable connections per output neuron; 1.")
    neuroada_criterion: str | None = Field(
        None, description="Which are chosen: magnitude (default), lift, reverse, random."
    )
    neuroada_selection: str | None = Field(
        None, description="A file of `neuroada select`, instead of k and criterion."
    )
    neuroada_target_modules: list[str] | str | None = Field(
        None, description="Layers to adapt, as in PEFT; default all-linear."
    )


class NeuroAdaPlugin(BasePlugin):
    """Loads NeuroAda adapters for axolotl: new ones, and those in `lora_model_dir`."""

    def get_input_args(self) -> str:
        return f"{__name__}.{NeuroAdaArgs.__name__}"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """Not `lora_like`: no LoRA kernels, ReLoRA or LoRA merging on it."""
        return [AdapterCapabilities(name=ADAPTER)]

    def load_adapter(
        self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[Any, Any] | None:
        """(the model under the adapter, its config); with `config_only` (DPO) the config alone.

        None for another adapter than ours. Raises ValueError for settings that cannot be.
        """
        if cfg.adapter != ADAPTER:
            return None
        from peft import PeftModel, get_peft_model

        from neuroada_cli.peft_plugin import NeuroAdaConfig

        given = {
            "k": cfg.neuroada_k,
            "criterion": cfg.neuroada_criterion,
            "selection": cfg.neuroada_selection,
            "target_modules": cfg.neuroada_target_modules or cfg.lora_target_modules,
            "modules_to_save": cfg.lora_modules_to_save,
            "layers_to_transform": cfg.peft_layers_to_transform,
            "seed": cfg.seed,
        }
        kind = "SEQ_CLS" if cfg.num_labels else "CAUSAL_LM"
        config = NeuroAdaConfig(task_type=kind, **{n: v for n, v in given.items() if v is not None})
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            loaded = PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference)
            return loaded, loaded.peft_config["default"]
        return get_peft_model(model, config), config
