"""One cell of a suite in a process of its own: train, then score, each only once.

    python -m neuroada_cli.suites.cell FOLDER [forgetting] [tasks|loss]

FOLDER/recipe.yaml says what; trained.json, forgetting.json and scored.json (or loss.json) hold what came
out. A process of its own gives every run the same start (allocator, random streams, peak memory), whatever
ran before.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroada_cli import failures, files, stopping
from neuroada_cli.errors import ModelError
from neuroada_cli.machine import collector, kernels
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.suites.inputs import inputs
from neuroada_cli.training.log import read_metrics

RECIPE, TRAINED, RUN = "recipe.yaml", "trained.json", "run"
FORGETTING = "forgetting"  # the word that asks for it, the key of what came out, and its file's stem
SCORED = {"tasks": "scored.json", "loss": "loss.json"}  # how a cell is scored -> what came out
INPUTS = "inputs"  # key of what it was made of
ABOUT = ("protocol", "loss_mask", "decoding", "max_new_tokens", "data")  # of a score in a result file


def run(folder: Path, passes: Sequence[str] = ()) -> None:
    """Bring the cell to its end, from wherever an earlier process left it.

    passes  what is measured once it is trained: FORGETTING, then a key of SCORED
    """
    recipe = load_recipe(folder / RECIPE)
    if recipe.model.trust_remote_code:
        kernels.let_in()
    left = [each for each in passes if not done(folder, each)]
    gone = left and not (folder / RUN).is_dir()  # taken over from a result file: nothing to measure yet
    if gone or not (folder / TRAINED).is_file():
        from neuroada_cli.commands import train

        began = (folder / RUN / "recipe.yaml").is_file()
        made_of = inputs(recipe)
        result = train.run(recipe, resume=began)
        found = _trained(result, recipe.train.batch_size) | {INPUTS: made_of}
        files.write_json(folder / TRAINED, found)
    for each in left:
        measure = {FORGETTING: _forgotten, "tasks": _scores, "loss": _loss}[each]
        files.write_json(folder / _file(each), measure(folder, recipe))


def done(folder: Path, part: str | None = None) -> bool:
    """Whether the cell has been trained, or a part measured."""
    if part == FORGETTING and FORGETTING in (trained(folder) or ()):
        return True
    return (folder / (TRAINED if part is None else _file(part))).is_file()


def trained(folder: Path) -> dict[str, Any] | None:
    """What came out of training, and what was forgotten where that was measured; None: not trained yet."""
    if not (folder / TRAINED).is_file():
        return None
    found = _read(folder / TRAINED)
    if "best_value" not in found:
        raise _damaged(folder / TRAINED)
    if (folder / _file(FORGETTING)).is_file():
        found |= _read(folder / _file(FORGETTING))
    return found


def scores(folder: Path, part: str) -> dict[str, Any] | None:
    """What a part of SCORED found; None: not scored yet."""
    file = folder / _file(part)
    return _read(file) if file.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = files.read_json(file)
    except ModelError:
        found = None
    if not isinstance(found, dict):
        raise _damaged(file)
    return found


def _damaged(file: Path) -> ModelError:
    return ModelError("is not what a cell has written", str(file), f"remove {file.parent}: it runs anew")


def _file(part: str) -> str:
    return SCORED.get(part, f"{part}.json")


def _scores(folder: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Task -> TaskResult of the run's best checkpoint, with what it means: loss mask, decoding, rows."""
    from neuroada_cli.commands import eval as command

    plain = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"forgetting": None})})
    found = command.run(str(folder / RUN), recipe=plain, out=folder / "eval", overwrite=False)
    written = files.read_json(folder / "eval" / "results.json")
    return {
        task: dataclasses.asdict(result) | {key: written[task][key] for key in ABOUT}
        for task, result in found.results.items()
    }


