"""Pictures: one canvas for all of them, without a display or global state, written all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import RecipeError

ENDINGS = (".png", ".svg", ".pdf")
DPI = 150


def check_ending(path: Path | None, option: str) -> None:
    """Raises RecipeError for a name that does not end like a picture's, before expensive work."""
    if path is not None and path.suffix.lower() not in ENDINGS:
        raise RecipeError(f"{path.name} is no picture", option, f"end it in {', '.join(ENDINGS)}")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches. (Not by pyplot, which keeps every figure and asks for a display.)"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the name's ending says. Raises ResourceError for the disk."""
    kind = path.suffix.lower().removeprefix(".") or "png"
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI)
