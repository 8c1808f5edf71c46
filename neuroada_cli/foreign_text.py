"""Text that others wrote (names, rows, answers, addresses, errors), made fit to be shown and kept.

    printable   no terminal escapes: what is not printable is left out
    shown       the same for Rich, which then takes no bracket for markup
    one_line    both, on one line, of a length that can be read
    public      without what an address tells of its user: name, password, and the query (tokens)

Whatever goes to the terminal or into a file that others get passes through one of them.
"""

from __future__ import annotations

import re
from typing import Any

LONGEST_WORD, LONGEST_LINE = 400, 2000
# for a source that is kept, and so shown to whoever gets a run: what is wrong with one that `has_secrets`
HAS_SECRETS = "is an address with a user name, a password or a query, which may be secret and would be kept"
INSTEAD = "name a hub id and set HF_TOKEN, or download it and name the file"

# scheme://user:password@host/path?query#part, in running text (a Path makes one slash of the two)
_ADDRESS = re.compile(r"(:/+)(?:[^\s/?#]*@)?([^\s?]*)(\?\S*)?")


def printable(text: object, keep: str = "") -> str:
    """Without control characters, also those that turn the direction of writing.

    keep  characters to let through all the same, like line breaks
    """
    return "".join(c for c in str(text) if c.isprintable() or c in keep)


def one_line(text: str) -> str:
    """A message: printable and public, and what it quotes cut to where it can still be recognised."""
    words = [_cut(word) for word in printable(public(" ".join(text.split()))).split(" ")]
    line = " ".join(words)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _cut(word: str) -> str:
    return word if len(word) <= LONGEST_WORD else f"{word[: LONGEST_WORD // 2]}…{word[-LONGEST_WORD // 4 :]}"


def shown(text: object) -> str:
    """For Rich, in its markup: printable, and every bracket is a bracket."""
    from rich.markup import escape  # late: a mistake in a recipe is answered without it

    return escape(printable(text))


def public(text: str) -> str:
    """The addresses in a text without user name, password and query, which may hold secrets."""
    return _ADDRESS.sub(lambda found: f"{found[1]}{found[2]}{'?…' if found[3] else ''}", text)


def has_secrets(source: str) -> bool:
    """Whether a source is an address with a user name or a query."""
    _, scheme, rest = source.partition("://")
    return scheme != "" and ("?" in rest or "@" in rest.partition("/")[0])


def short(value: Any) -> str:
    """A foreign value for a message: of a megabyte only the beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
