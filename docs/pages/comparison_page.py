"""docs/comparison.md: written by hand, but for figures between two marks, which come from a result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import performance_page

PAGE = Path(__file__).parents[1] / "comparison.md"
BEGIN = "<!-- from benchmarks/results/step_cpu_smollm2.json, by `make docs` -->"
END = "<!-- end of figures -->"
RESULT = "step_cpu_smollm2"
# method -> who offers it
OFFERED = {
    "lora": "LoRA, rank 8, by PEFT",
    "mask": "dense gradients under a mask, as sparse tuning is usually written",
    "scatter": "the same connections, with a dense sum in every forward",
    "shira": "SHIRA, by PEFT, at its smallest size",
    "supertuning": "SUPERTUNING, by PEFT, with as many weights as K=20",
}


def page() -> str:
    """The page as it stands, its figures anew. Raises ValueError where the marks are gone."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has lost its marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{_figures()}\n{END}{after}"


def _figures() -> str:
    rows: list[dict[str, Any]] = performance_page.load(RESULT)
    shown = [row for row in rows if row["method"] == "neuroada" or row["method"] in OFFERED]
    cells = [
        [
            f"**neuroada K={row['k']}**" if row["method"] == "neuroada" else OFFERED[row["method"]],
            f"{row['ratio_to_floor']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{100 * row['trainable_share']:.2f} %",
        ]
        for row in shown
    ]
    headings = ["method", "step over the frozen floor", "peak memory", "trained"]
    settings, machine = rows[0]["settings"], rows[0]["machine"]
    said = (
        f"SmolLM2-135M's shape, {settings['dtype']}, batches of {settings['batch']} rows of "
        f"{settings['sequence']} tokens, all in one run on {machine['cores']} CPU cores, PEFT "
        f"{machine['versions']['peft']}. The floor is a forward and the gradients of the inputs, "
        "with nothing to train."
    )
    return f"{said}\n\n{performance_page.markdown(headings, cells)}"
