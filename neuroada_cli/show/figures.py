"""Pictures: one canvas for all of them, without a display or global state, written all or nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import RecipeError, ResourceError, UserError
from neuroada_cli.show.notes import tell

ENDINGS = (".png", ".svg", ".pdf")
DPI = 150


def check_name(path: Path | None, option: str) -> None:
    """Raises RecipeError for a name that does not end like a picture's, OutputError for one that cannot be
    written, before expensive work.
    """
    if path is not None and path.suffix.lower() not in ENDINGS:
        raise RecipeError(f"{path.name} is no picture", option, f"end it in {', '.join(ENDINGS)}")
    if path is not None:
        files.require_place(path, option)


def new_figure(width: float, height: float, margins: Mapping[str, float] | None = None) -> Any:
    """An empty figure of so many inches. (Not by pyplot, which keeps every figure and asks for a display.)

    margins  left, right, bottom, top as shares, where they are known: finding them doubles the time
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout: Any = "constrained" if margins is None else None
    figure = Figure(figsize=(width, height), layout=layout, dpi=DPI)
    if margins is not None:
        figure.subplots_adjust(**margins)
    FigureCanvasAgg(figure)
    return figure


def drawn(draw: Callable[[], object], path: Path, asked_for: bool = False) -> None:
    """Draw a picture of what is done and written.

    asked_for  by the user; one that only comes with the numbers may be missing, which is said
    Raises ResourceError for the disk, and where it was asked for and cannot be drawn.
    """
    try:
        draw()
    except UserError:
        raise
    except Exception as error:  # matplotlib may lack memory, fonts, or what it was built for
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if asked_for:
            raise ResourceError(f"cannot be drawn ({reason})", str(path), "free some memory") from error
        tell([f"{path} could not be drawn ({reason}); the numbers are complete without it"])


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the name's ending says. Raises ResourceError for the disk."""
    kind = path.suffix.lower().removeprefix(".") or "png"
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI)


def as_svg(figure: Any, salt: str) -> str:
    """A figure as SVG with its words as text, the same every time; ids are told apart by `salt`."""
    import matplotlib

    made = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(made, format="svg", transparent=True, metadata={"Date": None})
    return made.getvalue()
