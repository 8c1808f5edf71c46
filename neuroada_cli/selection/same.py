"""Whether a stored selection is what a recipe would choose.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from neuroada_cli.delta.index import size
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.file import Selection

ROWS = "training rows"  # of a rule: their hash


def what_differs(selection: Selection, choice: Choice, rule: Mapping[str, Any]) -> str | None:
    """The first thing in which a selection is not what `choice` under `rule` would be, said of the selection;
    None where nothing is known to differ. No weight is read, so what only weights tell is not compared, nor
    what an older version did not store.

    rule  as `training.choose.rule_of` makes it
    Raises RecipeError for a choice that does not fit the layers.
    """
    held, names = selection.connections, set(choice.targets)
    wanted, fits = choice.connections, choice.fewest <= held <= choice.connections
    if choice.spread.tile is not None:  # layers without a tile are left out
        names &= set(selection.indices)
    if not fits or selection.criterion != choice.label or set(selection.indices) != names:
        return (
            f"was made with k={selection.k}, {selection.criterion} for {len(selection.indices)} layers "
            f"({held:,} connections); the recipe says k={choice.spread.k}, {choice.label} for "
            f"{len(choice.targets)} ({wanted:,})"
        )
    return _of_counts(selection, choice) or _of_rules(selection.rule or {}, rule)


def _of_counts(selection: Selection, choice: Choice) -> str | None:
    """Who gets how many: neuron by neuron, or together where they compete for them."""
    if choice.spread.tile is not None:
        return None
    members: dict[int, list[str]] = {}
    pools = choice.pools()
    for name in choice.targets:
        members.setdefault(id(pools.get(name, name)), []).append(name)
    for names in members.values():
        held = sum(size(selection.indices[name]) for name in names)
        wanted = sum(int(choice.counts[name].sum()) for name in names)
        if held != wanted:
            also = f" and the {len(names) - 1} layers with it" if len(names) > 1 else ""
            return f"gives {names[0]}{also} {held:,} connections, the recipe {wanted:,}"
    for name, count_O in choice.counts.items() if not pools else ():
        if not torch.equal((selection.indices[name] >= 0).sum(dim=1), count_O):
            return f"gives the connections of {name} to other neurons than the recipe"
    return None


def _of_rules(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    for key, value in wanted.items():
        if key not in held or held[key] == value:
            continue
        if key == ROWS:  # a hash, which tells nobody anything
            return "was chosen by other training rows than the recipe's"
        before, now = ("null" if each is None else each for each in (held[key], value))
        return f"was chosen with {key}={before}; the recipe has {now}"
    return None