def _loss(folder: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Task -> mean loss per target token of the reference answers, by the run's best checkpoint.

    Tells methods apart where a small model's answers are all wrong, and needs no generation.
    """
    from neuroada_cli import hub
    from neuroada_cli.adapter import load as adapted
    from neuroada_cli.data.batch import collate
    from neuroada_cli.data.inputs import encode_for, features_for, padding_for
    from neuroada_cli.evaluation import rows
    from neuroada_cli.evaluation.run import length_for
    from neuroada_cli.loop.validate import validate
    from neuroada_cli.tasks.loss_mask import learns_prompt, loss_mask_of
    from neuroada_cli.tasks.registry import get_protocol, scored_tasks

    rules, found = get_protocol(recipe.data.protocol), {}
    device = hub.choose_device(recipe.device)
    subject = adapted.load(str(folder / RUN), dtype=recipe.eval.dtype, device=device)
    pad, size = padding_for(subject.reader), recipe.eval.batch_size
    features = features_for(subject.reader)
    learnt = rows.learnt_by(recipe, recipe.data.data_dir)
    for task in scored_tasks(recipe.eval.tasks, recipe.data.task):
        job = rows.prepare(
            task,
            rules,
            recipe.data,
            recipe.data.data_dir,
            recipe.eval.limit,
            lambda: subject.reader,
            learnt,
        )
        length = length_for(subject.model, recipe.data.max_length or rules.max_length)
        on_prompt = learns_prompt(recipe.data, job.task, rules)
        encoded, report = encode_for(
            subject.reader, job.examples, length, job.task.kind, on_prompt, job.task.published
        )
        encoded = sorted(encoded, key=len)
        batches = (collate(encoded[at : at + size], pad, features) for at in range(0, len(encoded), size))
        value = validate(subject.model, batches, job.task.kind)
        assert value is not None, "nothing asks it to stop"
        found[task.name] = {
            "task": task.name,
            "n": len(encoded),
            "score": value.loss,
            "metric": "loss",
            "targets": value.targets,
            "cut": report.truncated,
            "leaked": len(job.leaked or ()),
            "training_set": job.training_set,
            "protocol": rules.name,
            "loss_mask": loss_mask_of(recipe.data, job.task, rules),
            "data": {"source": job.rows.label, "rows": job.part, "sha256": job.rows.sha256},
        }
    return found


def _forgotten(folder: Path, recipe: Recipe) -> dict[str, float]:
    """What the loss per token of `eval.forgetting` has risen by, by the run's best checkpoint."""
    from neuroada_cli.commands import eval as command

    source, out = recipe.eval.forgetting, folder / FORGETTING
    found = command.run(str(folder / RUN), recipe=recipe, out=out, overwrite=True, forgetting=source)
    return {FORGETTING: found.results["forgetting"].score}


def _trained(result: Any, batch_size: int) -> dict[str, Any]:
    entries = read_metrics(result.run_dir / "metrics.jsonl")
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    metric = evaluations[-1]["metric_name"] if evaluations else None
    steps = [entry for entry in entries if entry["kind"] == "train"]
    return {
        "best_value": result.best_value,
        "metric": metric,  # None: best_value is a loss, lower is better
        "evaluations": [(entry["step"], entry["loss"], entry["metric"]) for entry in evaluations],
        "losses": [entry["loss"] for entry in steps],
        "loss": result.loss,
        "steps": result.steps,
        "seconds": result.seconds,
        "rows_per_second": result.steps * batch_size / result.seconds,
        "peak_bytes": result.peak_bytes,
        "trainable": result.trainable,
        "total": result.total,
    }


def main() -> None:
    stopping.install()
    stopping.end_with_parent()  # a suite that is killed leaves nobody training
    collector.spare()
    kernels.keep_out()
    words, code = sys.argv[1:], 0
    try:
        run(Path(words[0]), words[1:])
    except BaseException as error:
        code = failures.report(error, False)
    failures.leave(code)


if __name__ == "__main__":
    main()
