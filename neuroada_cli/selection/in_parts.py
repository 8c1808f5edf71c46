"""The same selection, chosen by several processes: each reads and looks at its own part of the weights.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.file import Selection
from neuroada_cli.selection.from_files import as_selection, indices_from_files, stored_weights

ROW_BY_ROW = ("magnitude", "reverse")  # a neuron's connections depend on nothing but its own weights
BLOCK = 64  # weights that bitsandbytes gives one scale: a row of whole blocks is quantised by itself


def select_in_parts(
    base: hub.Base, choice: Choice, quantization: str | None, dtype: torch.dtype, ranks: Ranks
) -> Selection:
    """What `select_from_files` chooses, bit for bit, on every rank.

    Each rank takes its share of every layer's neurons where rows are looked at one by one; whole layers in
    turns where a criterion draws from one stream or looks at the whole matrix. What competes across layers is
    left to rank 0. Raises as `select_from_files` does, on all ranks.
    """
    choice.check()
    rows, owner = _parts(choice, quantization, ranks)
    found = ranks.all_do(
        lambda: indices_from_files(base, choice, quantization=quantization, dtype=dtype, rows=rows)
    )
    stored_k = choice.stored_k
    if stored_k is None:
        stored_k = ranks.shared({name: index_OK.shape[1] for name, index_OK in found.items()})
    indices = {}
    for name, k in stored_k.items():
        outputs = choice.shapes[name][0]
        here = _widened(found[name], k) if name in found else torch.empty(0, k, dtype=torch.int32)
        if name in owner:
            indices[name] = ranks.from_rank(owner[name], here, (outputs, k))
        else:
            indices[name] = ranks.joined(here, outputs)
    base.read_in_turns(stored_weights(base, choice.targets), ranks)
    return as_selection(indices, choice, base.fingerprint_as_read(), base.graph)


def told(selection: Selection | None, ranks: Ranks) -> Selection:
    """The selection that rank 0 made, on all of them."""
    about = ranks.shared(
        None
        if selection is None
        else {
            "k": selection.k,
            "criterion": selection.criterion,
            "fingerprint": selection.fingerprint,
            "tied": selection.tied,
            "rule": selection.rule,
            "shapes": {name: list(index_OK.shape) for name, index_OK in selection.indices.items()},
        }
    )
    nothing = torch.empty(0, dtype=torch.int32)
    indices = {
        name: ranks.from_rank(0, selection.indices[name] if selection else nothing, shape)
        for name, shape in about.pop("shapes").items()
    }
    return Selection(indices, **about)


def _parts(choice: Choice, quantization: str | None, ranks: Ranks) -> tuple[dict[str, slice], dict[str, int]]:
    """(layer -> this rank's neurons, layer -> the one rank that looks at all of it)."""
    rows, owner = {}, {}
    for number, (name, target) in enumerate(choice.targets.items()):
        outputs, inputs = choice.shapes[name]
        whole_blocks = quantization in (None, "int8") or inputs % BLOCK == 0
        in_rows = choice.criterion in ROW_BY_ROW and not choice.competes and whole_blocks
        if in_rows and not target.layout.transposed:
            rows[name] = ranks.rows(outputs)
            continue
        owner[name] = 0 if choice.competes else number % ranks.size
        if owner[name] == ranks.number:
            rows[name] = slice(None)
    return {name: part for name, part in rows.items() if part.start != part.stop or part.stop is None}, owner


def _widened(index_OK: Tensor, k: int) -> Tensor:
    """With as many columns as the layer's longest row has, of which this part may have none."""
    return torch.nn.functional.pad(index_OK, (0, k - index_OK.shape[1]), value=-1)
