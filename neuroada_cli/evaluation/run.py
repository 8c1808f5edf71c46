"""One task on one model: predictions, extraction, scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import Batch, Encoded, Example, collate, listed, told_of
from neuroada_cli.data.encoding import answer_in, end_ids, end_texts
from neuroada_cli.data.inputs import aligned_padding, encode_for, features_for, padding_for, prompts_for
from neuroada_cli.data.seams import Coder
from neuroada_cli.evaluation.generate import context_of, generate, is_encoder_decoder
from neuroada_cli.evaluation.results import Prediction, TaskResult
from neuroada_cli.evaluation.rounds import in_rounds
from neuroada_cli.evaluation.vllm_engine import VllmEngine
from neuroada_cli.hub.embeddings import refuse_unknown
from neuroada_cli.hub.reader import Reader
from neuroada_cli.loop.loss import row_logits, token_loss
from neuroada_cli.loop.modes import evaluating
from neuroada_cli.loop.numerics import not_numbers
from neuroada_cli.loop.padding import reads_padding
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.tasks.metrics import METRICS, can_rouge, rouge
from neuroada_cli.tasks.task import PROTOCOLS, Decoding, Scoring, Task, decoding_of

# (rows just scored, tokens generated for them)
OnRows = Callable[[list[Prediction], int], None]


def likelihoods(
    model: nn.Module,
    reader: Reader,
    examples: Sequence[Example],
    max_length: int,
    on_rows: OnRows | None = None,
    ranks: Ranks = ALONE,
) -> list[Prediction]:
    """How likely texts are by the model: what is learnt of each in training is scored here, cut at max_length
    tokens. A row at a time, so that each has a loss of its own and none is padded.

    Raises DataError as `encode` does, NumericsError for a loss that is not finite.
    """
    max_length = length_for(model, max_length)
    rows, _ = encode_for(reader, examples, max_length)
    refuse_unknown(model, ((row.row, row.input_ids) for row in rows), reader.tokenizer.name_or_path)
    pad, device = padding_for(reader), next(model.parameters()).device
    ends = end_ids(reader.tokenizer)
    found: list[Prediction] = []

    def loss_of(row: Encoded) -> tuple[float, int]:
        loss, targets = token_loss(model, collate([row], pad).to(device))
        return float(loss), targets

    with evaluating(model), torch.inference_mode():
        for row, (loss, targets) in in_rounds(rows, loss_of, ranks):
            if not math.isfinite(loss):
                raise not_numbers(model, f"the loss of row {row.row} is not finite", "try --dtype fp32")
            answer, told = str(examples[len(found)].answer), f"{loss / max(1, targets):.6f}"
            cut = (len(row) == max_length and row.input_ids[-1] not in ends) or None
            found.append(
                Prediction(row.row, "", told, told, answer, False, loss=loss, targets=targets, cut=cut)
            )
            if on_rows is not None:
                on_rows(found[-1:], 0)
    return found


def length_for(model: nn.Module, max_length: int) -> int:
    """The tokens of a row that are looked at: no more than the model has places for."""
    return min(max_length, context_of(model) or max_length)


def predict(
    model: nn.Module,
    reader: Reader,
    task: Task,
    examples: Sequence[Example],
    protocol: str,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    max_length: int = 512,
    on_rows: OnRows | None = None,
    decoding: Decoding | None = None,
    seed: int = 0,
    ranks: Ranks = ALONE,
    engine: VllmEngine | None = None,
) -> tuple[list[Prediction], int]:
    """(scored predictions in the order of `examples`, tokens generated); on_rows gets each batch at once.

    decoding  of text, None: the protocol's own; seed: of what sampling draws (see `generate`)
    ranks     take turns at the batches; each ends with all of it
    engine    writes in place of the model
    A prompt that fills the model's context by itself is not asked, and counts as not answered.
    Raises NumericsError for logits that are not finite, DataError where no prompt fits.
    """
    if task.kind != "generation":
        return _classify(model, reader, task, examples, batch_size, max_length, on_rows, ranks), 0
    if task.by_loss:
        return likelihoods(model, reader, examples, max_length, on_rows, ranks), 0
    scoring, coder = task.scoring[protocol], Coder(reader.tokenizer)
    ends = end_texts(reader.tokenizer)
    prompts, context = prompts_for(reader, examples, task.published), context_of(model)
    answer = 0 if is_encoder_decoder(model) else 1  # which has positions of its own there
    fit = [n for n, prompt in enumerate(prompts) if context is None or len(prompt) + answer <= context]
    if not fit:
        fit = list(range(len(prompts)))  # which is refused
    unfit = sorted({*range(len(prompts))} - {*fit})
    done: dict[int, Prediction] = {}
    tokens = 0

    def finish(numbers: list[int], completions: list[str], count: int) -> None:
        nonlocal tokens
        tokens += count
        places = [fit[number] for number in numbers]
        scored = [
            _scored(task, scoring, examples[place], text, coder, ends)
            for place, text in zip(places, completions, strict=True)
        ]
        done.update(zip(places, scored, strict=True))
        if on_rows is not None:
            on_rows(scored, count)

    unasked = [replace(score_one(scoring, examples[n], ""), asked=False) for n in unfit]
    done.update(zip(unfit, unasked, strict=True))
    if unasked and on_rows is not None:
        on_rows(unasked, 0)
    generate(
        model,
        reader.tokenizer,
        [prompts[n].input_ids for n in fit],
        max_new_tokens or scoring.max_new_tokens,
        batch_size,
        finish,
        decoding or decoding_of(task, PROTOCOLS[protocol], None),
        seed,
        special=not task.published,
        ranks=ranks,
        beside=_beside(reader, [prompts[n] for n in fit]),
        engine=engine,
    )
    return [done[number] for number in range(len(examples))], tokens


def _beside(
    reader: Reader, prompts: Sequence[Encoded]
) -> Callable[[Sequence[int]], dict[str, Tensor]] | None:
    """What the model is given beside the tokens of these prompts: pixels, and what is told of every token."""
    features = features_for(reader)
    if features is None:
        return None

    def beside(numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = [prompts[number] for number in numbers]
        return {**told_of(rows, left=True), **features(rows)}

    return beside


def _scored(
    task: Task, scoring: Scoring, example: Example, written: str, coder: Coder, ends: Sequence[str]
) -> Prediction:
    """A completion's answer, scored. What the tokenizer cannot write as it stands in the row (it may drop
    case or spaces) is right when it is what the tokenizer makes of it; an end token that stands in the row
    ends the answer there, too.
    """
    if task.published:
        return score_one(scoring, example, written)
    found = score_one(scoring, example, answer_in(example, written))
    if found.correct:
        return found
    answer = str(example.answer).rstrip()
    for end in ends:
        answer = answer.removesuffix(end)
    as_written = coder.as_written(answer)
    other = score_one(scoring, replace(example, answer=as_written), found.prediction)
    return replace(other, reference=found.reference) if other.correct else found


def score_one(scoring: Scoring, example: Example, completion: str) -> Prediction:
    """Extraction and scoring of one completion by one protocol's rules."""
    reference = str(example.answer)
    extracted = scoring.extract(example.prompt, completion)
    strict: bool | None = None
    if scoring.strict is not None:
        try:
            strict = scoring.strict(completion, reference)
        except ImportError:  # the extra `strict` is not installed: the column stays empty
            strict = None
    correct = scoring.correct(extracted, reference)
    credit = None if scoring.credit is None else scoring.credit(extracted, reference)
    return Prediction(
        example.row, example.prompt, completion, extracted, reference, correct, strict, credit=credit
    )


