"""Where a thought in front of an answer ends, in rows and in what models write."""

from __future__ import annotations

import re

# Between tags; or, as servers keep it whose template opens the thought, up to the closing tag alone. Such a
# tag in code, in quotes or before a comma is one that a text speaks of; behind an opening tag further on it
# ends no thought of the whole.
NAMES = "think|thinking|thought|reasoning"
OPENS, CLOSES = rf"(?:<(?:{NAMES})>|\[THINK\])", rf"(?:</(?:{NAMES})>|\[/THINK\])"
CODE = r"```.*?```|`[^`\n]*`"
SPOKEN_OF = rf"""(?:(?<=["'“‘«]){CLOSES}["'”’»]|{CLOSES}(?:[,;:?!)]|\.(?:\s|$)))"""
THOUGHT = re.compile(
    rf"(?:\s*(?:<(?P<tag>{NAMES})>|\[THINK\])(?P<within>.*?)(?(tag)</(?P=tag)>|\[/THINK\])"
    rf"|(?P<opened>(?>{CODE}|{SPOKEN_OF}|(?!{OPENS}).)*?)(?!{SPOKEN_OF}){CLOSES})\s*(?=\S)",
    re.S,
)
CLOSING = re.compile(CLOSES)
TAG_AT_END = re.compile(r"(?:<[^<>\s]+>|\[[^\[\]\s]+\])$")


def thought_before(content: str) -> tuple[str, str] | None:
    """(the thought with its tags and the space behind it, the thought alone) in front of a row's answer."""
    if CLOSING.search(content) is None:  # most rows; the whole pattern looks at every sign of a text
        return None
    found = THOUGHT.match(content)
    return found and (found[0], (found["within"] or found["opened"] or "").strip())


def without_thought(written: str, lead: str) -> str:
    """The answer behind a thought of a model's own, which ends like the one in the row; all of it where
    nothing ends so.

    lead  what stands in front of the row's answer, without space around it: the thought may be empty
    """
    tag = TAG_AT_END.search(lead)
    mark = tag[0] if tag else lead.split()[-1]
    if mark not in written:
        return written
    end = re.compile(rf"(?>{CODE}|{SPOKEN_OF}|.)*?(?!{SPOKEN_OF}){re.escape(mark)}", re.S).match(written)
    return (written[end.end() :] if end else written.partition(mark)[2]) or written
