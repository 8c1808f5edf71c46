"""`neuroada eval`: generate or classify, score by a protocol's rules, keep every prediction."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from neuroada_cli import files, hub, stopping
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.beside import Loading
from neuroada_cli.adapter.forgetting import NAME as FORGETTING
from neuroada_cli.adapter.forgetting import measure
from neuroada_cli.adapter.results import results_folder
from neuroada_cli.data.sources import refuse_foreign
from neuroada_cli.errors import DataError, ModelError, RecipeError, Stopped
from neuroada_cli.evaluation import display, report, vllm_engine
from neuroada_cli.evaluation.records import About, Records
from neuroada_cli.evaluation.results import EvalResult, Prediction, TaskResult
from neuroada_cli.evaluation.rows import Learnt, TaskRows, learnt_by, prepare
from neuroada_cli.evaluation.scoring import Settings, about, score
from neuroada_cli.evaluation.vllm_engine import AT_ONCE, VllmEngine
from neuroada_cli.foreign_text import shown
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.ranks.place import refuse_strangers
from neuroada_cli.recipe.load import load_recipe, with_overrides
from neuroada_cli.recipe.schema import DataSection, Recipe
from neuroada_cli.selection.file import SAME_BASE
from neuroada_cli.show.notes import say, tell
from neuroada_cli.tasks import metrics
from neuroada_cli.tasks.loss_mask import loss_mask_of
from neuroada_cli.tasks.registry import expand, get_protocol, get_task, said_of, scored_tasks
from neuroada_cli.tasks.task import Protocol, Task


def run(
    target: str | Path,
    recipe: Recipe | None = None,
    tasks: Sequence[str] = (),
    protocol: str | None = None,
    out: str | Path | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    trust_remote_code: bool = False,
    ranks: Ranks = ALONE,
    overrides: Sequence[str] = (),
    forgetting: str | None = None,
    base: str | None = None,
    engine: str | None = None,
) -> EvalResult:
    """Score `target` (base, adapter, run or merged folder, hub id, or a recipe: its base) on tasks.

    Settings that are None come from the recipe (for an adapter, merged or not: the one it was trained with),
    else from the protocol. An interrupted evaluation goes on where it stopped when it is started again.
    trust_remote_code  run code that the model's folder brings; a recipe that comes with the target cannot say
                       so, nor can it have rows fetched from places of its own
    ranks  processes that share the batches, each with the whole model: rank 0 locks, writes and speaks
    overrides  "key=value" of the recipe that an adapter or merged folder was trained with
    forgetting  general text: its loss before and after tuning. Without `tasks` nothing else is measured
    base       where an adapter's base lies now
    engine     "vllm": it loads a plain or merged folder and writes the answers
    Raises UserErrors before the model loads wherever that is possible, Stopped when interrupted.
    """
    refuse_strangers(ranks.alone, "scores")
    console = Console(quiet=quiet or not ranks.first)
    target = str(target)
    if target.endswith((".yaml", ".yml")):
        recipe = recipe or load_recipe(target)
        target = recipe.model.path
    found = adapted.find_target(target)
    named, trained = recipe, adapted.recipe_of(found)
    recipe = named or _overridden(trained, overrides, target)
    trusted = trust_remote_code or (recipe is not None and recipe.model.trust_remote_code)
    settings = _settings(recipe, trained, protocol, batch_size, max_new_tokens)
    device = device or (recipe.device if recipe else None)
    device = hub.choose_device(device, None if ranks.alone else ranks.local)
    text = forgetting or (recipe.eval.forgetting if recipe else None)
    if forgetting is None and text is not None and named is None and trained is not None:
        _refuse_foreign(trained, data_dir, "test", text if text == trained.eval.forgetting else None)
    chosen = [] if forgetting and not tasks else _chosen_tasks(tasks, recipe, found)
    if engine is not None:
        vllm_engine.check(found.adapter is None, ranks.alone, chosen, settings.decoding_of)
    records = Records(Path(out) if out is not None else results_folder(found))
    data_dir = data_dir or (recipe.data.data_dir if recipe else None)
    limit = limit or (recipe.eval.limit if recipe else None)
    result = EvalResult({}, {}, records.folder)

    def forgotten(text: str) -> None:
        how = Loading(dtype, device, base, trust_remote_code=trusted)
        told = measure(
            found, trained, how, text, settings.max_length, records, console, data_dir, limit, overwrite,
            ranks,
        )  # fmt: skip
        result.predictions[FORGETTING], result.results[FORGETTING] = told

    if text is not None and not chosen:
        forgotten(text)
        return result
    if not overwrite:
        ranks.first_does(lambda: records.refuse_finished([task.name for task in chosen]))
    data = _data_of(recipe, trained, found)
    learnt = _learnt(trained, named, data_dir, console)
    if trained is not None and named is None and any("test" not in task.sets for task in chosen):
        for split in ("validation", "train"):
            source = getattr(trained.data, split)
            if recipe is not None and source == getattr(recipe.data, split):
                _refuse_foreign(trained, data_dir, split, source)
    jobs = ranks.all_do(
        lambda: [
            prepare(
                task,
                settings.rules,
                data,
                data_dir,
                limit,
                lambda work=task.work: _reader_of(found, work, recipe, trusted, base),  # type: ignore[misc]
                learnt,
            )
            for task in chosen
        ]
    )
    for job in jobs:
        settings.decoding_of(job.task)
        if job.rows.partial:
            console.print(f"{job.task.name}: {shown(job.rows.label)} is only a part of the published rows")
        if job.chose:
            count = f"{job.chose:,} of {len(job.rows):,} rows"
            say(console, f"{job.task.name}: training was validated on {count}, which may flatter the score")
    tell(dict.fromkeys(remark for job in jobs for remark in job.rows.remarks), console.quiet)
    display.tell_unscored([job.task for job in jobs], settings.rules.name, console)

    with console.status("loading the model"):
        subject = ranks.all_do(
            lambda: _load(
                found, recipe, trained, chosen[0], device, dtype, trusted, named is not None, base, engine
            )
        )
    if engine is not None:
        writer = VllmEngine(subject.folder, dtype, settings.seed, trusted)
        settings = replace(settings, engine=writer, batch_size=batch_size or AT_ONCE)
    if not ranks.alone:
        rows_of = {job.task.name: job.rows.sha256 for job in jobs}
        asked = {job.task.name: job.prompts_sha256 for job in jobs}
        ranks.refuse_differences({"model": subject.identity, "set of rows": rows_of, "set of prompts": asked})
    if subject.fresh:
        console.print(
            f"{shown(', '.join(subject.fresh))}: random, in none of the files, so scores are chance"
        )
    tell(hub.ignored_of_model(subject.folder, trusted, subject.model), console.quiet)
    if subject.adapter is not None:
        say(console, SAME_BASE, style="dim")
    remark = None
    if subject.tokenizer is not None:
        tell(hub.ignored_of_tokenizer(subject.tokenizer, trusted), console.quiet)
        remark = hub.endings(subject.tokenizer).remark
    if remark is not None and jobs[0].task.kind == "generation":
        say(console, shown(remark))
    with contextlib.ExitStack() as held:
        ranks.first_does(lambda: held.enter_context(files.Lock(records.folder)))
        held.enter_context(_stoppable())
        abouts = [about(job, settings, subject.model, subject.reader, subject.identity) for job in jobs]
        # every task that was done under other settings is refused before the first one runs
        done = ranks.first_does(
            lambda: [_finished(*pair, records, overwrite) for pair in zip(jobs, abouts, strict=True)]
        )
        over = ranks.shared([before is not None for before in done or ()])
        for number, (job, facts) in enumerate(zip(jobs, abouts, strict=True)):
            before = done[number] if done else None
            if before is None and over[number]:  # known to rank 0, which shows it
                continue
            rows, scores = before or score(
                job, settings, subject.model, subject.reader, facts, records, console, ranks,
                subject.refuse_written_to,
            )  # fmt: skip
            result.predictions[job.task.name], result.results[job.task.name] = rows, scores
            display.tell_unasked(scores, rows, console)
            display.tell_cut(scores, facts["max_length"] or settings.max_length, settings.max_length, console)
    if ranks.first:
        facts_of = {job.task.name: facts for job, facts in zip(jobs, abouts, strict=True)}
        report.write(records.folder, target, result.results, result.predictions, facts_of)
    console.print(display.table(result.results, f"{shown(target)}   protocol {settings.rules.name}"))
    if text is not None:
        del subject  # before its base is loaded beside it
        forgotten(text)
    say(console, f"report, predictions and results: {shown(records.folder)}")
    return result


# ---------------------------------------------------------------------------------------------------
# Before the model loads


def _settings(
    recipe: Recipe | None,
    trained: Recipe | None,
    protocol: str | None,
    batch_size: int | None,
    new: int | None,
) -> Settings:
    rules = get_protocol(protocol or (recipe.data.protocol if recipe else "reft"))
    return Settings(
        rules=rules,
        loss_mask=_loss_mask(trained.data if trained else recipe.data if recipe else None, trained, rules),
        batch_size=batch_size or (recipe.eval.batch_size if recipe else 16),
        new_tokens=new or (recipe.eval.max_new_tokens if recipe else None),
        max_length=(recipe.data.max_length if recipe else None) or rules.max_length,
        decoding=recipe.eval.decoding if recipe else None,
        seed=recipe.seed if recipe else 0,
    )


def _loss_mask(section: DataSection | None, trained: Recipe | None, rules: Protocol) -> str:
    """What the model was trained on; of a base, what training under these settings would be on."""
    if section is None:
        return rules.loss_mask
    under = get_protocol(section.protocol) if trained else rules
    try:
        return loss_mask_of(section, get_task(section.task), under)
    except RecipeError:  # a task that this version does not know
        return under.loss_mask


def _overridden(trained: Recipe | None, overrides: Sequence[str], target: str) -> Recipe | None:
    """What was trained, scored otherwise. Raises RecipeError."""
    if not overrides:
        return trained
    if trained is None:
        _refuse_missing(adapted.find_target(target))
        raise RecipeError(
            f"has nothing to override: {target} comes with no recipe", "--set", "add --recipe RECIPE"
        )
    return with_overrides(trained, overrides)


def _chosen_tasks(names: Sequence[str], recipe: Recipe | None, target: adapted.Target) -> list[Task]:
    if not names and recipe is None:
        _refuse_missing(target)
        raise RecipeError("no task to score", fix="add --tasks boolq,piqa (or a recipe)")
    chosen = expand(names) if names or recipe is None else scored_tasks(recipe.eval.tasks, recipe.data.task)
    chosen = [said_of(task, recipe.data if recipe else None) for task in chosen]
    if len({(task.work, task.num_labels) for task in chosen}) > 1:
        raise RecipeError("these tasks need different heads", "--tasks", "evaluate them one by one")
    for task in chosen:
        metrics.require(task.metrics if task.kind != "generation" else ())
    return chosen


def _refuse_missing(target: adapted.Target) -> None:
    """Raises ModelError for a name that is no folder here."""
    if target.adapter is None and not Path(target.name).expanduser().exists():
        raise ModelError(
            "no such folder",
            target.name,
            "check the path; of a model on the hub name the tasks with --tasks",
        )


def _learnt(
    trained: Recipe | None, named: Recipe | None, data_dir: str | None, console: Console
) -> Learnt | None:
    """What the model was trained on; that it cannot be told is said, and stops nothing."""
    recipe = trained or named
    if recipe is None:
        return None

    def allow(source: str | None) -> None:
        if trained is not None and (named is None or named.data.validation != source):
            _refuse_foreign(trained, data_dir, "validation", source)

    try:
        if trained is not None and (named is None or _sources(named) != _sources(trained)):
            for source in _sources(trained):
                _refuse_foreign(trained, data_dir, "train", source)
        found = learnt_by(recipe, data_dir, allow)
        if trained is None:  # nothing of a base was chosen by validation rows
            return replace(found, validated=frozenset(), why_unknown=None)
        if found.why_unknown is not None:
            line = f"which rows training was validated on is not known: {found.why_unknown}"
            say(console, line, markup=False)
        return found
    except (DataError, RecipeError) as error:
        say(console, f"which rows were trained on is not known: {error}", markup=False)
        return None


def _sources(recipe: Recipe) -> tuple[str | None, ...]:
    """What the rows are read from that a recipe trains on."""
    return (recipe.data.train, *recipe.data.also)


def _refuse_foreign(recipe: Recipe, data_dir: str | None, split: str, source: str | None) -> None:
    """Raises DataError for a source that only a recipe which came with the target wants fetched."""
    if source is not None:
        refuse_foreign(source, split, data_dir or recipe.data.data_dir)


def _data_of(recipe: Recipe | None, trained: Recipe | None, target: adapted.Target) -> DataSection | None:
    """How rows are read. What was trained brings its chat template with its tokenizer, and the day that it
    was told with its recipe; no file that a stranger's recipe names is opened.
    """
    if recipe is None:
        return None
    changes: dict[str, Any] = {}
    if trained is not None or target.adapter is not None or files.is_ours(target.name):
        changes["chat_template"] = None
    if recipe.data.date is None and trained is not None:
        changes["date"] = trained.data.date
    return recipe.data.model_copy(update=changes)


def _reader_of(
    target: adapted.Target, work: hub.Work, recipe: Recipe | None, trusted: bool, base: str | None
) -> hub.Reader:
    return adapted.reader_of(target, work, recipe.model.revision if recipe else None, trusted, base)


# ---------------------------------------------------------------------------------------------------
# Running


def _load(
    target: adapted.Target,
    recipe: Recipe | None,
    trained: Recipe | None,
    task: Task,
    device: str,
    dtype: str | None,
    trusted: bool,
    named: bool,
    base: str | None,
    engine: str | None,
) -> adapted.Adapted:
    """Whatever was trained knows its data type; a base gets that of a recipe which the user named."""
    model = recipe.model if recipe else None
    said = named or (model is not None and trained is not None and model.dtype != trained.model.dtype)
    own = model.dtype if model and said and target.adapter is None else None
    return adapted.load(
        target,
        task.work,
        dtype or (recipe.eval.dtype if recipe else None) or own,
        device,
        task.num_labels,
        base,
        attention=model.attention if model else None,
        revision=model.revision if model else None,
        trust_remote_code=trusted,
        weights=engine is None,
    )


def _finished(
    job: TaskRows, about: About, records: Records, overwrite: bool
) -> tuple[list[Prediction], TaskResult] | None:
    return None if overwrite else records.finished(job.task.name, about)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A stopped evaluation says how it goes on; without handlers of ours Ctrl-C is an exception."""
    kept, how = "the rows done so far are kept", "start it again to go on from there"
    with stopping.saying(f"{kept}; {how}"):
        try:
            yield
        except KeyboardInterrupt:
            raise Stopped(signal.SIGINT, f"stopped; {kept}", how) from None
