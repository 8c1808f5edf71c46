"""Peers from the PEFT library behind our protocol: LoRA, DoRA, SHIRA and SUPERTUNING.

In the bench, adapters take the data type of the frozen weights (PEFT's own wrapper would make them fp32
beside bf16 weights, which is slower). To train (LoRA and DoRA only) they are fp32, as PEFT's wrapper has it.
What is not said here is PEFT's default.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.machine.quiet import quiet_bitsandbytes
from neuroada_cli.methods.facts import require_package
from neuroada_cli.methods.state import TrainedByName


class Peft(TrainedByName):
    """One PEFT method on the targets of a selection.

    name  a key of CONFIGS
    Raises ResourceError, before any model is there, when the package peft is not installed.
    """

    def __init__(self, name: str) -> None:
        require_package("peft", name)
        self.name = name

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """`indices` names the targets and, for SUPERTUNING, how many entries train."""
        quiet_bitsandbytes()
        from peft import inject_adapter_in_model

        self.freeze(model)
        config = CONFIGS[self.name](model, indices)
        inject_adapter_in_model(config, model)
        self.finish(model, whole)


class Lora(TrainedByName):
    """LoRA (arXiv:2106.09685) or DoRA (arXiv:2402.09353) by PEFT, to train: h = W x + alpha / rank * B A x.

    rank, alpha, dropout  of every adapter; alpha None: 2 x rank, as the LLM-Adapters recipes have it
    seed                  of the random A, apart from the global random stream
    Raises ResourceError when the package peft is not installed; `attach` raises ValueError where DoRA has to
    scale a neuron whose weights are all zero.
    """

    def __init__(
        self, name: str, rank: int = 8, alpha: float | None = None, dropout: float = 0.0, seed: int = 0
    ) -> None:
        require_package("peft", name)
        self.name = name
        self._rank, self._alpha, self._dropout, self._seed = rank, alpha, dropout, seed

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """`indices` only names the targets; of a quantised base they are bitsandbytes' layers (QLoRA)."""
        quiet_bitsandbytes()
        from peft import LoraConfig, inject_adapter_in_model

        self.freeze(model)
        config = LoraConfig(
            r=self._rank,
            lora_alpha=2 * self._rank if self._alpha is None else self._alpha,
            lora_dropout=self._dropout,
            # a list would also match names that only end like a target's
            target_modules="|".join(map(re.escape, indices)),
            use_dora=self.name == "dora",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            inject_adapter_in_model(config, model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        _refuse_dead_neurons(model)
        self.finish(model, whole)


def _refuse_dead_neurons(model: nn.Module) -> None:
    """DoRA divides by the norm of every neuron's weights (findings/dora-row-of-zeros.sh)."""
    for name, norms in model.named_parameters():
        where, found, _ = name.partition(".lora_magnitude_vector.")
        norms_O = norms.detach().flatten()
        if found and not bool((norms_O > 0).all()):
            row = int((norms_O <= 0).nonzero()[0])
            raise ValueError(f"has only zeros in {where}, row {row}, and DoRA divides by each row's norm")


lora, dora = partial(Lora, "lora"), partial(Lora, "dora")


def _lora(rank: int, **more: Any) -> Callable[[nn.Module, Mapping[str, Tensor]], Any]:
    def config(model: nn.Module, indices: Mapping[str, Tensor]) -> Any:
        from peft import LoraConfig

        return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(indices), **more)

    return config


def _shira(model: nn.Module, indices: Mapping[str, Tensor]) -> Any:
    """Its smallest size: O + I random entries per layer."""
    from peft import ShiraConfig

    return ShiraConfig(r=1, random_seed=0, target_modules=list(indices))


def _supertuning(model: nn.Module, indices: Mapping[str, Tensor]) -> Any:
    """As many entries over all targets as the selection has."""
    from peft import SupertuningConfig

    chosen = sum(index_OK.numel() for index_OK in indices.values())
    weights = (model.get_submodule(name).weight for name in indices)
    total = sum(weight.numel() for weight in weights if isinstance(weight, Tensor))
    return SupertuningConfig(sparsity=1 - chosen / total, target_modules=list(indices))


CONFIGS: dict[str, Callable[[nn.Module, Mapping[str, Tensor]], Any]] = {
    "lora": _lora(8),
    "lora32": _lora(32),
    "dora": _lora(8, use_dora=True),
    "shira": _shira,
    "supertuning": _supertuning,
}
