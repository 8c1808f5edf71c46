"""Checks before a run: everything that can be known without reading a weight.

K = chosen inputs per neuron
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from neuroada_cli import hub
from neuroada_cli.adapter.folder import AdapterFolder
from neuroada_cli.adapter.forgetting import general_text
from neuroada_cli.delta.targets import added_apart, shapes_of, target_of, targets_of
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.files.shards import refuse_bare_index
from neuroada_cli.hub.embeddings import known_tokens, refuse_unknown
from neuroada_cli.hub.outline import is_outline, resolve_outline
from neuroada_cli.methods import facts_of
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.choice import Choice, choice_of
from neuroada_cli.selection.file import Selection, check_base, check_shapes, read_selection
from neuroada_cli.selection.same import what_differs
from neuroada_cli.tasks.chat_template import use_template
from neuroada_cli.tasks.classes import OWN
from neuroada_cli.tasks.loss_mask import learns_prompt
from neuroada_cli.tasks.registry import get_protocol, recipe_task, scored_tasks
from neuroada_cli.tasks.task import Task
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import trackers
from neuroada_cli.training.choose import rule_of
from neuroada_cli.training.plan import Plan, make_plan
from neuroada_cli.training.rows import PreparedRows, prepare
from neuroada_cli.training.settings import with_own_dtype
from neuroada_cli.training.starting import started_from


@dataclass(frozen=True)
class Checked:
    """Everything that is known before a weight is read. given is a finished selection, if there is one; start
    the adapter whose values the run begins with; unused: what of the recipe does not count beside given.
    """

    recipe: Recipe
    task: Task
    base: hub.Base
    reader: hub.Reader
    choice: Choice
    rows: PreparedRows
    given: Selection | None
    device: str
    plan: Plan
    start: AdapterFolder | None = None
    unused: str | None = None


def check(
    recipe: Recipe,
    overwrite: bool,
    ranks: Ranks = ALONE,
    processes: int = 1,
    console: Console | None = None,
    outline: bool = False,
) -> Checked:
    """Everything that can be known without reading weights, cheap things first.

    overwrite  a selection of a former run in the run folder is going to be replaced, so it is not used
    ranks      the processes that work on this together: a GPU each
    processes  that are going to train together, as many or more
    console    where is shown how far it is with many rows
    outline    no weight is going to be read: of a hub model that is not here only headers are fetched
    Raises RecipeError, DataError, ModelError, ResourceError.
    """
    _check_processes(recipe, max(processes, ranks.size))
    device = hub.choose_device(recipe.device, None if ranks.alone else ranks.local)
    task = recipe_task(recipe.data)
    if task.name == OWN and not recipe.data.labels:  # found in the rows: kept, so that `eval` knows them
        data = recipe.data.model_copy(update={"labels": list(task.labels)})
        recipe = recipe.model_copy(update={"data": data})
    get_protocol(recipe.data.protocol)
    if recipe.train.packing and task.kind != "generation":
        raise RecipeError(f"train.packing is for tasks that generate, not {task.name}", fix="remove it")
    facts_of(recipe.train.method).require()
    trackers.require(recipe.train.report_to)
    model = recipe.model
    resolve = resolve_outline if outline else hub.resolve_model
    folder = resolve(model.path, model.revision, model.trust_remote_code)
    refuse_bare_index(folder)
    model_task = hub.model_task(folder, task.work, model.trust_remote_code)
    _check_kind(recipe, task, model_task, str(folder))
    reader = hub.load_reader(folder, model_task, model.trust_remote_code, task.pictures)
    use_template(reader.tokenizer, recipe.data)
    scored = scored_tasks(recipe.eval.tasks, recipe.data.task)
    base = hub.open_base(folder, model_task, task.num_labels, model.trust_remote_code, model.attention)
    recipe, limit = with_own_dtype(recipe, base), base.positions
    rows = prepare(recipe.data, task, reader, recipe.seed, scored, limit, console)
    if recipe.eval.forgetting is not None:  # found missing after hours of training, it would cost them
        general_text(recipe.eval.forgetting, recipe.data.data_dir, recipe.eval.limit)
    known = {"date": rows.day, "format": rows.form}  # `generate` asks in the form that was trained
    known = {key: value for key, value in known.items() if value is not None}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=known)})
    if recipe.train.early_stop is not None and not rows.data.validation:
        raise RecipeError("train.early_stop needs validation rows", fix="set data.validation_rows")
    reports = [report for report in (rows.train_report, rows.validation_report) if report is not None]
    longest, answer = (max(getattr(r, name) for r in reports) for name in ("longest", "longest_answer"))
    if limit is not None and longest > limit:
        raise RecipeError(
            f"a row has {longest} tokens, but the model takes {limit}",
            fix=f"set data.max_length: {limit}, or data.too_long: drop (or cut)",
        )
    learnt = answer - 1  # the decoder is not given the last token
    if base.answer_positions is not None and learnt > base.answer_positions:
        raise RecipeError(
            f"an answer has {learnt} tokens, but the model's decoder takes {base.answer_positions}",
            fix=f"set data.max_length: {base.answer_positions}, or leave out rows with longer answers",
        )
    _check_tokens(base.graph, rows, str(folder))
    choice = choice_of(recipe.select, base, recipe.seed)
    if recipe.select.file is None:
        choice.check()
    start = started_from(recipe, base)
    seen = rows.hashes["train tokens"]
    given = start[1] if start else _given_selection(recipe, base, choice, overwrite, seen)
    unused = None
    if given is not None and (start or recipe.select.file is not None):  # what is named is the last word
        unused = _unused(recipe, choice, given, rule_of(recipe, choice, seen))
        targets = {name: target_of(base.graph, name) for name in given.indices}
        choice = dataclasses.replace(choice, targets=targets)
        section = recipe.select.model_copy(update={"k": given.k, "criterion": given.criterion})
        recipe = recipe.model_copy(update={"select": section})
    _check_layers(recipe, choice, base.graph)
    plan = make_plan(recipe, base, choice, given, rows)
    source = start[0] if start else None
    return Checked(recipe, task, base, reader, choice, rows, given, device, plan, source, unused)


def _check_kind(recipe: Recipe, task: Task, model_task: hub.ModelTask, where: str) -> None:
    """Raises RecipeError for settings that do not go with this kind of model."""
    method = recipe.train.method
    why = facts_of(method).refuses.get(model_task)
    if why is not None:
        raise RecipeError(f"train.method={method} {why}", where, "choose another method")
    if recipe.train.packing and model_task not in ("causal-lm", *hub.CLASSIFIERS):
        raise RecipeError(
            f"train.packing lays plain texts behind each other, not rows of a {model_task}",
            fix="remove it",
        )
    if recipe.eval.forgetting is not None and model_task in hub.CLASSIFIERS:
        raise RecipeError(
            f"eval.forgetting is a loss on text, which a model for {model_task} has not", fix="remove it"
        )
    if recipe.train.share_prefix and model_task != "causal-lm":
        raise RecipeError(
            f"train.share_prefix is for models that write texts, not for a {model_task}", fix="remove it"
        )
    if model_task == "seq2seq-lm" and learns_prompt(recipe.data, task, get_protocol(recipe.data.protocol)):
        own = recipe.data.learn == "all"
        said = "data.learn=all" if own else f"data.protocol={recipe.data.protocol}"
        raise RecipeError(
            f"{said} learns the prompt, which an encoder-decoder cannot",
            fix="choose last" if own else "choose reft",
        )


def _check_layers(recipe: Recipe, choice: Choice, graph: nn.Module) -> None:
    """Raises RecipeError for a method or a criterion that some of the targets are not made for."""
    method, criterion = recipe.train.method, recipe.select.criterion
    apart = added_apart(graph, choice.targets) if facts_of(method).merged_layers else {}
    if apart:
        name, other = next(iter(apart.items()))
        raise RecipeError(
            f"train.method={method} would change {name} and not {other}, whose weight is the same one: no "
            "merged model could hold both",
            fix=f"set select.exclude: [{', '.join(apart)}], or train.method: neuroada (trains it as one)",
        )
    experts = [name for name, target in choice.targets.items() if target.layout.experts is not None]
    if not experts:
        return
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in experts))
    fix = f"set select.exclude: [{', '.join(kinds)}]"
    if facts_of(method).linear_only:
        raise RecipeError(
            f"train.method={method} puts layers beside linear ones, but {experts[0]} is one tensor of all "
            "experts' matrices",
            fix=fix,
        )
    if criterion == "activation":
        raise RecipeError(
            f"select.criterion=activation looks at what goes into a linear layer, but {experts[0]} is one "
            "tensor of all experts' matrices",
            fix=f"{fix}, or choose another criterion",
        )


def _check_processes(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError for settings that leave a process without a GPU."""
    if processes > 1 and recipe.device is not None and recipe.device.startswith("cuda:"):
        raise RecipeError(
            f"device={recipe.device} is one GPU for {processes} processes", fix="write device: cuda"
        )


