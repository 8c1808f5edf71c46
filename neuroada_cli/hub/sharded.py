"""A model of which every rank reads and holds only its own rows: it never stands whole in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.delta.quantized import pack
from neuroada_cli.delta.sharded import (
    PackedLinear,
    Planned,
    ShardedQuantizedDeltaLinear,
    plan_layers,
    shard,
)
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.base import Base
from neuroada_cli.hub.loading import (
    _auto_class,
    _config,
    _explained,
    _silent_transformers,
    packed_layers,
)
from neuroada_cli.hub.resolve import check_folder
from neuroada_cli.machine import collector, narrow_products
from neuroada_cli.ranks.group import Ranks

REPLICATE = "set train.parallel: replicate"


def planned_model(base: Base, dtype: torch.dtype, attention: str | None = None) -> nn.Module:
    """The model with its code and its buffers, and parameters of `dtype` on the meta device.

    Raises ModelError for what transformers cannot build, or keeps in another type.
    """
    check_folder(base.folder, base.trust_remote_code)
    with (
        _explained(base.folder),
        _silent_transformers(),
        torch.random.fork_rng(devices=[]),
        _parameters_on_meta(),
    ):
        config = _config(base.folder, base.num_labels, base.trust_remote_code)
        model: Any = _auto_class(base.task).from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=base.trust_remote_code
        )
        model.tie_weights()
    kept = getattr(model, "_keep_in_fp32_modules", None) or getattr(
        model, "_keep_in_fp32_modules_strict", None
    )
    if kept and dtype != torch.float32:
        raise ModelError(
            f"keeps {sorted(kept)[0]} in fp32, which cannot be sharded", str(base.folder), REPLICATE
        )
    found: nn.Module = model.eval()
    return found


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, parameters lose their memory as soon as they are registered; buffers are made as usual, since
    nothing in the files says what is in them.
    """
    register: Callable[..., None] = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def load_sharded(
    base: Base,
    indices: Mapping[str, Tensor],
    dtype: torch.dtype,
    ranks: Ranks,
    device: torch.device,
    attention: str | None = None,
    quantization: str | None = None,
    delta: torch.dtype = torch.float32,
) -> nn.Module:
    """A model of which this rank holds its rows, with delta layers to be filled (`ShardedNeuroAda.attach`).

    indices       target -> int32 [O, K] of whole layers: how many connections each is going to hold
    quantization  nf4, fp4 or int8: of all linear layers except heads;  delta  data type of the deltas
    All ranks call it. Raises ValueError naming a layer that cannot be sharded, ModelError as `read_rows`.
    """
    narrow_products.prepare(device, dtype)
    model = planned_model(base, dtype, attention)
    names = names_of(model)
    packed = {}
    if quantization is not None:
        packed = dict.fromkeys(packed_layers(model), quantization)
    plans = {
        name: Planned(index_OK.shape[1], bool((index_OK < 0).any()), delta, dtype=dtype)
        for name, index_OK in indices.items()
    }
    plan_layers(model, plans, packed, dtype)
    collector.as_usual()
    shard(model, ranks, device)
    ranks.all_do(lambda: read_rows(base, model, names, ranks, device))
    return model


def names_of(model: nn.Module) -> dict[str, list[str]]:
    """The first name of every parameter -> all of its names, those of tied ones among them."""
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in users.values()}


@torch.no_grad()
def read_rows(
    base: Base,
    model: nn.Module,
    names: Mapping[str, list[str]],
    ranks: Ranks,
    device: torch.device,
) -> None:
    """Fill this rank's share of every parameter of a sharded model from the files, and nothing else of them.

    names  of `names_of`, from before the model was sharded; what has come since is not in the files
    Raises ModelError for what the files lack, or hold in another shape.
    """
    packed = {
        f"{name}.packed": module
        for name, module in model.named_modules()
        if isinstance(module, ShardedQuantizedDeltaLinear | PackedLinear)
    }
    for name, parameter in model.named_parameters():
        sharded: Any = parameter
        if name in packed:
            _read_packed(base, name, packed[name], sharded, ranks, device)
        elif name in names:
            source = _stored(base, names[name])
            info = base.weights.info(source)
            if tuple(info.shape) != tuple(sharded.shape):
                shapes = f"{list(info.shape)}, the model needs {list(sharded.shape)}"
                raise ModelError(f"{source} has the shape {shapes}", str(info.file))
            sharded.to_local().copy_(_part(base, source, sharded, ranks))
    for name, buffer in model.named_buffers():
        if (held := base.places.own_name(name)) is not None:
            buffer.copy_(base.weights.tensor(held))


def _part(base: Base, source: str, sharded: Any, ranks: Ranks) -> Tensor:
    """This rank's part of a tensor in the files, along the dimension that it is cut in."""
    (placement,) = sharded.placements
    if placement.dim == 0:
        return base.weights.tensor(source, ranks.rows(sharded.shape[0]))
    return base.weights.tensor(source)[:, ranks.rows(sharded.shape[1])]


def _read_packed(
    base: Base,
    name: str,
    layer: ShardedQuantizedDeltaLinear | PackedLinear,
    sharded: Any,
    ranks: Ranks,
    device: torch.device,
) -> None:
    """This rank's rows of a weight, quantised here as bitsandbytes quantises the whole."""
    source = _stored(base, [f"{name.removesuffix('.packed')}.weight"])
    kind = layer.plan.packed if isinstance(layer, ShardedQuantizedDeltaLinear) else layer.kind
    assert kind is not None
    rows = base.weights.tensor(source, ranks.rows(sharded.shape[0])).to(device)
    packed, scale = pack(rows, kind, layer.compute_dtype)
    sharded.to_local().copy_(packed)
    held: Any = layer.scale
    held.to_local().copy_(scale)


def _stored(base: Base, names: list[str]) -> str:
    for name in names:
        if (found := base.places.own_name(name)) is not None:
            return found
    raise ModelError(
        f"holds no tensor {names[0]} as the model needs it, and only whole tensors can be sharded",
        str(base.folder),
        REPLICATE,
    )
