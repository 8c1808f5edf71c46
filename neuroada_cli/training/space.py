"""Room on the disk for what a run is going to write, asked for before the model loads.

n = trained values
"""

from __future__ import annotations

import os
from pathlib import Path

from neuroada_cli import files
from neuroada_cli.adapter.find import checkpoints
from neuroada_cli.files.folders import files_beneath
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.settings import dtype_of

SMALL_BYTES = 64 << 10  # of a checkpoint beside tensors and tokenizer: random states, recipe, card, manifest
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "chat_template*")


def require(checked: Checked) -> None:
    """Raises ResourceError naming the run's folder and the bytes that it lacks.

    Beside the newest checkpoints that are kept there may be the best one and the one that is being written.
    What a former run or an earlier part of this one takes is counted as room: it makes way.
    """
    recipe = checked.recipe
    copies = min(recipe.train.keep + 2, checked.plan.steps)
    there = sum(
        about.st_size
        for _, checkpoint in checkpoints(recipe.run_path)
        for _, about in files_beneath(checkpoint)
    )
    files.require_space(recipe.run_path, max(0, copies * checkpoint_bytes(checked) - there))


def checkpoint_bytes(checked: Checked) -> int:
    """One checkpoint: what was learnt, where it is, and AdamW's two moments. A fresh head is not counted."""
    return _tensor_bytes(checked) + _tokenizer_bytes(checked.base.folder) + SMALL_BYTES


def _tensor_bytes(checked: Checked) -> int:
    """Value and index of every connection, whatever trains, and what the method keeps beside them."""
    recipe, plan = checked.recipe, checked.plan
    weight = dtype_of(recipe).itemsize
    delta = 4 if recipe.train.delta_dtype == "fp32" else 2
    return plan.sizes.chosen * (4 + 4) + plan.facts.moments(plan.trainable, plan.sizes, weight, delta)


def _tokenizer_bytes(folder: Path) -> int:
    found = {file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if os.path.isfile(file)}
    return sum(file.stat().st_size for file in found)
