"""The pictures of docs/concepts.md, drawn from small computations with the package's own code.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from pathlib import Path

import torch

from neuroada_cli.delta.fold import fold_entries
from neuroada_cli.selection.criteria import choose
from neuroada_cli.show import figures

PICTURES = Path(__file__).parents[1] / "pictures"
DARK, LIGHT, CHOSEN = "#4477aa", "#d8dee9", "#ee6677"


def selection(path: Path) -> None:
    """|W| of a small layer, and the K=2 largest entries of every row."""
    weight_OI = torch.randn(16, 40, generator=torch.Generator().manual_seed(3))
    weight_OI[:, [7, 23]] *= 2.2  # as in real layers, some inputs are large for many neurons
    index_OK = choose(weight_OI, 2)
    figure = figures.new_figure(8, 3.4)
    axis = figure.subplots()
    shown = axis.imshow(weight_OI.abs().numpy(), cmap="Greys", aspect="auto")
    rows_OK = torch.arange(16)[:, None].expand_as(index_OK)
    axis.scatter(
        index_OK.flatten(), rows_OK.flatten(), s=42, facecolors="none", edgecolors=CHOSEN, linewidths=1.8
    )
    axis.set(
        xlabel="inputs", ylabel="neurons", title="|W|, and the K=2 connections of each neuron that train"
    )
    figure.colorbar(shown, ax=axis, label="|w|")
    figures.save(figure, path)


def step(path: Path) -> None:
    """Multiplications of one layer's step, in units of its forward product: the usual way and this one."""
    outputs, inputs, k = 4096, 4096, 20
    parts = ("forward", "gradient of the input", "gradient of what trains")
    usual, ours = (1.0, 1.0, 1.0), (1.0, 1.0, k / inputs)
    figure = figures.new_figure(8, 2.6)
    axis = figure.subplots()
    for place, values in enumerate((usual, ours)):
        left = 0.0
        for part, value, colour in zip(parts, values, (LIGHT, DARK, CHOSEN), strict=True):
            axis.barh(place, value, left=left, color=colour, label=part if place == 0 else None)
            left += value
        axis.text(left + 0.02, place, f"{left:.3f}", va="center")
    axis.set_yticks([0, 1], ["dense gradient", f"sampled, K={k}"])
    axis.set(xlabel="products of the size of the forward", xlim=(0, 3.3))
    axis.set_title(f"a {outputs} x {inputs} layer", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, frameon=False)
    figures.save(figure, path)


def rounding(path: Path) -> None:
    """What a bf16 weight of 0.5 becomes as its fp32 delta grows."""
    delta_N = torch.linspace(0, 0.02, 400)
    folded_N = fold_entries(torch.full((400,), 0.5, dtype=torch.bfloat16), delta_N, torch.bfloat16)
    figure = figures.new_figure(8, 3)
    axis = figure.subplots()
    axis.plot(delta_N, 0.5 + delta_N, color=LIGHT, linewidth=3, label="w + delta, in 32 bits")
    axis.plot(
        delta_N, folded_N.float(), color=CHOSEN, linewidth=1.6, label="the weight that trains and ships, bf16"
    )
    axis.set(xlabel="delta", ylabel="weight")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    figures.save(figure, path)


def draw_all() -> None:
    PICTURES.mkdir(exist_ok=True)
    for make in (selection, step, rounding):
        make(PICTURES / f"{make.__name__}.png")
