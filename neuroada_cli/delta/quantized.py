"""Deltas on a base quantised by bitsandbytes (nf4, fp4, int8).

O = output neurons, I = inputs, K = chosen inputs per neuron

The quantised weight itself cannot hold a delta: the K largest entries of a row set the block scale, and
rounding base + delta back to 4 bits would destroy it. So each forward dequantises (bitsandbytes' own O x I
temporary), writes the K folded entries per row into that temporary, multiplies, and forgets it; backward does
the same again. State stays K per row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.delta.fold import fold_entries, write_entries
from neuroada_cli.delta.layout import Layout
from neuroada_cli.delta.linear import DeltaLinear
from neuroada_cli.machine.quiet import quiet_bitsandbytes


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a bitsandbytes layer. Known by name: bitsandbytes is imported only where one exists."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def keep_layout(model: nn.Module) -> None:
    """bitsandbytes' layers stay what they are on the CPU, whatever runs between two training steps.

    4 bits: its 0.50, on a processor with AVX-512 bf16, repacks a layer's weight at its first forward in
    evaluation mode: no gradient passes it from then on, not even once it trains again, and what the weight is
    read as differs.
    int8: PEFT 0.21 dequantises by putting a new weight in the layer's place that lacks the row maxima, and
    the second forward after that (of DoRA) fails. They are in the layer's state as well.
    """
    for module in model.modules():
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
        elif type(module).__name__ == "Linear8bitLt" and _keep_row_maxima not in _before_forward(module):
            module.register_forward_pre_hook(_keep_row_maxima)


def _before_forward(module: nn.Module) -> list[Any]:
    return list(module._forward_pre_hooks.values())


def _keep_row_maxima(module: nn.Module, _: Any) -> None:
    weight = cast(Any, module.weight)
    if weight.CB is not None and weight.SCB is None:
        weight.CB = None


REPACKS = "support_avx512bf16_for_cpu"  # an attribute of every Linear4bit


def dequantize(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight `[O, I]` of a bitsandbytes layer as a fresh dense tensor.

    Raises ValueError when the layer has not been quantised yet (it was never moved to its device), or was
    repacked (`keep_layout` came too late).
    """
    weight = cast(Any, module.weight)
    if type(module).__name__ == "Linear4bit":
        if getattr(weight, "quant_state", None) is None:
            raise ValueError("the layer is not quantised yet; move the model to its device first")
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError("bitsandbytes has repacked the layer for inference; load the model anew")
        from bitsandbytes.functional import dequantize_4bit

        return cast(Tensor, dequantize_4bit(weight.data, weight.quant_state)).to(dtype)
    # LLM.int8: one absolute maximum per row (SCB); the first forward moves it from the weight to the state
    state = cast(Any, module.state)
    row_max_O = weight.SCB if getattr(weight, "SCB", None) is not None else state.SCB
    int8_OI = weight.data if weight.data.dtype == torch.int8 else state.CB
    if row_max_O is None or int8_OI is None:
        raise ValueError("the layer is not quantised yet; move the model to its device first")
    dense_OI: Tensor = int8_OI.float() * (row_max_O.float() / 127)[:, None]
    return dense_OI.to(dtype)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The type that a bitsandbytes layer computes in."""
    stated = getattr(module, "compute_dtype", None)
    if isinstance(stated, torch.dtype):
        return stated
    return module.bias.dtype if isinstance(module.bias, Tensor) else torch.bfloat16


def state_of(module: nn.Module) -> list[Any]:
    """What a bitsandbytes layer is made of beside its bias, so that a copy of it may share that: the packed
    weight, of 4 bits its scales, of int8 its numbers and the maxima of its rows.
    """
    weight, state = cast(Any, module.weight), getattr(module, "state", None)
    if state is not None and weight.CB is not None and weight.SCB is not None:
        cast(Any, module).init_8bit_state()  # as the first forward does; a copy made before would find none
    parts = [weight, getattr(weight, "quant_state", None)]
    parts += [getattr(state, "CB", None), getattr(state, "SCB", None)]
    return [part for part in parts if part is not None]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """The tensors among `state_of`, those of the scales too."""
    found = state_of(module)
    scales = [getattr(part, "absmax", None) for part in found if not isinstance(part, Tensor)]
    return [part for part in (*found, *scales) if isinstance(part, Tensor)]


KINDS = ("nf4", "fp4", "int8")
BLOCK = 64  # weights of a row that share a scale in 4 bits


def round_trip(weight_OI: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """What is left of a weight after bitsandbytes has quantised and dequantised it, in `dtype`.

    kind   one of KINDS;  dtype  the type the weight is loaded in, and computed in
    """
    return dequantize(_layer_of(weight_OI, kind, dtype), dtype)


def pack(weight_OI: Tensor, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(packed, scale) as bitsandbytes makes them, with neurons as rows: uint8 [O, I / 2] and fp32 [O, I / 64]
    in 4 bits, int8 [O, I] and fp32 [O] in 8. A row is packed by itself, so rows can be packed in parts.

    kind, dtype  as of `round_trip`. In 4 bits I has to be a multiple of 64.
    """
    outputs, inputs = weight_OI.shape
    if outputs == 0:
        packed, scale = packed_shapes(outputs, inputs, kind)
        kind_dtype = torch.int8 if kind == "int8" else torch.uint8
        return weight_OI.new_empty(packed, dtype=kind_dtype), weight_OI.new_empty(scale, dtype=torch.float32)
    weight = cast(Any, _layer_of(weight_OI, kind, dtype).weight)
    if kind == "int8":
        return weight.data, weight.SCB.float()
    return weight.data.view(outputs, inputs // 2), weight.quant_state.absmax.view(outputs, inputs // BLOCK)


def packed_shapes(outputs: int, inputs: int, kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of what `pack` returns."""
    if kind == "int8":
        return (outputs, inputs), (outputs,)
    return (outputs, inputs // 2), (outputs, inputs // BLOCK)


def unpacked_bytes(kind: str, dtype: torch.dtype) -> int:
    """Of each number of a layer while it multiplies. 8 bits are scaled in fp32, from one copy to another."""
    return 2 * torch.float32.itemsize if kind == "int8" else dtype.itemsize


def unpack(packed: Tensor, scale: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """The weight `[O, I]` of what `pack` returned, a fresh dense tensor: the bits that `dequantize` gives."""
    if kind == "int8":
        dense_OI: Tensor = packed.float() * (scale / 127)[:, None]
        return dense_OI.to(dtype)
    from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

    outputs, halves = packed.shape
    state = QuantState(
        absmax=scale.reshape(-1), shape=torch.Size((outputs, 2 * halves)), blocksize=BLOCK, quant_type=kind,
        code=get_4bit_type(kind, device=packed.device), dtype=dtype,
    )  # fmt: skip
    return cast(Tensor, dequantize_4bit(packed.reshape(-1, 1), state)).to(dtype)


def _layer_of(weight_OI: Tensor, kind: str, dtype: torch.dtype) -> nn.Module:
    """A bitsandbytes layer that holds the weight."""
    quiet_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    outputs, inputs = weight_OI.shape
    layer: nn.Module
    if kind == "int8":
        layer = Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
    else:
        # plain statistics, as `hub.load_model` asks for: quantising them once more would cost accuracy
        layer = Linear4bit(
            inputs, outputs, bias=False, compute_dtype=dtype, compress_statistics=False, quant_type=kind
        )
    layer.load_state_dict({"weight": weight_OI.to(dtype).contiguous()})
    return layer.to(weight_OI.device)


class QuantizedDeltaLinear(DeltaLinear):
    """A bitsandbytes linear layer with K trainable connections per output neuron.

    folded  [O, K] in the compute dtype: round(base + delta), written into every dequantised temporary
    """

    def __init__(self, base: nn.Module, layout: Layout) -> None:
        self.compute_dtype = compute_dtype(base)
        super().__init__(base, layout)
        self.register_buffer("folded", None, persistent=False)

    @property
    def weight_OI(self) -> Tensor:
        """The dequantised base weight, a fresh temporary."""
        return dequantize(self.base, self.compute_dtype)

    def _base_values(self, index_OK: Tensor) -> Tensor:
        return self.weight_OI.gather(1, index_OK.long())

    def effective_OI(self, weight: Tensor | None) -> Tensor:
        folded_OK = self.base_values if self.folded is None else self.folded
        weight_OI = self.weight_OI
        write_entries(weight_OI, self.index, folded_OK, self.layout)
        return weight_OI

    def state(self, weight: Tensor | None) -> tuple[int, Tensor | None]:
        return 0, self.folded

    def plain_forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.to(self.compute_dtype)
        return F.linear(x.to(self.compute_dtype), self.effective_OI(None), bias).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self._folded_linear(x, None)

    @torch.no_grad()
    def refold(self) -> None:
        self.folded = fold_entries(self.base_values, self.delta, self.compute_dtype)

    @torch.no_grad()
    def restore(self) -> None:
        self.folded = self.base_values
