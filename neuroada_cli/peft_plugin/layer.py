"""A linear layer under PEFT's adapters: the active ones are folded into the weight; no dense delta exists.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens; J = K of all active adapters

Whoever steps the values here (any optimizer, any trainer) tells nobody. So each forward that trains folds
anew: K entries per row, little beside the product. And since PEFT's users switch adapters between a forward
pass and its backward pass (DPO's reference runs with the adapters off), a backward pass brings the weight
back to what its forward used. Weights quantised by bitsandbytes stay as they are; the folded one is a
temporary.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from neuroada_cli.delta.fold import fold_entries, write_entries
from neuroada_cli.delta.index import filled
from neuroada_cli.delta.layout import layout_of
from neuroada_cli.delta.quantized import compute_dtype, dequantize, is_quantized
from neuroada_cli.delta.sampled_grad import sampled_grad

Adapters = tuple[str, ...]


class _Folded(torch.autograd.Function):
    """y = x W'^T + b, W' with the adapters folded in; a sampled gradient for each adapter's values."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: NeuroAdaLinear, adapters: Adapters, bias: Tensor | None, *values: Tensor
    ) -> Tensor:
        ctx.layer, ctx.adapters, ctx.x_dtype = layer, adapters, x.dtype
        ctx.trained = adapters[: len(values)]
        ctx.versions = [value._version for value in values]
        y = layer.product(x, adapters)
        # under autocast the product is of another type than x, and so are the gradients
        ctx.save_for_backward(x.to(y.dtype) if any(value.requires_grad for value in values) else None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x,) = grads, ctx.saved_tensors
        layer: NeuroAdaLinear = ctx.layer
        if ctx.versions != [layer.neuroada_values[name]._version for name in ctx.trained]:
            raise RuntimeError("the adapter's values were changed between a forward and its backward pass")
        grad_TO = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias_O = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ layer.effective_OI(ctx.adapters).to(grad.dtype)).to(ctx.x_dtype)
        if ctx.needs_input_grad[3]:
            grad_bias_O = grad_TO.float().sum(dim=0)
        found: list[Tensor | None] = []
        for name, wanted in zip(ctx.trained, ctx.needs_input_grad[4:], strict=True):
            found.append(layer.sampled(name, grad_TO, x.reshape(-1, x.shape[-1])) if wanted else None)
        return grad_x, None, None, grad_bias_O, *found


