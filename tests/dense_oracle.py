"""A model with deltas held against the same model that trains its weights whole, by plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neuroada_cli.delta.model import attach, detach, refold
from neuroada_cli.delta.targets import parameter_name, target_of
from neuroada_cli.delta.trained_weight import TrainedWeight


def dense_gradients(
    model: nn.Module, indices: dict[str, Tensor], run: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Every weight trains whole by plain autograd; then the chosen entries of its gradient."""
    for name in indices:
        target_of(model, name).weight.requires_grad_(True)
    run(model).float().square().sum().backward()
    found = {}
    for name, index_OK in indices.items():
        target = target_of(model, name)
        grad = torch.zeros_like(target.weight) if target.weight.grad is None else target.weight.grad
        found[name] = target.layout.rows(grad).float().gather(1, index_OK.long())
    model.zero_grad(set_to_none=True)
    return found


def check(
    model: nn.Module, indices: dict[str, Tensor], run: Callable[[nn.Module], Tensor], rtol: float = 1e-4
) -> None:
    """At delta 0 the same bits as the base; gradients and effective weights as the dense model has them."""
    model.requires_grad_(False)  # what `torch.matmul` does depends on it
    expected = run(model)
    wanted = dense_gradients(model, indices, run)
    layers = attach(model, indices)
    made = run(model)
    assert torch.equal(made, expected)
    made.float().square().sum().backward()
    for name, layer in layers.items():
        grad = layer.delta.grad
        assert grad is not None, name
        scale = float(wanted[name].abs().max()) or 1.0
        torch.testing.assert_close(grad, wanted[name], rtol=rtol, atol=rtol * scale, msg=name)
        layer.delta.data = 0.1 * torch.randn(layer.delta.shape)
    refold(model)
    moved = run(model).detach()
    assert not torch.equal(moved, expected)
    effective = {parameter_name(model, name): layer.weight.detach().clone() for name, layer in layers.items()}
    detach(model)
    model.requires_grad_(False)
    assert torch.equal(run(model), expected)
    assert not any(isinstance(p, TrainedWeight) for p in model.parameters())
    with torch.no_grad():
        for name, weight in effective.items():
            model.get_parameter(name).copy_(weight)
    assert torch.equal(run(model), moved)
