"""What is said of a run that failed, beyond what failed: what to change, and which checkpoint stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from neuroada_cli import files
from neuroada_cli.errors import NumericsError, PeerError, ResourceError, out_of_memory
from neuroada_cli.ranks.group import gone, has_gone
from neuroada_cli.recipe.schema import NEED_GRADIENTS
from neuroada_cli.training.plan import largest_step, predicted_memory
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.settings import dtype_of

Doing = Literal["choosing connections", "loading the model", "training"]


@contextmanager
def advised(checked: Checked, doing: Doing) -> Iterator[None]:
    """Inside, running out of memory becomes a ResourceError with the estimate and what to lower; errors of
    numbers and of memory name the checkpoint that can be relied on, if there is one.
    """
    try:
        yield
    except NumericsError as error:
        raise NumericsError(error.what, error.where, _joined(_kept(checked), error.fix)) from error
    except Exception as error:
        if has_gone(error) or type(error) is PeerError:
            raise PeerError(gone().what, fix=_joined(_kept(checked), "go on with --resume")) from error
        if not out_of_memory(error):
            raise
        size, fix = _of_training(checked) if doing == "training" else _of_weights(checked)
        raise ResourceError(f"out of memory in {doing}{size}", fix=_joined(_kept(checked), fix)) from error


def _joined(kept: str | None, fix: str | None) -> str | None:
    return "; ".join(part for part in (kept, fix) if part) or None


def _kept(checked: Checked) -> str | None:
    """The checkpoint that can be gone on from: each is complete from the moment that `last` names it."""
    last = checked.recipe.run_path / "last"
    if not last.is_symlink() or not (last / files.MANIFEST).is_file():
        return None
    return f"{os.readlink(last)} is intact"


def _of_training(checked: Checked) -> tuple[str, str]:
    """(what a step takes, as far as it is known; what to lower)."""
    train = checked.recipe.train
    micro = train.micro_batch_size or train.batch_size
    lower = [f"train.micro_batch_size (now {micro})"] if micro > 1 else []
    fix = f"lower {' or '.join([*lower, 'data.max_length'])}"
    if not train.gradient_checkpointing:
        fix += ", or set train.gradient_checkpointing: true"
    if _may_quantize(checked):
        fix += ", or set model.quantization: nf4"
    return _predicted(checked), fix


def _of_weights(checked: Checked) -> tuple[str, str]:
    """(what the weights take, which is known; what makes them smaller)."""
    model, ways = checked.recipe.model, []
    nbytes = checked.plan.total * dtype_of(checked.recipe).itemsize
    size = f": as {model.dtype} the weights take {nbytes / 1e9:.2f} GB" if model.quantization is None else ""
    if model.dtype == "fp32":
        ways.append("set model.dtype: bf16")
    if _may_quantize(checked):
        ways.append("set model.quantization: nf4")
    return size, ", or ".join([*ways, "choose a smaller model"])


def _may_quantize(checked: Checked) -> bool:
    """Whether the recipe would still be one (`recipe/schema.py` says what does not go together)."""
    recipe = checked.recipe
    gradients = recipe.select.criterion in NEED_GRADIENTS
    fits = checked.plan.facts.quantized and not gradients and recipe.train.reselect_every is None
    return fits and recipe.model.quantization is None


def _predicted(checked: Checked) -> str:
    """Only now, since it takes seconds that a run which fits need not spend."""
    recipe = checked.recipe
    try:
        found = predicted_memory(recipe, checked.plan, checked.rows, checked.base, checked.device)
    except Exception:  # there is little memory left, and no advice is worth another failure
        return ""
    if isinstance(found, str):
        return ""
    micro, longest = largest_step(recipe, checked.rows)
    return f": steps of {micro} x {longest} tokens take about {found.peak / 1e9:.2f} GB"
