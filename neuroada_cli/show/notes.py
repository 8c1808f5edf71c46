"""Lines of text for a user: on a terminal broken between words, elsewhere each on one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from neuroada_cli.foreign_text import shown


def say(console: Console, line: str, *, style: str | None = None, markup: bool = True) -> None:
    """Print a line. A path that is longer than the terminal is wide is not parted, so that it can be copied.

    markup  False: brackets in `line` are brackets
    """
    text = Text.from_markup(line) if markup else Text(line)
    breaks = _breaks(text.plain, console.width) if console.is_terminal else []
    for part in text.divide(breaks):
        part.rstrip()
        console.print(part, style=style, soft_wrap=True)


def _breaks(text: str, width: int) -> list[int]:
    """Where lines after the first begin, so that none is longer than `width` but for a single word."""
    found, used = [], 0
    for word in re.finditer(r"(\s*)(\S+)", text):
        size = cell_len(word[0])
        if used and used + size > width:
            found.append(word.start(2))
            used, size = 0, cell_len(word[2])
        used += size
    return found


def tell(lines: Iterable[str], quiet: bool = False) -> None:
    """What a user should know of, on stderr, beside what a command does."""
    console = Console(stderr=True, quiet=quiet)
    for line in lines:
        say(console, shown(line), style="yellow")