class NeuroAdaLinear(nn.Module, BaseTunerLayer):
    """A linear layer (nn.Linear, GPT-2's Conv1D, bitsandbytes' 4 and 8 bits) with adapters by name.

    neuroada_values   fp32 [O, K] of every adapter, the trainable part
    neuroada_indices  int32 [O, K], ascending columns per row, shorter rows ending in -1
    folded_index, folded_base  of the weight in memory: the places [O, J] that hold adapters now, and the
        base's values there; None while the weight is the base's
    """

    adapter_layer_names: tuple[str, ...] = ("neuroada_values",)
    other_param_names: tuple[str, ...] = ("neuroada_indices",)
    folded_index: Tensor | None
    folded_base: Tensor | None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layout = layout_of(base_layer)
        self.out_features, self.in_features = self.layout.shape
        self.neuroada_values = nn.ParameterDict({})
        self.neuroada_indices = BufferDict(persistent=True)
        self.register_buffer("folded_index", None, persistent=False)
        self.register_buffer("folded_base", None, persistent=False)
        self._folded: Adapters = ()
        # marks of what is folded; None among the values: they may have changed since
        self._places: list[object] = []
        self._values: list[object] = []
        self._filled: dict[str, tuple[object, Tensor, Tensor | None]] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # whoever copies the base's weights out or in means the base's
        self.register_state_dict_pre_hook(_unfold_first)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_unfold_first)  # type: ignore[no-untyped-call]

    @property
    def base(self) -> nn.Module:
        return cast(nn.Module, BaseTunerLayer.get_base_layer(self))

    @property
    def weight(self) -> Tensor:
        """The base's weight with the active adapters in it, for whoever computes with it and calls no layer:
        torch's nn.TransformerEncoderLayer does in evaluation.
        """
        if not self.packed:
            adapters = self._wanted()
            self.bring(adapters, again=self._trains(adapters))
        return cast(Tensor, self.base.weight)

    @property
    def active(self) -> list[str]:
        return list(cast(Any, self).active_adapters)

    @property
    def packed(self) -> bool:
        return is_quantized(self.base)

    def update_layer(self, adapter_name: str, index_OK: Tensor, inference_mode: bool = False) -> None:
        """A new adapter at these places, its values 0: outputs stay the base's."""
        self.neuroada_indices[adapter_name] = index_OK.to(torch.int32)
        self.neuroada_values[adapter_name] = nn.Parameter(torch.zeros(index_OK.shape, dtype=torch.float32))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        cast(Any, self).set_adapter(self.active, inference_mode=inference_mode)

    def make_room(self, adapter_name: str, values: Tensor, index_OK: Tensor) -> None:
        """Take the shape of a stored adapter, which is about to be loaded.

        Raises ValueError for one that does not fit this layer.
        """
        shape = tuple(index_OK.shape)
        if index_OK.ndim != 2 or shape[0] != self.out_features or shape != tuple(values.shape):
            raise ValueError(f"indices are {list(shape)}, values {list(values.shape)}: expected [O, K]")
        if (
            index_OK.is_floating_point()
            or int(index_OK.min()) < -1
            or int(index_OK.max()) >= self.in_features
        ):
            raise ValueError(f"has columns outside 0..{self.in_features - 1}")
        old = self.neuroada_values[adapter_name]
        if old.shape != values.shape:
            room = torch.zeros(shape, dtype=torch.float32, device=old.device)
            self.neuroada_values[adapter_name] = nn.Parameter(room, requires_grad=old.requires_grad)
            device = self.neuroada_indices[adapter_name].device
            self.neuroada_indices[adapter_name] = torch.zeros(shape, dtype=torch.int32, device=device)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """To the device only: PEFT's own would round values to the type of the base."""
        if adapter_name not in self.neuroada_values or self.neuroada_values[adapter_name].is_meta:
            return
        place = device if device is not None else cast(Tensor, self.base.weight).device
        values = self.neuroada_values[adapter_name]
        if values.device != place:
            moved = values.detach().to(place)
            self.neuroada_values[adapter_name] = nn.Parameter(moved, requires_grad=values.requires_grad)
        self.neuroada_indices[adapter_name] = self.neuroada_indices[adapter_name].to(place)

    # -----------------------------------------------------------------------------------------------
    # The weight in memory

    @torch.no_grad()
    def bring(self, adapters: Adapters, again: bool = False) -> None:
        """Make the weight in memory the base's with these adapters folded in.

        again  they may have changed in a way that leaves no trace
        """
        if self.packed:
            return
        places = [_mark(self.neuroada_indices[name]) for name in adapters]
        values = [_mark(self.neuroada_values[name]) for name in adapters]
        unmoved = self._folded == adapters and None not in places and places == self._places
        if unmoved and not again and None not in values and values == self._values:
            return
        weight = cast(nn.Parameter, self.base.weight)
        if not unmoved:
            self._put_back(weight)
        if adapters:
            index_OJ, delta_OJ = self._joined(adapters)
            if self.folded_base is None:
                self.folded_index, self.folded_base = index_OJ, self.layout.take(weight, index_OJ)
            folded_OJ = fold_entries(self.folded_base, delta_OJ, weight.dtype)
            write_entries(weight, index_OJ, folded_OJ, self.layout)
        self._folded, self._places = adapters, places
        self._values = [None] if again else values

    def _put_back(self, weight: Tensor) -> None:
        if self.folded_index is not None and self.folded_base is not None:
            write_entries(weight, self.folded_index, self.folded_base, self.layout)
        self.folded_index = self.folded_base = None

    def effective_OI(self, adapters: Adapters) -> Tensor:
        """The weight with these adapters, neurons as rows: a view of the one in memory, of a packed one a
        temporary.
        """
        base = self.base
        if not self.packed:
            if self._folded != adapters:  # a switch in between; the values are the forward's
                self.bring(adapters)
            return self.layout.rows(cast(Tensor, base.weight).detach())
        weight_OI = dequantize(base, compute_dtype(base))
        if adapters:
            index_OJ, delta_OJ = self._joined(adapters)
            base_OJ = self.layout.take(weight_OI, index_OJ)
            write_entries(weight_OI, index_OJ, fold_entries(base_OJ, delta_OJ, weight_OI.dtype), self.layout)
        return weight_OI

    @torch.no_grad()
    def product(self, x: Tensor, adapters: Adapters) -> Tensor:
        """x W'^T + b by the base layer itself, so that outputs are equal to the last bit."""
        base = self.base
        if not self.packed:
            self.bring(adapters, again=self._trains(adapters))
            return cast(Tensor, base(x))
        dtype, bias = compute_dtype(base), cast(Tensor | None, base.bias)
        bias = None if bias is None else bias.to(dtype)
        return F.linear(x.to(dtype), self.effective_OI(adapters).to(dtype), bias).to(x.dtype)

    def _trains(self, adapters: Adapters) -> bool:
        return not self.merged and any(self.neuroada_values[name].requires_grad for name in adapters)

    def _joined(self, adapters: Adapters) -> tuple[Tensor, Tensor]:
        """(places int32 [O, J], the sum of all deltas at each, fp32 [O, J]); a place may be there twice."""
        indices = [self._index(name)[0] for name in adapters]
        deltas = [self.neuroada_values[name].detach().float() for name in adapters]
        if len(adapters) == 1:
            return indices[0], deltas[0]
        index_OJ = torch.cat(indices, dim=1)
        sum_OI = torch.zeros(self.layout.shape, dtype=torch.float32, device=index_OJ.device)
        sum_OI.scatter_add_(1, index_OJ.long(), torch.cat(deltas, dim=1))
        return index_OJ, sum_OI.gather(1, index_OJ.long())

    def _index(self, name: str) -> tuple[Tensor, Tensor | None]:
        """(places without -1, which of them are real) of one adapter."""
        index_OK = self.neuroada_indices[name]
        mark = _mark(index_OK)
        known = self._filled.get(name)
        if known is None or mark is None or known[0] != mark:
            known = self._filled[name] = (mark, *filled(index_OK))
        return known[1:]

    def sampled(self, name: str, grad_TO: Tensor, x_TI: Tensor) -> Tensor:
        """The gradient of one adapter's values."""
        index_OK, real_OK = self._index(name)
        grad_OK = sampled_grad(grad_TO, x_TI, index_OK)
        return grad_OK if real_OK is None else grad_OK.mul_(real_OK)

    # -----------------------------------------------------------------------------------------------
    # What PEFT calls

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError(
                "NeuroAda folds adapters into the weight: all rows of a batch have the same ones"
            )
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = self._wanted()
        values = [] if self.merged else [self.neuroada_values[name] for name in adapters]
        asks = x.requires_grad or any(value.requires_grad for value in values)
        if torch.is_grad_enabled() and asks:
            y = _Folded.apply(x, self, adapters, self.bias, *values)  # type: ignore[no-untyped-call]
            return cast(Tensor, y)
        return self.product(x, adapters)

    def _wanted(self) -> Adapters:
        if self.merged:
            return tuple(self.merged_adapters)
        if self.disable_adapters:
            return ()
        return tuple(name for name in self.active if name in self.neuroada_values)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Stay with these adapters folded in, until `unmerge`, which is exact.

        A packed weight stays packed and the adapters beside it (see `dense`): rounding their sum to 4 bits
        would lose them. Raises ValueError with `safe_merge` where the sum is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.neuroada_values]
        if not names:
            return
        together = (*self.merged_adapters, *names)
        if safe_merge and not bool(torch.isfinite(self.effective_OI(together)).all()):
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {names[0]} seems to be broken"
            )
        self.bring(together, again=True)
        self.merged_adapters = list(together)

    def unmerge(self) -> None:
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters = []
        self.bring(())

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer, with or without adapters in it; of a packed one with adapters a dense layer."""
        if merge:
            self.merge(safe_merge, adapter_names)
        elif not self.merged:
            self.bring(())
        return self.dense() if self.packed and self.merged else self.base

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """A packed layer with its merged adapters as a plain one, in the type that it computes in."""
        weight_OI, bias = self.effective_OI(tuple(self.merged_adapters)), cast(Tensor | None, self.base.bias)
        layer = nn.Linear(self.in_features, self.out_features, bias is not None, "meta", weight_OI.dtype)
        layer.weight = nn.Parameter(weight_OI, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(weight_OI.dtype), requires_grad=False)
        return layer.train(self.training)

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """One adapter's deltas as a dense tensor that lies like the weight."""
        index_OK, delta_OK = self._joined((adapter,))
        dense_OI = torch.zeros(self.layout.shape, dtype=torch.float32, device=delta_OK.device)
        dense_OI.scatter_add_(1, index_OK.long(), delta_OK)
        return self.layout.rows(dense_OI) if self.layout.transposed else dense_OI

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name in self._folded and not self.merged:
            self.bring(())
        self._filled.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def extra_repr(self) -> str:
        return f"k={ {name: index.shape[1] for name, index in self.neuroada_indices.items()} }"


def _mark(tensor: Tensor) -> object:
    """Another one after every change that torch sees; None where it sees none."""
    if tensor.is_inference():
        return None
    return id(tensor), tensor._version, tensor.data_ptr()


def _unfold_first(module: nn.Module, *_: Any) -> None:
    layer = cast(NeuroAdaLinear, module)
    if not layer.merged:
        layer.bring(())
