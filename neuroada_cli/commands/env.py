"""`neuroada env`: one screen about this machine, to paste into a bug report. Nothing in it is secret."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from neuroada_cli.files.folders import files_beneath
from neuroada_cli.machine import environment
from neuroada_cli.machine.cache import cache_folder
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import counted


def run() -> None:
    """Print versions, processor, memory and accelerators, one `name: value` a line."""
    console = Console()
    for name, value in environment.facts().items():
        say(console, f"{name:14} {value}", markup=False)
    say(console, f"{'cache':14} {_cache()}", markup=False)


def _cache() -> str:
    """Where what can be made again is kept (module graphs, encoded rows, kernels), and what it takes."""
    folder = cache_folder()
    home = Path.home()
    shown = f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)
    sizes = [_taken(about) for _, about in files_beneath(folder)]
    taken = f"{sum(sizes) / 1e6:,.1f} MB in {counted(len(sizes), 'file')}"
    return f"{shown}: {taken}, which may be removed at any time"


def _taken(about: os.stat_result) -> int:
    """Bytes on the disk: outlines of models have the size of their weights and hardly take any."""
    blocks = getattr(about, "st_blocks", None)  # of 512 bytes; Windows does not say
    return about.st_size if blocks is None else min(about.st_size, 512 * blocks)
