"""Checks before a run: everything that can be known without reading a weight.

K = chosen inputs per neuron
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from neuroada_cli import hub
from neuroada_cli.delta.index import size
from neuroada_cli.delta.layout import layer_shape
from neuroada_cli.delta.model import is_linear
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.methods import ADAPTERS, BY_SELECTION, BitFit, check_method
from neuroada_cli.methods.loreft import LoReft, blocks_of, loreft_parameters
from neuroada_cli.methods.peft import lora_parameters, require_peft
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.choice import connections, label, pools, spread_of, target_layers, trainable_count
from neuroada_cli.selection.file import Selection, check_base, check_shapes, read_selection
from neuroada_cli.tasks.registry import get_protocol, get_task, scored_tasks
from neuroada_cli.tasks.task import Task
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training.plan import Plan, check_positions
from neuroada_cli.training.rows import PreparedRows, prepare
from neuroada_cli.training.settings import loop_settings


@dataclass(frozen=True)
class Checked:
    """Everything that is known before a weight is read. given is a finished selection, if there is one."""

    recipe: Recipe
    task: Task
    folder: Path
    tokenizer: Any
    skeleton: nn.Module
    targets: dict[str, nn.Module]
    rows: PreparedRows
    given: Selection | None
    device: str
    plan: Plan


def check(recipe: Recipe, overwrite: bool) -> Checked:
    """Everything that can be known without reading weights, cheap things first.

    overwrite  a selection of a former run in the run folder is going to be replaced, so it is not used
    Raises RecipeError, DataError, ModelError, ResourceError.
    """
    device = hub.choose_device(recipe.device)
    task = get_task(recipe.data.task)
    get_protocol(recipe.data.protocol)
    if recipe.train.packing and task.kind != "generation":
        raise RecipeError(f"train.packing is for tasks that generate, not {task.name}", fix="remove it")
    check_method(recipe.train.method)
    model = recipe.model
    folder = hub.resolve_model(model.path, model.revision, model.trust_remote_code)
    tokenizer = hub.load_tokenizer(folder, model.trust_remote_code)
    scored = scored_tasks(recipe.eval.tasks, recipe.data.task)
    rows = prepare(recipe.data, task, tokenizer, recipe.seed, scored)
    if recipe.train.early_stop is not None and not rows.data.validation:
        raise RecipeError("train.early_stop needs validation rows", fix="set data.validation_rows")
    skeleton = hub.skeleton(folder, task.model_task, task.num_labels, model.trust_remote_code)
    longest = max(rows.train_report.longest, rows.validation_report.longest if rows.validation_report else 0)
    check_positions(skeleton, longest)
    _check_tokens(skeleton, rows, str(folder))
    targets = _targets(recipe, folder, skeleton)
    given = _given_selection(recipe, folder, skeleton, targets, overwrite)
    if given is not None and recipe.select.file is not None:  # a named file is the last word
        targets = {name: skeleton.get_submodule(name) for name in given.indices}
        section = recipe.select.model_copy(update={"k": given.k, "criterion": given.criterion})
        recipe = recipe.model_copy(update={"select": section})
    total = hub.total_parameters(folder)
    trainable = _trainable(recipe, skeleton, targets, total, str(folder), given)
    steps = loop_settings(recipe).total_steps(len(rows.data.train))
    plan = Plan(trainable, total, steps, _stored_k(recipe, targets, given))
    return Checked(recipe, task, folder, tokenizer, skeleton, targets, rows, given, device, plan)


def _check_tokens(skeleton: nn.Module, rows: PreparedRows, where: str) -> None:
    """Raises ModelError for a token that the model has no embedding for: the tokenizer is another model's."""
    known = int(skeleton.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    for row in (*rows.data.train, *rows.data.validation):
        if (highest := max(row.input_ids)) >= known:
            raise ModelError(
                f"the tokenizer gives row {row.row} token {highest}, but the model has {known} embeddings",
                where,
                "put the model's own tokenizer there",
            )
    if rows.data.kind == "generation" and rows.data.pad_id >= known:
        raise ModelError(
            f"the tokenizer pads with token {rows.data.pad_id}, but the model has {known} embeddings",
            where,
            "set its pad_token to a token of the model",
        )


def _trainable(
    recipe: Recipe,
    skeleton: nn.Module,
    targets: dict[str, nn.Module],
    total: int,
    where: str,
    given: Selection | None,
) -> int:
    """Without a fresh head, which is known only once the model is loaded."""
    method = recipe.train.method
    if method in BY_SELECTION and given is not None:
        return sum(size(index_OK) for index_OK in given.indices.values())
    if method in BY_SELECTION:
        return trainable_count(targets, spread_of(recipe.select), recipe.seed)
    if method == LoReft.name:
        width = skeleton.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
        return loreft_parameters(recipe.peer.rank if recipe.peer else 8, width, len(blocks_of(targets)))
    if method in ADAPTERS:
        require_peft(method)
        shapes = [layer_shape(module) for module in targets.values()]
        return lora_parameters(method, recipe.peer.rank if recipe.peer else 8, shapes)
    if method != "bitfit":
        return total if method == "full" else 0
    parameters = dict(skeleton.named_parameters())
    try:
        return sum(parameters[name].numel() for name in BitFit().trained(skeleton, ()))
    except ValueError as error:
        raise RecipeError(f"{where} {error}", "train.method=bitfit", "choose another method") from None


def _stored_k(
    recipe: Recipe, targets: dict[str, nn.Module], given: Selection | None
) -> dict[str, int] | None:
    """`Plan.stored_k`: of the selection, if there is one, else of what every neuron gets.

    Where weights compete across neurons, rows differ as the weights do.
    """
    if recipe.train.method not in BY_SELECTION:
        return None
    if given is not None:
        return {name: index_OK.shape[1] for name, index_OK in given.indices.items()}
    spread = spread_of(recipe.select)
    count_by_layer = connections(targets, spread, recipe.seed)
    if pools(spread, count_by_layer):
        return None
    return {name: max(1, int(count_O.max())) for name, count_O in count_by_layer.items()}


def _targets(recipe: Recipe, folder: Path, skeleton: nn.Module) -> dict[str, nn.Module]:
    section = recipe.select
    targets = target_layers(
        skeleton, hub.open_weights(folder), section.targets, section.exclude, section.layers
    )
    if section.file is None:
        connections(targets, spread_of(section), recipe.seed)
    return targets


def _given_selection(
    recipe: Recipe, folder: Path, skeleton: nn.Module, targets: dict[str, nn.Module], overwrite: bool
) -> Selection | None:
    """`select.file`, or what `neuroada select` left in the run folder; it has to fit base and recipe."""
    own = recipe.run_path / run_folder.SELECTION
    replaced = overwrite and run_folder.holds_run(recipe.run_path)
    if recipe.select.file is not None:
        file = Path(recipe.select.file)
    elif own.is_file() and not replaced:
        file = own
    else:
        return None
    selection = read_selection(file)
    check_base(selection.fingerprint, folder)
    linear = {name: module for name, module in skeleton.named_modules() if is_linear(module)}
    shapes = {name: layer_shape(module) for name, module in linear.items()}
    check_shapes(selection, shapes, str(file))
    spread = spread_of(recipe.select)
    count = trainable_count(targets, spread, recipe.seed) if file == own else 0
    found = sum(size(index_OK) for index_OK in selection.indices.values())
    names = set(targets)
    if spread.tile is not None:  # tiles at the edges are smaller, and layers without one are left out
        count, names = found, names & set(selection.indices)
    wanted = (count, label(recipe.select.criterion, spread), names)
    if file == own and (found, selection.criterion, set(selection.indices)) != wanted:
        raise RecipeError(
            f"was made with k={selection.k}, {selection.criterion} for {len(selection.indices)} layers "
            f"({found:,} connections); the recipe says k={recipe.select.k}, {wanted[1]} for {len(targets)} "
            f"({count:,})",
            str(file),
            "remove it, or name it with --selection",
        )
    return selection
