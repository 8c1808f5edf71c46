"""Which layers of a model get NeuroAda's, at which places: PEFT's tuner.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import Tensor, nn

from neuroada_cli.adapter.folder import PREFIX as IN_FILE
from neuroada_cli.adapter.folder import is_frozen
from neuroada_cli.delta.layout import layer_shape
from neuroada_cli.delta.mixtures import fused_experts
from neuroada_cli.delta.quantized import is_quantized, keep_layout
from neuroada_cli.delta.targets import Target, is_linear, is_plain, matrices_of
from neuroada_cli.errors import UserError
from neuroada_cli.peft_plugin.base import facts_of_model, fresh_modules, has_tokens_of_base, local_base
from neuroada_cli.peft_plugin.config import NeuroAdaConfig
from neuroada_cli.peft_plugin.layer import NeuroAdaLinear
from neuroada_cli.selection.criteria import choose, stream
from neuroada_cli.selection.file import check_base, read_selection
from neuroada_cli.show.numbers import counted

PREFIX = "neuroada_"
MERGED = "`neuroada merge` folds all of it into a plain checkpoint"


class NeuroAdaModel(BaseTuner):
    """A model under NeuroAda. Raises ValueError for what cannot be adapted, or an adapter of another base.

    The base's weights hold the active adapters in memory: `state_dict`, `unload` and `disable_adapter` give
    the base's own. Not for FSDP and DeepSpeed ZeRO-3, which keep weights in pieces; DDP is fine.
    """

    prefix: str = PREFIX
    tuner_layer_cls = NeuroAdaLinear
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(
        self, peft_config: NeuroAdaConfig, model_config: dict[str, Any]
    ) -> NeuroAdaConfig:
        return peft_config

    def _prepare_model(self, peft_config: NeuroAdaConfig, model: nn.Module) -> None:
        """Before every injection: what the config has to say of its base, and whether it is the right one."""
        keep_layout(model)
        self._weight_users = _users_of_weights(model)
        self._selection = None
        folder = local_base(model)
        if peft_config.stored and peft_config.fingerprint and folder is not None:
            try:
                check_base(peft_config.fingerprint, folder)
            except UserError as error:
                raise ValueError(error.line()) from None
        if peft_config.stored:
            _refuse_homeless(peft_config, model)
        else:
            _say_left_out(peft_config, model)
            _say_apart(peft_config, model)
            _say_unsaved(peft_config, model)
            peft_config.settings = facts_of_model(model, peft_config.task_type)
            peft_config.base_folder = folder
            if peft_config.selection is not None:
                self._selection = _selection_of(peft_config, folder)

    def _create_and_replace(
        self,
        peft_config: NeuroAdaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, NeuroAdaLinear):
            layer = target
            layer.bring(())  # so that magnitudes are the base's
        else:
            self._check_target(target, current_key, parent)
            layer = NeuroAdaLinear(target)
            cast(Any, layer)._active_adapter = adapter_name
        index_OK = self._places(peft_config, layer.base, current_key)
        layer.update_layer(adapter_name, index_OK, peft_config.inference_mode)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _check_target(self, target: nn.Module, name: str, parent: nn.Module) -> None:
        if isinstance(target, BaseTunerLayer):
            raise ValueError(f"{name} is adapted by another PEFT method; NeuroAda goes on a plain layer")
        if not _can_be_wrapped(target):
            raise ValueError(f"{name} is a {type(target).__name__}, and NeuroAda adapts linear layers here")
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"{name} would not train: torch's MultiheadAttention takes its weight and never calls it; "
                "leave it out of target_modules"
            )
        users = self._weight_users.get(id(target.weight), [name])
        if len(users) > 1:
            other = next(user for user in users if user != name)
            raise ValueError(
                f"{name} shares its weight with {other}: leave it out of target_modules, or load the model "
                "with tie_word_embeddings=False; `neuroada train` adapts tied weights"
            )

    def _places(self, config: NeuroAdaConfig, base: nn.Module, name: str) -> Tensor:
        """int32 [O, K]; of a stored adapter all 0 for the moment, its own come with its values."""
        if config.stored:
            outputs, inputs = layer_shape(base)
            return torch.zeros(outputs, min(config.k, inputs), dtype=torch.int32)
        if self._selection is not None:
            if name not in self._selection.indices:
                raise ValueError(
                    f"{config.selection} chooses nothing in {name}; leave it out of target_modules"
                )
            return cast(Tensor, self._selection.indices[name])
        try:
            _, weight_OI = next(matrices_of(Target(base)))
            return choose(weight_OI, config.k, config.criterion, stream(config.seed, name), config.lift_rank)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        names = [name for name, module in self.model.named_modules() if isinstance(module, NeuroAdaLinear)]
        model = cast(nn.Module, super()._unload_and_optionally_merge(*args, **kwargs))
        dense = [name for name in names if type(model.get_submodule(name)) is nn.Linear]
        # a packed layer takes inputs of any type and computes in one of its own (fp32 where nobody says); a
        # plain one takes only its own: that of what feeds it
        around = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        for name in dense:
            model.get_submodule(name).to(around)
        _say_unpacked(model, dense)
        return model

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """PEFT's own gives a layer that comes back the weight of the one that was wrapped."""
        if isinstance(child, NeuroAdaLinear) and new_module is not child.base:
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: NeuroAdaConfig, adapter_name: str, state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:  # fmt: skip
        """Values in fp32 whatever the model was cast to, as the file has them.

        The base's own weight under an adapted head goes from `state_dict`, a dict of PEFT's own: PEFT would
        add it afterwards. It stays where the base's files may lack it: of a resized model, or one in memory.
        """
        found = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        layers = {name for name, module in model.named_modules() if isinstance(module, NeuroAdaLinear)}
        if has_tokens_of_base(model):
            for name in [name for name in state_dict if is_frozen(name, layers)]:
                del state_dict[name]
        return {n: tensor.float() if ".neuroada_values" in n else tensor for n, tensor in found.items()}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: NeuroAdaConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """PEFT's names, after every layer has made room for the shapes that come.

        Raises ValueError for an adapter that lacks a layer of this model's, does not fit one, or holds
        tensors that this model has no place for, which PEFT would leave out without a word.
        """
        found: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        for name, layer in model.named_modules():
            if not isinstance(layer, NeuroAdaLinear) or adapter_name not in layer.neuroada_values:
                continue
            values = found.get(f"{name}.neuroada_values.{adapter_name}")
            index_OK = found.get(f"{name}.neuroada_indices.{adapter_name}")
            if values is None or index_OK is None:
                raise ValueError(f"the adapter has no values and indices for {name}")
            try:
                layer.make_room(adapter_name, values, index_OK)
            except ValueError as error:
                raise ValueError(f"the adapter does not fit this model: {name} {error}") from None
        places = model.state_dict().keys()
        homeless = [key for key in found if key not in places and key.removeprefix(IN_FILE) not in places]
        if homeless:
            raise ValueError(_no_place_for(homeless[0].removeprefix(IN_FILE)))
        return found


