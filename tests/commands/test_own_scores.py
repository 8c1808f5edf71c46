"""Scores of rows of one's own: how likely texts are, what words answers share, and what tuning forgets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from random_adapter import adapter_of
from tiny_tokenizer import SIZE, byte_tokenizer
from transformers import AutoModelForCausalLM

from neuroada_cli import files
from neuroada_cli.adapter.load import find_target
from neuroada_cli.commands import eval as command
from neuroada_cli.errors import DataError, ModelError, OutputError, RecipeError
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.tasks.metrics import rouge
from neuroada_cli.tasks.registry import get_task

TEXTS = ["The river Elbe is long.", "Ein Papagei.", "x" * 80]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    pico_llama(vocabulary=SIZE, max_position_embeddings=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def recipe(base: Path, rows: list[dict[str, Any]], **data: Any) -> Recipe:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"task": "instruct", "train": "rows.jsonl", "validation": "rows.jsonl"} | data
    return recipe_from({"name": "x", "device": "cpu", "model": {"path": str(base)}, "data": section})


def transformers_loss(base: Path, texts: list[str], length: int) -> float:
    """Per token over all texts, each ended, by the library's own loss."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([(byte_tokenizer()(text)["input_ids"] + [2])[:length]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def test_texts_are_scored_by_how_likely_they_are(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": text} for text in TEXTS]
    found = command.run(str(base), recipe(base, rows, max_length=40), quiet=False).results["instruct"]
    loss = transformers_loss(base, TEXTS, 40)
    assert found.metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert found.score == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found.metric, found.cut) == ("perplexity", 1)
    shown = capsys.readouterr().out
    assert "1 of 3 rows are longer than data.max_length=40, and scored without the rest" in shown
    assert "perplexity" in shown
    kept = [
        json.loads(line) for line in Path("eval/base/predictions/instruct.jsonl").read_text().splitlines()
    ]
    assert [row["targets"] for row in kept] == [len(TEXTS[0]) + 1, len(TEXTS[1]) + 1, 39]
    with pytest.raises(OutputError, match="exists"):
        command.run(str(base), recipe(base, rows, max_length=40), quiet=True)


def test_words_that_answers_share_are_counted_in_every_script() -> None:
    pytest.importorskip("rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [("the cat sat on the mat", "The cat is on the mat."), ("a_b 12", "b a, 12!"), ("", "x")]
    plain = RougeScorer(["rougeL", "rouge1"])
    for said, reference in pairs:
        theirs = plain.score(reference, said)
        ours = rouge([said], [reference])
        assert ours == {"rouge_l": theirs["rougeL"].fmeasure, "rouge_1": theirs["rouge1"].fmeasure}
    for text, other in (
        ("привет мир", "привет всем"),
        ("今天天气很好", "今天很冷"),
        ("καλημέρα κόσμε", "κόσμε"),
    ):
        assert plain.score(text, text)["rougeL"].fmeasure == 0, "then the package's own words would do"
        assert rouge([text], [text])["rouge_l"] == 1
        assert 0 < rouge([other], [text])["rouge_l"] < 1


def test_instructions_get_rouge_beside_exact_match(base: Path) -> None:
    rows = [{"instruction": f"Say {n}", "output": f"it is {n}"} for n in range(4)]
    found = command.run(str(base), recipe(base, rows), max_new_tokens=4, quiet=True).results["instruct"]
    assert found.metric == "accuracy"
    assert {"accuracy", "rouge_l", "rouge_1"} <= set(found.metrics)
    assert get_task("boolq").metrics == ("accuracy",), "published scores are what they were"


def test_forgetting_is_the_difference_of_two_scores(base: Path, tmp_path: Path) -> None:
    Path("general.txt").write_text("\n".join(TEXTS))
    adapter = adapter_of(base, tmp_path / "adapter")
    found = command.run(str(adapter), forgetting="general.txt", quiet=True).results["forgetting"]
    assert found.metrics["loss_before"] == pytest.approx(transformers_loss(base, TEXTS, 512), rel=1e-5)
    rows = recipe(base, [{"text": text} for text in TEXTS])
    after = command.run(str(adapter), rows, out="after", quiet=True).results["instruct"].metrics["loss"]
    assert found.metrics["loss_after"] == pytest.approx(after, rel=1e-6)
    assert found.score == pytest.approx(after - found.metrics["loss_before"], abs=1e-6)
    assert abs(found.score) > 1e-3, "the adapter changes nothing, so nothing is shown"
    entry = files.read_json(adapter / "eval" / "results.json")["forgetting"]
    assert entry["data"]["rows"] == 3
    with pytest.raises(OutputError, match="exists"):
        command.run(str(adapter), forgetting="general.txt", quiet=True)


def test_forgetting_needs_a_base_and_texts(base: Path, tmp_path: Path) -> None:
    Path("general.txt").write_text("Some text.\n")
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(ModelError, match="no base that is known"):
        command.run(str(base), forgetting="general.txt", quiet=True)
    with pytest.raises(DataError, match="1 of 1 rows have no text"):
        command.run(str(adapter_of(base, tmp_path / "a")), forgetting="rows.jsonl", quiet=True)


def test_a_runs_own_recipe_is_changed_by_set(base: Path, tmp_path: Path) -> None:
    rows = [{"text": text} for text in TEXTS]
    adapter = adapter_of(base, tmp_path / "adapter")
    trained = recipe(base, rows)
    original = command.adapted.recipe_of
    command.adapted.recipe_of = lambda target: trained if target.adapter is not None else None
    try:
        short = command.run(
            str(adapter), overrides=["data.max_length=10", "eval.limit=2"], out="s", quiet=True
        )
        assert short.results["instruct"].n == short.results["instruct"].cut == 2
        with pytest.raises(RecipeError, match="did you mean limit"):
            command.run(str(adapter), overrides=["eval.limitt=2"], quiet=True)
    finally:
        command.adapted.recipe_of = original
    assert find_target(str(base)).adapter is None
    with pytest.raises(RecipeError, match="comes with no recipe"):
        command.run(str(base), overrides=["eval.limit=2"], quiet=True)
    with pytest.raises(ModelError, match="no such folder"):
        command.run("nowhere", overrides=["eval.limit=2"], quiet=True)
