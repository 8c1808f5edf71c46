"""How far a merged model is from the one that was trained, measured on real rows.

Over a quantised base the two differ: training saw the dequantised weights, the merged folder holds the
original 16-bit ones (or, `--onto dequantized`, exactly what training saw).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.data import sources
from neuroada_cli.data.batch import Encoded, collate
from neuroada_cli.data.inputs import encode_for, features_for, padding_for
from neuroada_cli.errors import UserError
from neuroada_cli.loop.loss import inputs_of
from neuroada_cli.tasks.registry import get_task, recipe_task
from neuroada_cli.tasks.task import Task, examples_of

ROWS, MAX_LENGTH = 16, 256


def measure(
    target: adapted.Target, merged: Path, base: str, device: str = "cpu", trust_remote_code: bool = False
) -> dict[str, Any]:
    """Compare logits of the adapter on its quantised base with those of the merged folder.

    Returns {rows, source, positions, mean_difference, largest_difference, logit_spread, same_first_choice,
    kind}: positions are compared; differences are absolute, spread is the standard deviation of the trained
    logits, kind the task's. Raises ModelError also where the base was written to meanwhile.
    """
    trained = adapted.load(target, device=device, base=base, trust_remote_code=trust_remote_code)
    assert trained.adapter is not None
    rows, source, kind = _rows(target, trained.adapter, trained.reader)
    before = _logits(trained.model, rows, trained.reader, device)
    trained.refuse_written_to()
    dtype = next(p.dtype for p in trained.model.parameters() if p.is_floating_point())
    task, labels = trained.adapter.task, trained.adapter.settings.get("num_labels")
    reader = trained.reader
    del trained
    loaded = hub.load_model(merged, task, dtype, device, labels, trust_remote_code=trust_remote_code)
    after = _logits(loaded.model.eval(), rows, reader, device)
    difference = (before - after).abs()
    return {
        "rows": len(rows),
        "source": source,
        "positions": len(before),
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
        "logit_spread": float(before.std()),
        "same_first_choice": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
        "kind": kind,
    }


def _rows(target: adapted.Target, adapter: Adapter, reader: hub.Reader) -> tuple[list[Encoded], str, str]:
    """Rows of the task it was trained on, if they are here or in a known set; else what the package makes."""
    task, source, split = get_task("due_dates"), "due_dates", "validation"
    try:
        recipe = adapted.recipe_of(target)
        if recipe is not None and (own := recipe_task(recipe.data)).family != "instruct":
            wanted = recipe.data.validation or recipe.data.train or own.sets.get("train")
            if wanted is not None:
                sources.refuse_foreign(wanted, "train", recipe.data.data_dir)
                rows = sources.load_rows(wanted, "train", recipe.data.data_dir, recipe.data.field)
                return _encoded(own, rows, reader, recipe.data.protocol), rows.label, own.kind
    except UserError:
        if adapter.task not in ("causal-lm", "seq2seq-lm"):
            raise
    rows = sources.load_rows(source, split)
    return _encoded(task, rows, reader, "reft"), rows.label, task.kind


def _encoded(task: Task, rows: sources.Rows, reader: hub.Reader, protocol: str) -> list[Encoded]:
    examples = examples_of(task, rows.rows[:ROWS], protocol, rows.source)
    return [*encode_for(reader, examples, MAX_LENGTH, task.kind, published=task.published)[0]]


@torch.inference_mode()
def _logits(model: Any, rows: list[Encoded], reader: hub.Reader, device: str) -> Tensor:
    """fp32 logits [positions, vocabulary or classes] of every real token (of every row for a classifier)."""
    found = []
    for row in rows:  # one by one: padding would be one more difference
        batch = collate([row], padding_for(reader), features_for(reader)).to(device)
        output = model(**inputs_of(model, batch))
        found.append(output.logits.float().reshape(-1, output.logits.shape[-1]).cpu())
    return torch.cat(found)
