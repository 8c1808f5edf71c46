"""Delta layers whose rows are dealt to the ranks of a run by FSDP2 (`fully_shard`): rows are neurons.

Between steps every rank holds its share of each layer's neurons: their weights, the places and values of
their deltas, and the optimizer's state for them. For the forward and the backward of a block its tensors are
put together, so that the sampled gradient is computed on the whole layer; what goes back over the network is
a gradient of [O, K]. Folding needs nobody else: a rank rewrites its own rows.

O = output neurons, I = inputs, K = chosen inputs per neuron, R = rows of this rank
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.delta.fold import fold_entries, write_entries
from neuroada_cli.delta.index import filled
from neuroada_cli.delta.layout import Layout, layout_of
from neuroada_cli.delta.linear import DeltaLinear
from neuroada_cli.delta.names import blocks_of
from neuroada_cli.delta.quantized import QuantizedDeltaLinear, packed_shapes, unpack
from neuroada_cli.delta.targets import is_plain, target_of
from neuroada_cli.ranks.group import Ranks


@dataclass(frozen=True)
class Planned:
    """What a layer is going to hold, before there is any memory for it.

    k           columns of its index;  ragged: whether some rows are shorter
    delta       data type of its deltas
    packed, dtype  how its weight is quantised (None: not at all), and what it computes in then
    """

    k: int
    ragged: bool = False
    delta: torch.dtype = torch.float32
    packed: str | None = None
    dtype: torch.dtype = torch.bfloat16


class _Sharded(DeltaLinear):
    """What both kinds share. index, real and delta are parameters, since buffers are not sharded; base_values
    stays a tensor of this rank's own rows.
    """

    plan: Planned
    own_delta: list[nn.Parameter]  # what the optimizer steps: [R, K], in a list so that it is no parameter
    cut: dict[str, nn.Parameter]  # the parameters as they are dealt

    def _plan(self, plan: Planned) -> None:
        outputs = self.layout.outputs
        self._base = []  # the module that it stands for is not coming back
        self.plan = plan
        self.index = _planned((outputs, plan.k), torch.int32)
        self.real = _planned((outputs, plan.k), torch.bool) if plan.ragged else None
        self.delta = nn.Parameter(torch.empty(outputs, plan.k, dtype=plan.delta, device="meta"))

    def settle(self) -> None:
        """Remember the sharded parameters: the module itself shows whole ones while a block is at work."""
        self.cut = dict(self.named_parameters(recurse=False))
        self.own_delta = [nn.Parameter(self.own("delta"))]

    @torch.no_grad()
    def own(self, name: str) -> Tensor:
        """This rank's rows of a parameter."""
        return own_rows(self.cut[name])

    @property
    def own_layout(self) -> Layout:
        """Of this rank's rows."""
        return replace(self.layout, outputs=len(self.own("index")))

    @torch.no_grad()
    def fill(self, index_OK: Tensor, ranks: Ranks) -> None:
        """Take this rank's rows of the selection; the weight is there, deltas begin at 0.

        Raises ValueError for an index that does not fit.
        """
        outputs, inputs = self.layout.shape
        if tuple(index_OK.shape) != (outputs, self.plan.k) or int(index_OK.max()) >= inputs:
            raise ValueError(f"index is {tuple(index_OK.shape)}, but the weight is {(outputs, inputs)}")
        index_RK, real_RK = filled(index_OK[ranks.rows(outputs)].to(self.own("index")))
        self.own("index").copy_(index_RK)
        if self.plan.ragged:
            self.own("real").copy_(
                torch.ones_like(index_RK, dtype=torch.bool) if real_RK is None else real_RK
            )
        self.own("delta").zero_()
        base_RK = self.own_layout.take(self._own_weight(), index_RK)
        self.register_buffer("base_values", base_RK, persistent=False)
        self.refold()

    def _own_weight(self) -> Tensor:
        return self.own("weight")

    def take_gradient(self) -> None:
        """The gradient of this rank's deltas, summed over all ranks, becomes the optimizer's."""
        summed, self.cut["delta"].grad = cast(Any, self.cut["delta"].grad), None
        self.own_delta[0].grad = None if summed is None else summed.to_local()

    @torch.no_grad()
    def refold(self) -> None:
        weight = self.own("weight")
        folded_RK = fold_entries(self.base_values, self.own("delta"), weight.dtype)
        write_entries(weight, self.own("index"), folded_RK, self.own_layout)

    @torch.no_grad()
    def restore(self) -> None:
        write_entries(self.own("weight"), self.own("index"), self.base_values, self.own_layout)

    def changing(self) -> set[int]:
        """ids of the frozen parameters that change with the deltas, beyond the weight's chosen entries."""
        return set()


class ShardedDeltaLinear(_Sharded):
    """A linear layer (nn.Linear, or GPT-2's Conv1D) with its rows, and their deltas, dealt to the ranks."""

    @classmethod
    def planned(cls, base: nn.Module, plan: Planned) -> ShardedDeltaLinear:
        """In place of `base`, which is on the meta device. Raises ValueError when it is no linear layer."""
        if not is_plain(base):
            raise ValueError(f"{type(base).__name__} computes with its weight in a way of its own")
        layer = cls(base, layout_of(base))
        layer._plan(plan)
        return layer