@torch.inference_mode()
def _classify(
    model: nn.Module,
    reader: Reader,
    task: Task,
    examples: Sequence[Example],
    batch_size: int,
    max_length: int,
    on_rows: OnRows | None,
    ranks: Ranks,
) -> list[Prediction]:
    rows, _ = encode_for(reader, examples, length_for(model, max_length), task.kind)
    if reader.tokenizer is not None:
        refuse_unknown(model, ((row.row, row.input_ids) for row in rows), reader.tokenizer.name_or_path)
    pad, features = aligned_padding(model, reader), features_for(reader)
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    done: dict[int, Prediction] = {}
    together = [order]
    if reads_padding(model, rows, pad, features):  # scores must not depend on the batch
        together = [list(alike) for _, alike in groupby(order, lambda i: len(rows[i]))]
    batches = [
        alike[start : start + batch_size] for alike in together for start in range(0, len(alike), batch_size)
    ]
    with evaluating(model):

        def values_of(numbers: list[int]) -> list[int | float]:
            batch = collate([rows[i] for i in numbers], pad, features).to(device)
            return _row_values(model, batch, task.kind)

        for numbers, values in in_rounds(batches, values_of, ranks):
            scored = [
                _labelled(examples[i], value, rows[i].cut) for i, value in zip(numbers, values, strict=True)
            ]
            done.update(zip(numbers, scored, strict=True))
            if on_rows is not None:
                on_rows(scored, 0)
    return [done[number] for number in range(len(examples))]


