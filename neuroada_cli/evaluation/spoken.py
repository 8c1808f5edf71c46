"""What models write, shown while they write it: one alone as plain text, two beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from neuroada_cli.foreign_text import printable

NARROW = 60  # columns below which two texts stand under each other


class Spoken:
    """The answers to one question, by the names of who writes them.

    In a terminal two of them are columns; in a file, a pipe or a narrow terminal they follow each other, each
    under its name. Without the control characters that a model may write.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console, self._texts = console, dict.fromkeys(names, "")
        beside = len(names) > 1 and console.is_terminal and console.width >= NARROW and not console.quiet
        self._live = Live(console=console, transient=True, auto_refresh=False) if beside else None
        self._writing: str | None = None

    def __enter__(self) -> Spoken:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._console.print(self._table())
        elif self._writing is not None:
            self._print("\n" if len(self._texts) == 1 else "\n\n")

    def piece(self, name: str, text: str) -> None:
        """The next piece of what `name` writes; each writes until the next one begins."""
        self._texts[name] += printable(text, keep="\n\t")
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        if self._writing != name and len(self._texts) > 1:
            self._print(f"{'' if self._writing is None else chr(10) * 2}{name}:\n")
        self._writing = name
        self._print(printable(text, keep="\n\t"))

    def _print(self, text: str) -> None:
        self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def _table(self) -> Table:
        shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
        for name in self._texts:
            shown.add_column(name, ratio=1, overflow="fold")
        shown.add_row(*(Text(text.strip("\n")) for text in self._texts.values()))
        return shown