class ShardedQuantizedDeltaLinear(_Sharded, QuantizedDeltaLinear):
    """The same of a weight in 4 or 8 bits: packed bytes and scales are parameters of ours, cut by rows.

    bitsandbytes' own layers do not survive `fully_shard`: the parameter loses its quantisation state.
    packed, scale  as `quantized.pack` makes them;  folded [O, K] in the compute dtype
    """

    packed: nn.Parameter
    scale: nn.Parameter

    @classmethod
    def planned(cls, base: nn.Module, plan: Planned) -> ShardedQuantizedDeltaLinear:
        """In place of an nn.Linear on the meta device. Raises ValueError for rows of no whole blocks."""
        layout = layout_of(base)
        layer = cls(base, layout)
        if plan.packed != "int8":  # which computes in the type of its bias, as bitsandbytes' layer does
            layer.compute_dtype = plan.dtype
        layer.register_parameter("weight", None)
        layer.packed, layer.scale = _planned_packed(layout, plan.packed)
        del layer.folded
        layer.folded = _planned((layout.outputs, plan.k), layer.compute_dtype)
        layer._plan(plan)
        return layer

    @property
    def weight_OI(self) -> Tensor:
        assert self.plan.packed is not None
        return unpack(self.packed, self.scale, self.plan.packed, self.compute_dtype)

    def _own_weight(self) -> Tensor:
        assert self.plan.packed is not None
        return unpack(self.own("packed"), self.own("scale"), self.plan.packed, self.compute_dtype)

    @torch.no_grad()
    def refold(self) -> None:
        self.own("folded").copy_(fold_entries(self.base_values, self.own("delta"), self.compute_dtype))

    @torch.no_grad()
    def restore(self) -> None:
        self.own("folded").copy_(self.base_values)

    def changing(self) -> set[int]:
        return {id(self.cut["folded"])}


class PackedLinear(nn.Module):
    """A quantised layer that is not adapted, its packed bytes cut by rows. The dense weight never outlives a
    forward or a backward.
    """

    def __init__(self, base: nn.Module, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        layout = layout_of(base)
        self.kind, self.compute_dtype = kind, dtype
        self.packed, self.scale = _planned_packed(layout, kind)
        self.bias = cast(nn.Parameter | None, base.bias)
        self.out_features, self.in_features = layout.shape

    def dense_OI(self) -> Tensor:
        return unpack(self.packed, self.scale, self.kind, self.compute_dtype)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _PackedProduct.apply(x, self))  # type: ignore[no-untyped-call]


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(layer.compute_dtype)
        return F.linear(x.to(layer.compute_dtype), layer.dense_OI(), bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return (grad @ ctx.layer.dense_OI().to(grad.dtype)), None


def _planned(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def _planned_packed(layout: Layout, kind: str | None) -> tuple[nn.Parameter, nn.Parameter]:
    assert kind is not None
    packed, scale = packed_shapes(*layout.shape, kind)
    if packed[-1] * (1 if kind == "int8" else 2) != layout.inputs or (kind != "int8" and layout.inputs % 64):
        raise ValueError(f"has {layout.inputs} inputs, which are no whole blocks of 64")
    return (
        _planned(packed, torch.int8 if kind == "int8" else torch.uint8),
        _planned(scale, torch.float32),
    )


def deal_again(model: nn.Module) -> None:
    """After a forward without a backward, what lies outside the blocks is still whole: give it up."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            cast(Any, module).reshard()


@torch.no_grad()
def own_rows(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter that is dealt to all of them; any other as it is."""
    sharded = cast(Any, parameter)
    return cast(Tensor, sharded.to_local()) if hasattr(sharded, "to_local") else parameter.detach()


def sharded_layers(model: nn.Module) -> dict[str, _Sharded]:
    """Name -> layer with deltas, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Sharded)}


def plan_layers(
    model: nn.Module, plans: Mapping[str, Planned], packed: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Freeze a model on the meta device, and put delta layers and packed layers in place of its own.

    plans   layer -> what it is going to hold
    packed  layer -> how its weight is quantised, for all that are, adapted or not
    Raises ValueError naming a layer that cannot be sharded.
    """
    model.requires_grad_(False)
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for name in dict.fromkeys([*plans, *packed]):
        target = target_of(model, name)
        if target.layout.experts is not None:
            raise ValueError(f"{name} is one tensor of all experts' matrices")
        base = target.owner
        if len(users[id(base.weight)]) > 1:
            other = next(user for user in users[id(base.weight)] if user != f"{name}.weight")
            raise ValueError(f"{name} shares its weight with {other}")
        try:
            layer: nn.Module
            if name in packed and target.layout.transposed:
                raise ValueError("is stored sideways, which cannot be packed by rows")
            if name not in plans and packed[name] == "int8":  # bitsandbytes' own would round inputs, too
                raise ValueError("is quantised to int8 and not adapted")
            if name not in plans:
                layer = PackedLinear(base, packed[name], dtype)
            elif name in packed:
                layer = ShardedQuantizedDeltaLinear.planned(base, replace(plans[name], packed=packed[name]))
            else:
                layer = ShardedDeltaLinear.planned(base, plans[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        model.set_submodule(name, layer)


def shard(model: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Deal every parameter's rows to the ranks, block by block, and make room for this rank's (unfilled).

    model  on the meta device, its buffers real
    Needs torch 2.12. Raises ValueError for a layer that torch cannot cut along its neurons.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import Shard

    sideways = {id(m.weight) for m in sharded_layers(model).values() if m.layout.transposed}
    for name, layer in sharded_layers(model).items():
        if id(layer.weight) in sideways and layer.layout.outputs % ranks.size:
            raise ValueError(f"{name} has {layer.layout.outputs} neurons, no multiple of {ranks.size}")
    mesh = init_device_mesh(device.type, (ranks.size,))
    blocks = [model.get_submodule(name) for name in blocks_of(name for name, _ in model.named_parameters())]
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, shard_placement_fn=lambda p: Shard(1) if id(p) in sideways else None)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # targets of all ranks were counted before
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it sums
            module.set_reduce_scatter_unused_params(True)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(kept[name])
    for layer in sharded_layers(model).values():
        layer.settle()