def _row_values(model: nn.Module, batch: Batch, kind: str) -> list[int | float]:
    logits_BC = row_logits(model, batch)
    if not torch.isfinite(logits_BC).all():
        said = f"the model's outputs are not finite, rows {listed(batch.rows)}"
        raise not_numbers(model, said, "try --dtype fp32")
    values_B = logits_BC.argmax(dim=-1) if kind == "classification" else logits_BC[:, 0]
    return list(values_B.tolist())


def _labelled(example: Example, value: int | float, cut: bool) -> Prediction:
    prompt = example.prompt if example.pair is None else f"{example.prompt}\t{example.pair}"
    correct = float(value) == float(example.answer)
    told = str(value)
    return Prediction(example.row, prompt, told, told, str(example.answer), correct, cut=cut or None)


def summarise(task: Task, predictions: Sequence[Prediction], seconds: float, tokens: int) -> TaskResult:
    """The scores of a task from its rows."""
    n = len(predictions)
    if task.by_loss:
        metrics = _likelihood(predictions)
    elif task.kind == "generation":
        metrics = {"accuracy": sum(p.correct for p in predictions) / n}
        if "rouge_l" in task.metrics and can_rouge():
            metrics |= rouge([p.extracted for p in predictions], [p.reference for p in predictions])
        if all(p.credit is not None for p in predictions):
            metrics["vqa_accuracy"] = sum(p.credit or 0.0 for p in predictions) / n
    else:
        values = [float(p.prediction) for p in predictions]
        references = [float(p.reference) for p in predictions]
        metrics = {name: METRICS[name](values, references) for name in task.metrics}
    strict = [p.strict for p in predictions if p.strict is not None]
    return TaskResult(
        task=task.name,
        n=n,
        score=metrics[task.metrics[0]],
        metric=task.metrics[0],
        unparsed=sum(not p.extracted for p in predictions),
        strict=sum(strict) / n if len(strict) == n else None,
        majority=_majority(task, predictions),
        seconds=round(seconds, 3),
        tokens=tokens,
        metrics=metrics,
        unasked=sum(not p.asked for p in predictions),
        cut=sum(bool(p.cut) for p in predictions),
    )


def _likelihood(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Loss per token over all rows, and its exponential."""
    loss = sum(p.loss or 0.0 for p in predictions) / max(1, sum(p.targets or 0 for p in predictions))
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}


def _majority(task: Task, predictions: Sequence[Prediction]) -> float | None:
    if task.kind == "regression" or task.family not in ("commonsense", "glue", "classes"):
        return None
    references = [p.reference for p in predictions]
    return max(references.count(reference) for reference in set(references)) / len(references)