def _no_place_for(name: str) -> str:
    return f"the adapter holds {name}, which has no place under PEFT in this model; {MERGED}"


def _refuse_homeless(config: NeuroAdaConfig, model: nn.Module) -> None:
    """Raises ValueError where a stored adapter changes what is no layer here: PEFT wraps what it finds.

    `neuroada train` also adapts what is no plain layer: experts in one tensor, routers, Falcon's layers.
    """
    modules = dict(model.named_modules())
    for name in sorted(config.target_modules or ()) if isinstance(config.target_modules, set) else ():
        # PEFT shortens long lists to the ends of names
        named = [name] if name in modules else [other for other in modules if other.endswith(f".{name}")]
        if not named:
            raise ValueError(_no_place_for(name))
        for module in (modules[other] for other in named):
            if not isinstance(module, BaseTunerLayer) and not _can_be_wrapped(module):
                kind = type(module).__name__
                raise ValueError(f"the adapter holds {name}, a {kind}, which PEFT cannot wrap; {MERGED}")


def _can_be_wrapped(module: nn.Module) -> bool:
    return (is_linear(module) or is_quantized(module)) and is_plain(module)


def _say_left_out(config: NeuroAdaConfig, model: nn.Module) -> None:
    """The experts of a mixture hold most of its numbers, and "all-linear" sounds as if they were taken."""
    if config.target_modules != INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return
    experts = [
        f"{name}.{attribute}" for name, module in model.named_modules() for attribute in fused_experts(module)
    ]
    if experts:
        warnings.warn(
            f"target_modules={INCLUDE_LINEAR_LAYERS_SHORTHAND!r} leaves out the experts, whose matrices are "
            f"{counted(len(experts), 'tensor')} ({experts[0]}) and in no layer; `neuroada train` adapts them",
            stacklevel=2,
        )


