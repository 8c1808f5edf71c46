"""Lines that a user should know of, on stderr, beside what a command does."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from neuroada_cli.foreign_text import shown


def tell(lines: Iterable[str], quiet: bool = False) -> None:
    console = Console(stderr=True, quiet=quiet)
    for line in lines:
        console.print(shown(line), style="yellow", highlight=False, soft_wrap=True)
