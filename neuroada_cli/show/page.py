"""A report: one HTML file that needs nothing beside it, light or dark, on a phone as well.

Whatever others wrote (rows, answers, names) is text here and never markup, and the page forbids scripts and
anything from elsewhere by its own policy.
"""

from __future__ import annotations

import html
import re
import shlex
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroada_cli.foreign_text import printable, public
from neuroada_cli.show import figures

INK = "#010203"  # a colour that no picture uses: becomes the page's own, dark on light or light on dark
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)  # who drew it, with addresses
SHADE = 65  # percent of the colour at most, so that numbers on it can be read
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --back: #ffffff; --soft: #f3f5f7; --line: #d4d9df;
  --dim: #57606a; --link: #0a58ca; --right: #1a7f37; --wrong: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --back: #14171b; --soft: #1e2329;
  --line: #3a414a; --dim: #9aa4af; --link: #7cb4ff; --right: #57c26f; --wrong: #ff8b7e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } a { color: var(--link); } nav { margin: .6rem 0; } .dim { color: var(--dim); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.facts div { background: var(--soft); border-radius: .4rem; padding: .5rem .7rem; }
.facts b { display: block; font-size: 1.1rem; } .facts span { color: var(--dim); font-size: .85rem; }
figure { margin: .8rem 0; max-width: 44rem; }
figure svg { width: 100%; height: auto; color: var(--ink); display: block; }
figcaption { color: var(--dim); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { color: var(--dim); font-weight: 600; }
.scores { width: auto; } .scores td, .scores th { white-space: nowrap; padding-right: 1.6rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.shaded { width: auto; font-size: .8rem; }
.shaded td, .shaded th { padding: .15rem .5rem; white-space: nowrap; }
.shaded td { background: color-mix(in srgb, #4477aa var(--part, 0%), var(--back)); border: 0; }
.facts-table td:first-child { color: var(--dim); width: 13rem; }
pre { background: var(--soft); padding: .7rem; border-radius: .4rem; white-space: pre-wrap; margin: .4rem 0;
  font: .85rem/1.45 ui-monospace, monospace; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
@media (max-width: 34rem) { body { padding: .8rem; } .facts-table td:first-child { width: 7rem; } }
"""


def text(value: object) -> str:
    """What others wrote as text of a page."""
    return html.escape(public(printable(value, keep="\n\t")))


def page(title: str, under: str, parts: Iterable[str]) -> str:
    """A whole page. title, under: plain text; parts: HTML made here."""
    head = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n"
    )
    body = "\n".join(part for part in parts if part)
    return f'{head}<h1>{text(title)}</h1>\n<p class="dim">{text(under)}</p>\n{body}\n</html>\n'


def section(heading: str, *parts: str) -> str:
    """A heading with what belongs to it; nothing where there is nothing."""
    inside = "\n".join(part for part in parts if part)
    return f"<h2>{text(heading)}</h2>\n{inside}" if inside else ""


def links(there: Mapping[str, str]) -> str:
    """Other pages beside this one: address -> words. `with_link` adds one later."""
    return f'<nav id="others">{"".join(_link(*each) for each in there.items())}</nav>'


def with_link(whole: str, address: str, words: str) -> str:
    """A page that has `links`, with this one among them; as it is where it has none, or this one already."""
    made = _link(address, words)
    return whole if made in whole else whole.replace("</nav>", f"{made}</nav>", 1)


def _link(address: str, words: str) -> str:
    return f'<a href="{text(urllib.parse.quote(address))}">{text(words)}</a> '


def paragraph(words: str) -> str:
    return f'<p class="dim">{text(words)}</p>'


def figures_row(facts: Mapping[str, str]) -> str:
    """The few numbers that matter, large: what -> how much."""
    cells = (f"<div><b>{text(value)}</b><span>{text(what)}</span></div>" for what, value in facts.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def facts_table(facts: Mapping[str, object]) -> str:
    rows = (f"<tr><td>{text(key)}</td><td>{text(value)}</td></tr>" for key, value in facts.items())
    return f'<div class="wide"><table class="facts-table">{"".join(rows)}</table></div>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """The first `words` columns are words, the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        made = (
            f"<{tag}{' class=number' if place >= words else ''}>{text(value)}</{tag}>"
            for place, value in enumerate(values)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f'<div class="wide"><table class="scores">{cells("th", headings)}{body}</table></div>'


def shaded(
    corner: str, headings: Sequence[str], rows: Mapping[str, Sequence[float | None]], most: float
) -> str:
    """Numbers on a colour that is the stronger the nearer they come to `most`; None is an empty cell."""

    def cell(value: float | None) -> str:
        if value is None:
            return "<td></td>"
        return f'<td class="number" style="--part:{SHADE * value / (most or 1):.0f}%">{value:.2g}</td>'

    head = "".join(f"<th>{text(heading)}</th>" for heading in [corner, *headings])
    body = "".join(
        f"<tr><th>{text(name)}</th>{''.join(map(cell, values))}</tr>" for name, values in rows.items()
    )
    return f'<div class="wide"><table class="shaded"><tr>{head}</tr>{body}</table></div>'


def preformatted(words: str) -> str:
    return f"<pre>{text(words)}</pre>"


def folded(summary: str, inside: str, kind: str = "") -> str:
    """Closed until it is asked for. kind: right, wrong or nothing; inside: HTML made here."""
    mark = {"right": "✓ ", "wrong": "✗ "}.get(kind, "")
    return f'<details><summary><span class="{kind}">{mark}</span>{text(summary)}</summary>{inside}</details>'


def picture(figure: Any, caption: str) -> str:
    """A figure as part of the page, its words and lines in the page's own colour."""
    _inked(figure)
    drawing = figures.as_svg(figure, caption)
    drawing = METADATA.sub("", drawing[drawing.index("<svg") :]).replace(INK, "currentColor")
    return f"<figure>{drawing}<figcaption>{text(caption)}</figcaption></figure>"


def _inked(figure: Any) -> None:
    """What matplotlib draws in black: axes, ticks, titles, legends."""
    from matplotlib.text import Text

    for words in figure.findobj(Text):
        if words.get_color() in ("black", "k", "#000000"):
            words.set_color(INK)
    for axis in figure.axes:
        for spine in axis.spines.values():
            spine.set_edgecolor(INK)
        axis.tick_params(which="both", color=INK)
        axis.title.set_color(INK)
        if legend := axis.get_legend():
            legend.get_frame().set_alpha(0)


def command() -> str:
    """The command that this process is, as it can be typed again."""
    first = Path(sys.argv[0]).name
    ours = first in ("neuroada", "__main__.py") and "neuroada" in sys.argv[0]
    words = ["neuroada", *sys.argv[1:]] if ours else [first, *sys.argv[1:]]
    return public(shlex.join(words))