def _say_unsaved(config: NeuroAdaConfig, model: nn.Module) -> None:
    """PEFT trains and saves fresh heads by name: `classifier` and `score`, and nothing that lies in front."""
    kept = tuple(config.modules_to_save or ())

    def is_kept(name: str) -> bool:  # itself, or what it lies in; PEFT compares the ends of names
        within = [name, *(name[:at] for at, sign in enumerate(name) if sign == ".")]
        return any(module.endswith(kept) for module in within)

    lost = [name for name in fresh_modules(model, config.task_type) if not is_kept(name)]
    if lost:
        warnings.warn(
            f"{', '.join(lost)} is random, since the base's files hold none of it, and PEFT neither trains "
            "nor saves it: wherever the adapter is loaded it is drawn anew, and answers are others; name it "
            "in modules_to_save",
            stacklevel=2,
        )


def _say_apart(config: NeuroAdaConfig, model: nn.Module) -> None:
    """PEFT gives modules that are saved whole a weight of their own, so a tied one is no longer tied."""
    shared = _users_of_weights(model)
    for name, module in model.named_modules():
        if not any(name == own or name.endswith(f".{own}") for own in config.modules_to_save or ()):
            continue
        users = shared.get(id(getattr(module, "weight", None)), [])
        other = next((user for user in users if user != name), None)
        if other is not None:
            warnings.warn(
                f"modules_to_save trains {name} apart from {other}, which shares its weight: PEFT keeps both "
                "and no merged model can, so `neuroada merge` and `neuroada eval` will refuse the adapter",
                stacklevel=2,
            )
            return


def _users_of_weights(model: nn.Module) -> dict[int, list[str]]:
    """id of a weight -> the modules that compute with it, each once."""
    users: dict[int, dict[int, str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not isinstance(module, BaseTunerLayer):
            users.setdefault(id(weight), {})[id(module)] = name
    return {key: list(names.values()) for key, names in users.items()}


def _selection_of(config: NeuroAdaConfig, folder: Any) -> Any:
    """The selection file of a config, checked against the base where its files are known."""
    try:
        selection = read_selection(str(config.selection))
        if folder is not None:
            check_base(selection.fingerprint, folder)
    except UserError as error:
        raise ValueError(error.line()) from None
    config.k, config.criterion, config.fingerprint = selection.k, selection.criterion, selection.fingerprint
    return selection


def _say_unpacked(model: nn.Module, dense: list[str]) -> None:
    """Layers that were packed and are dense now are named in the config, so the model saves and loads: with
    all others that are dense, since a list takes the place of transformers' own, which holds the head.
    """
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    if not dense or settings is None:
        return
    warnings.warn(
        f"{len(dense)} layers were quantised and are merged in {_dtype_of(model, dense[0])} now: rounding "
        "them to few bits again would lose what was trained. `neuroada merge` writes the whole model.",
        stacklevel=3,
    )
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    kept = [*(getattr(settings, "llm_int8_skip_modules", None) or []), *linear]
    settings.llm_int8_skip_modules = list(dict.fromkeys(kept))


def _dtype_of(model: nn.Module, layer: str) -> str:
    return str(cast(Tensor, model.get_submodule(layer).weight).dtype).removeprefix("torch.")