def _check_tokens(skeleton: nn.Module, rows: PreparedRows, where: str) -> None:
    """Raises ModelError for a token that the model has no embedding for: the tokenizer is another model's."""
    if not rows.train_report.tokens:
        return
    both = chain(rows.data.train, rows.data.validation)
    refuse_unknown(skeleton, ((row.row, row.input_ids) for row in both), where)
    known = known_tokens(skeleton)
    if rows.data.kind == "generation" and known is not None and rows.data.pad_id >= known:
        raise ModelError(
            f"the tokenizer pads with token {rows.data.pad_id}, but the model has {known} embeddings",
            where,
            "set its pad_token to a token of the model",
        )


def _given_selection(
    recipe: Recipe, base: hub.Base, choice: Choice, overwrite: bool, rows: str
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
    if not is_outline(base.folder):
        check_base(selection.fingerprint, base)
    check_shapes(selection, shapes_of(targets_of(base.graph)), str(file))
    if recipe.select.file is None:  # what is named is meant, also where it is the same file
        _check_own(selection, choice, rule_of(recipe, choice, rows), str(file))
    return selection


def _check_own(selection: Selection, choice: Choice, rule: Mapping[str, Any], where: str) -> None:
    """Raises RecipeError for a selection in the run folder that is not what the recipe would choose."""
    differs = what_differs(selection, choice, rule)
    if differs is not None:
        raise RecipeError(differs, where, "remove it, or name it with --selection")


def _unused(recipe: Recipe, choice: Choice, given: Selection, rule: Mapping[str, Any]) -> str | None:
    """That a selection that was named, or an adapter's, is not what the recipe says otherwise."""
    try:
        differs = what_differs(given, choice, rule)
    except RecipeError:  # what does not fit the layers is not chosen either
        differs = "is another"
    section = recipe.select
    said = [
        f"select.{name}"
        for name in sorted(section.model_fields_set - {"file"})
        if getattr(section, name) != type(section).model_fields[name].get_default(call_default_factory=True)
    ]
    if differs is None or not said:
        return None
    place = section.file or recipe.train.start_from
    return (
        f"{', '.join(said)} {'does' if len(said) == 1 else 'do'} not count: what trains is the selection of "
        f"{place}, with k={given.k} by {given.criterion} in {len(given.indices)} layers"
    )
