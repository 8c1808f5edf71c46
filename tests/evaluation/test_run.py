"""One task on one model: scores, and every row's own fate."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import pico_bert, pico_llama
from rich.console import Console
from tiny_tokenizer import SIZE, byte_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from neuroada_cli.data.batch import Example
from neuroada_cli.errors import NumericsError
from neuroada_cli.evaluation import display
from neuroada_cli.evaluation.results import Prediction, TaskResult
from neuroada_cli.evaluation.run import predict, score_one, summarise
from neuroada_cli.hub.reader import Reader
from neuroada_cli.tasks.registry import TASKS

PAIRS = [Example("x" * n, "", n % 2, 10 + n, "yy") for n in (3, 9, 1, 5, 2)]


def test_a_completion_is_scored_by_both_rules() -> None:
    scoring = TASKS["boolq"].scoring["reft"]
    example = Example("Is it?\n", "", "true", 4)
    found = score_one(scoring, example, "well, the correct answer is true")
    assert found == Prediction(4, "Is it?\n", "well, the correct answer is true", "true", "true", True, False)


def test_scores_count_what_could_not_be_read() -> None:
    rows = [
        Prediction(n, "p", "c", extracted, reference, extracted == reference, extracted == reference)
        for n, (extracted, reference) in enumerate([("a", "a"), ("", "a"), ("b", "a"), ("b", "b")])
    ]
    result = summarise(TASKS["boolq"], rows, 2.0, 40)
    assert (result.n, result.score, result.unparsed, result.strict, result.majority) == (4, 0.5, 1, 0.5, 0.75)
    assert summarise(TASKS["SVAMP"], rows, 2.0, 40).majority is None, "numbers have no majority to guess"


@pytest.mark.parametrize("name", ["FNet", "Yoso", "ConvBert"])
def test_padding_beside_a_row_changes_no_score_whatever_a_model_makes_of_it(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(
        vocab_size=SIZE, hidden_size=32, embedding_size=32, num_hidden_layers=2, intermediate_size=64,
        num_attention_heads=4, max_position_embeddings=64, type_vocab_size=2, initializer_range=0.4,
        num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    reader, rows = Reader(byte_tokenizer(pairs=True)), [replace(row, answer=0.5) for row in PAIRS]

    def scores(batch_size: int) -> list[float]:
        found, _ = predict(model, reader, TASKS["stsb"], rows, "reft", batch_size)
        return [float(each.prediction) for each in found]

    alone = scores(1)
    assert len(set(alone)) == len(rows)
    for batch_size in (2, 16):
        assert scores(batch_size) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_classes_are_those_of_each_row_alone(batch_size: int) -> None:
    model, tokenizer = pico_bert(vocab_size=SIZE), byte_tokenizer(pairs=True)
    seen: list[Prediction] = []
    found, tokens = predict(
        model,
        Reader(tokenizer),
        TASKS["rte"],
        PAIRS,
        "reft",
        batch_size,
        on_rows=lambda rows, _: seen.extend(rows),
    )
    alone = [int(model(**tokenizer(e.prompt, e.pair, return_tensors="pt")).logits.argmax()) for e in PAIRS]
    assert [int(p.prediction) for p in found] == alone
    assert [p.correct for p in found] == [a == e.answer for a, e in zip(alone, PAIRS, strict=True)]
    assert [p.row for p in found] == [e.row for e in PAIRS]
    assert sorted(p.row for p in seen) == sorted(p.row for p in found)
    assert tokens == 0
    result = summarise(TASKS["cola"], found, 1.0, 0)
    assert result.metric == "matthews"
    assert set(result.metrics) == {"matthews", "accuracy"}


def test_a_decoder_without_a_padding_token_classifies_in_batches() -> None:
    torch.manual_seed(0)
    shape = pico_llama(vocabulary=SIZE).config.to_dict() | {"num_labels": 1, "pad_token_id": None}
    model = LlamaForSequenceClassification(LlamaConfig(**shape)).eval()
    tokenizer = byte_tokenizer(pairs=True)
    together, _ = predict(model, Reader(tokenizer), TASKS["stsb"], PAIRS, "reft", 16)
    alone, _ = predict(model, Reader(tokenizer), TASKS["stsb"], PAIRS, "reft", 1)
    values = [[float(p.prediction) for p in found] for found in (together, alone)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert len(set(values[0])) == len(PAIRS)
    assert -1 <= summarise(TASKS["stsb"], together, 1.0, 0).score <= 1


def test_broken_weights_are_an_error() -> None:
    model = pico_bert(vocab_size=SIZE)
    with torch.no_grad():
        model.classifier.bias[0] = float("inf")
    with pytest.raises(
        NumericsError, match=r"not finite, rows .*: classifier\.bias, row 0 of the model holds"
    ):
        predict(model, Reader(byte_tokenizer(pairs=True)), TASKS["rte"], PAIRS, "reft")


def test_the_table_fits_80_columns_and_tells_clean_tasks_apart() -> None:
    def result(task: str, metric: str, leaked: int | None, strict: float | None = None) -> TaskResult:
        return TaskResult(task, 1234, 0.5, metric, 12, strict, 0.3, 90.0, 5, {}, leaked)

    kinds = ("accuracy", "matthews", "pearson", "accuracy")
    leaks = (1172, 0, 2, None)
    names = ("ARC-Challenge", "MultiArith", "social_i_qa", "boolq")
    mixed = {n: result(n, k, x) for n, k, x in zip(names, kinds, leaks, strict=True)}
    lines = drawn(mixed)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    assert [word for word in ("95%", "<1%", "matthews", "mean of 2 clean") if word not in text] == []
    same = {name: result(name, "accuracy", 0, 0.4) for name in names}
    text = "\n".join(drawn(same))
    assert "accuracy" in text
    assert [word for word in ("metric", "clean", "…") if word in text] == []


def drawn(results: dict[str, TaskResult]) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(display.table(results, "model   protocol reft"))
    return [line.rstrip() for line in console.export_text().splitlines()]
