"""What is said of a run that has finished."""

from __future__ import annotations

import json
from typing import TextIO

from rich.console import Console

from neuroada_cli.foreign_text import shown
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import clock, counted
from neuroada_cli.training.fit import TrainResult


def tell(result: TrainResult, console: Console, stream: TextIO | None = None) -> None:
    """One line; on `stream`, for programs, an object with everything."""
    if stream is not None:
        print(json.dumps({"kind": "end"} | vars(result), default=str), file=stream, flush=True)
    best = f"; best: {result.best.name} ({result.best_value:.4f})" if result.best else ""
    say(
        console,
        f"finished: {counted(result.steps, 'step')} in {clock(result.seconds)}, "
        f"{result.peak_bytes / 1e9:.2f} GB{best}; everything is in {shown(result.run_dir)}",
    )
