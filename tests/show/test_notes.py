"""Lines on terminals of any width."""

import io

import pytest
from rich.console import Console

from neuroada_cli.foreign_text import shown
from neuroada_cli.show.notes import say

PATH = "runs/a-name-that-is-rather-long/selection.safetensors"
LINE = f"everything of this run is in the folder {PATH}; raise data.max_length [or not] to see more of it"


def said(width: int, terminal: bool) -> str:
    file = io.StringIO()
    say(Console(file=file, width=width, force_terminal=terminal, color_system=None), shown(LINE))
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_a_terminals_lines_end_between_words(width: int) -> None:
    lines = said(width, terminal=True).splitlines()
    assert " ".join(lines) == LINE
    assert all(len(line) <= width or " " not in line for line in lines)
    assert any(PATH in line for line in lines), "a path is never parted"


def test_a_file_gets_one_line() -> None:
    assert said(40, terminal=False) == LINE + "\n"
