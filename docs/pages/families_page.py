"""docs/families.md from docs/results/: families.json (`make families`) and pictures_learnt.json
(`make pictures-learnt`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
FILE = DOCS / "results" / "families.json"
LEARNT = DOCS / "results" / "pictures_learnt.json"
COLUMNS = ("select", "equal, fp32", "equal, bf16", "train", "merge", "eval", "nf4", "packed")
KINDS = {
    "causal-lm": "Models that write",
    "seq2seq-lm": "Encoder-decoders",
    "image-text-to-text": "Models that read texts and pictures",
    "sequence-classification": "Classifiers of texts",
    "image-classification": "Classifiers of pictures",
}
INTRODUCTION = """\
# Model families

Written by `make families`, which makes a tiny model of each type from its config, with random weights,
saves it as transformers saves it, and runs the commands on it. Every cell comes from a run; what came out is
held against oracles that read nothing but the model as transformers loads it:

| column | what was done, and what had to be true |
|---|---|
| select | `neuroada select`: of every neuron of every target the K=2 inputs with the largest weights, \
experts included |
| equal, fp32 and bf16 | deltas attached and 0: the base's outputs to the last bit, with gradients and \
without; in fp32 every delta's gradient is that of a dense model |
| train | `neuroada train`, two steps: every delta moves; layers that get no gradient are named by the run |
| merge | `neuroada merge`: every tensor, and the outputs, are to the last bit those of the adapter on its \
base; what is no target is the base's |
| eval | `neuroada eval` of the adapter and of the merged folder: the same answers |
| nf4 | train and eval with `model.quantization: nf4`; of mixtures, whose experts stay in 16 bits, the rest |
| packed | train with `train.packing: true`; it is refused where rows would see each other |

A type without a row is not refused for that: nobody has looked. Those are named below each table.

"""
SEEN = """
## Does a model that writes about pictures learn to see?

Written by `make pictures-learnt`: tiny models with random weights, so that whatever they know in the end they
were taught by the run. Each is asked for the colour or the shape of what lies in a made picture
(`data.task: shapes_vqa`), and trains K={k} of each neuron's connections in `language`, `vision`,
`projector` and `lm_head` (a random head cannot be sure of anything) on {rows:,} rows, {epochs} times; it is
scored on {held} pictures that it never saw. Beside it stands what the most frequent answer to a question
gets, without a look at the picture.

| model | trained | steps | colour | most frequent | shape | most frequent | merged folder |
|---|---|---|---|---|---|---|---|
"""
NAMED = re.compile(r"^\w+For\w+: ")
DIFFERS = (
    (re.compile(r"by [\d.e+-]+ of their spread"), "by … of their spread"),
    (re.compile(r"rows of a \S+;"), "rows of a …;"),
    (re.compile(r"generate, not \S+;"), "generate, not …;"),
)


def page() -> str:
    found = json.loads(FILE.read_text(encoding="utf-8"))
    reasons: list[str] = []
    tables = [
        _table(kind, words, found["types"], reasons) + _unswept(kind, found) for kind, words in KINDS.items()
    ]
    types = {row["type"] for row in found["types"]}
    cells = [cell for row in found["types"] for cell in row["cells"].values()]
    wrong = sum(cell.startswith("wrong") for cell in cells)
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    summary = (
        f"{len(types)} types ({len(found['types'])} with their kinds), {len(cells)} cells: "
        f"{sum(cell == 'yes' for cell in cells)} yes, {len(cells) - wrong - cells.count('yes')} refused, "
        f"{wrong} wrong. 'the model': its own code fails without us, too. {versions}.\n"
    )
    notes = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    heading = "\n## What is refused, in a user's words\n\n"
    return INTRODUCTION + summary + "".join(tables) + heading + notes + "\n" + _seen()


def _seen() -> str:
    found = json.loads(LEARNT.read_text(encoding="utf-8"))
    about = found["about"]
    words = SEEN.format(k=about["k"], rows=about["rows"], epochs=about["epochs"], held=about["held out"])
    return words + "".join(_learnt(run) for run in found["runs"])


def _learnt(run: dict[str, Any]) -> str:
    shares = [
        f"{100 * run[what][asked]:.0f} %"
        for asked in ("colour", "shape")
        for what in ("right", "most frequent")
    ]
    trained = f"{run['trained']:,} of {run['parameters']:,}"
    same = "the same answers" if run["merged answers the same"] else "**other answers**"
    return f"| `{run['model']}` | {trained} | {run['steps']} | {' | '.join(shares)} | {same} |\n"


def _table(kind: str, words: str, rows: list[dict[str, Any]], reasons: list[str]) -> str:
    lines = ["", f"## {words}", "", f"| type | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for row in (row for row in rows if row["task"] == kind):
        cells = [_cell(row["cells"].get(column), reasons) for column in COLUMNS]
        name = f"`{row['type']}`" + (", with pictures" if row["pictures"] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _unswept(kind: str, found: dict[str, Any]) -> str:
    """The types without a row in a kind's table, folded."""
    missing, elsewhere = found["not swept"][kind], {row["type"] for row in found["types"]}
    here = sum(row["task"] == kind for row in found["types"])
    names = [f"<code>{name}</code>" for name in missing if name not in elsewhere]
    lines = [
        f"\n<details><summary>Not swept: {len(missing)} of the {here + len(missing)} types of this kind in "
        f"transformers {found['versions']['transformers']}</summary>\n",
        f"<p>{', '.join(names)}.</p>",
    ]
    if others := [f"<code>{name}</code>" for name in missing if name in elsewhere]:
        lines.append(f"<p>With a row under another heading: {', '.join(others)}.</p>")
    if kind == "sequence-classification":
        masked = ", ".join(f"<code>{name}</code>" for name in found["not swept"]["masked-lm"])
        lines.append(f"<p>Encoders that transformers has no classifier for, which are refused: {masked}.</p>")
    return "\n".join(lines) + "\n</details>\n"


def _cell(said: str | None, reasons: list[str]) -> str:
    """yes, what it is instead with the number of its reason, or – where an earlier step was refused."""
    if said is None or said == "yes":
        return said or "–"
    what, _, line = said.partition(": ")
    line = NAMED.sub("", line)
    for pattern, words in DIFFERS:
        line = pattern.sub(words, line)
    line = line.replace("<", "&lt;")
    if line not in reasons:
        reasons.append(line)
    return f"{what} ({reasons.index(line) + 1})"
