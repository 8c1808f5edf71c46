"""How several processes share the work: each with the whole model, or each with its own rows of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from neuroada_cli import memory
from neuroada_cli.data.batch import Encoded
from neuroada_cli.delta.targets import targets_of
from neuroada_cli.errors import RecipeError
from neuroada_cli.machine.memory import available_memory
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.criteria import DATA_CRITERIA
from neuroada_cli.training.plan import connections, largest_step, not_over_quantized, packed, predicted_step
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.settings import dtype_of

TORCH = torch.__version__
SHARDS_FROM = "2.12"  # the first torch whose FSDP2 takes parameters that can have no gradient
ROOM = 0.9  # of a device's memory that a step may be predicted to take: allocators round, others need some


def decide(checked: Checked, ranks: Ranks) -> tuple[Ranks, str]:
    """(the ranks, sharded or not; why, in a few words). All ranks call it, and agree.

    `auto` replicates where a step is predicted to fit into each process's memory: then only gradients travel.
    Raises RecipeError for a recipe that cannot be sharded and is to be, and for whole models of which some
    would have no row to work on.
    """
    if ranks.alone:
        return ranks, ""
    decided, why = _way(checked, ranks)
    if not decided.sharded and (idle := without_a_row(checked.recipe, ranks.size)) is not None:
        raise RecipeError(idle, fix=f"choose {ranks.size} or more, or start fewer")
    return decided, why


def without_a_row(recipe: Recipe, processes: int) -> str | None:
    """What to say of a step with fewer rows than processes."""
    if recipe.train.batch_size >= processes:
        return None
    return f"train.batch_size={recipe.train.batch_size} has not a row for each of {processes} processes"


def _way(checked: Checked, ranks: Ranks) -> tuple[Ranks, str]:
    wanted, problem = checked.recipe.train.parallel, why_not_sharded(checked)
    if wanted == "shard" and problem is not None:
        raise RecipeError(f"train.parallel=shard {problem}", fix="set train.parallel: replicate")
    if wanted != "auto":
        return dataclasses.replace(ranks, sharded=wanted == "shard"), f"train.parallel: {wanted}"
    room = min(ranks.collected(memory_of(checked.device, ranks)))
    peak = ranks.shared(_peak(checked, ranks) if ranks.first else None)
    if peak is None:
        return ranks, "its memory is not predicted"
    needs = f"a step is predicted to take {peak / 1e9:.2f} GB of {room / 1e9:.2f} GB"
    if peak <= ROOM * room:
        return ranks, needs
    if problem is not None:
        return ranks, f"{needs}, but shard {problem}"
    return dataclasses.replace(ranks, sharded=True), needs


def _peak(checked: Checked, ranks: Ranks) -> int | None:
    found = of_processes(checked, ranks.size)
    return None if isinstance(found, str) else found["replicate"].peak


def of_processes(checked: Checked, processes: int) -> dict[str, memory.ProcessBytes] | str:
    """Way to share the work -> the largest step of each of so many processes, without reading a weight; only
    the ways that the recipe can go. Or why it is not predicted.
    """
    recipe, base, plan = checked.recipe, checked.base, checked.plan
    quantization = recipe.model.quantization
    if quantization is not None and plan.facts.shards is None:
        return not_over_quantized(recipe)
    step = predicted_step(recipe, plan, checked.rows, base, checked.device, processes)
    if isinstance(step, str):
        return step
    found = {}
    if quantization is None:
        found["replicate"] = memory.of_replica(step, processes)
    ways = [way for way in ("replicate", "shard") if way not in found]
    if why_not_sharded(checked) is not None:
        ways.remove("shard")
    for way in ways:
        found[way] = memory.of_process(
            base.skeleton,
            connections(recipe, plan),
            step,
            processes,
            way == "shard",
            dtype_of(recipe),
            packed(recipe, base),
            -(-recipe.train.batch_size // (processes * largest_step(recipe, checked.rows, processes)[0])),
        )
    return found


def memory_of(device: str, ranks: Ranks) -> int:
    """Bytes that one process may take: its GPU's, or its share of what the machine has available."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory() // ranks.local_size


def why_not_sharded(checked: Checked) -> str | None:
    """What in a recipe, in the layers that it names or in this torch needs the whole model in one process."""
    from neuroada_cli.methods import METHODS

    recipe, train = checked.recipe, checked.recipe.train
    if TORCH < SHARDS_FROM:  # as versions, not as texts
        return f"needs torch {SHARDS_FROM} or later, and this is {TORCH}"
    if METHODS[train.method].shards is None:
        return f"does not go with train.method={train.method}"
    if train.reselect_every is not None:
        return "does not go with train.reselect_every"
    if train.share_prefix:
        return "does not go with train.share_prefix"
    if train.train_bias:
        return "does not go with train.train_bias"
    if recipe.select.criterion in DATA_CRITERIA and recipe.select.file is None:
        return f"does not go with select.criterion={recipe.select.criterion}, which needs the whole model"
    data = checked.rows.data
    if data.features is not None and (mixed(data.train) or mixed(data.validation)):
        return "does not go with rows of which only some have pictures: all processes have to look, or none"
    layouts = {name: target.layout for name, target in targets_of(checked.base.graph).items()}
    if (name := next((n for n in packed(recipe, checked.base) if layouts[n].transposed), None)) is not None:
        return f"does not go with model.quantization={recipe.model.quantization}: {name} is stored sideways"
    experts = (name for name, target in checked.choice.targets.items() if target.layout.experts is not None)
    if (name := next(experts, None)) is not None:
        return f"does not go with {name}, one tensor of all experts' matrices; choose other select.targets"
    return None


def mixed(rows: Sequence[Encoded]) -> bool:
    """Whether only some rows have pictures: a process without one would leave out a part of the model that
    the others put together with it, which ends in a killed process or a wait without end.
    """
    return len({bool(row.pictures) for row in rows}) > 1
