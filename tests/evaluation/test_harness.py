"""`eval --harness`: lm-evaluation-harness on what is loaded here, with a task whose rows lie beside it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli.adapter import load as adapted
from neuroada_cli.cli.app import main
from neuroada_cli.commands import harness, merge, train
from neuroada_cli.errors import DataError, OutputError, RecipeError
from neuroada_cli.evaluation.harness import Asked, tasks_of

TASK = """\
task: opposites
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "The opposite of {{{{question}}}} is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
ROWS = [
    {"question": "hot", "choices": ["cold", "seven"], "gold": 0},
    {"question": "up", "choices": ["green", "down"], "gold": 1},
    {"question": "big", "choices": ["small", "often"], "gold": 0},
]


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "opposites.yaml").write_text(TASK.format(rows=rows))
    return str(folder)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["eval", *words])
    return int(stop.value.code or 0), capsys.readouterr().err


def test_without_the_package_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared: Path
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else known(name))
    code, line = said(capsys, str(shared / "models" / "stories260K"), "--harness", "hellaswag")
    assert code == 6
    assert "--harness needs the package lm_eval" in line
    assert "pip install 'neuroada-cli[harness]'" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tasks", "boolq", "--num-fewshot", "2"), "--num-fewshot: has no effect without --harness"),
        (("--tasks", "boolq", "--include-path", "."), "--include-path: has no effect without --harness"),
        (("--harness", "mmlu", "--tasks", "boolq"), "--harness: takes no --tasks"),
        (("--harness", "mmlu", "--forgetting", "x.txt"), "--harness: takes no --forgetting"),
    ],
)
def test_options_that_would_have_no_effect(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    code, line = said(capsys, str(tmp_path), *words)
    assert code == 2
    assert told in line


@pytest.mark.slow  # the package takes long to import
def test_an_adapter_and_its_merged_model_get_the_scores_that_their_logits_give(
    own_tasks: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny_llama_folder(tmp_path / "model"), tmp_path / "run", train={"epochs": 1})
    train.run(recipe, quiet=True)
    merge.run(recipe.run_path, tmp_path / "merged", quiet=True)
    asked = Asked(("opposites",), own_tasks)
    of_adapter = harness.run(recipe.run_path, asked, quiet=True)["opposites"]
    of_merged = harness.run(tmp_path / "merged", asked, quiet=True)["opposites"]
    assert of_adapter.metrics == of_merged.metrics
    assert of_adapter.n == len(ROWS)

    tuned, right = adapted.load(tmp_path / "merged"), 0
    for row, sample in zip(ROWS, of_adapter.samples, strict=True):
        told = [float(answer[0][0]) for answer in sample["resps"]]
        expected = [
            loglikelihood(tuned, f"The opposite of {row['question']} is", f" {choice}")
            for choice in row["choices"]
        ]
        assert told == pytest.approx(expected, abs=1e-3)
        right += max(range(2), key=expected.__getitem__) == row["gold"]
    assert of_adapter.metrics["acc"] == pytest.approx(right / len(ROWS))

    kept = tmp_path / "merged" / "eval" / "harness"
    stored = json.loads((kept / "opposites.json").read_text())
    assert stored["metrics"] == of_merged.metrics
    assert stored["model"]["content"]
    assert len((kept / "opposites.jsonl").read_text().splitlines()) == len(ROWS)
    with pytest.raises(OutputError, match="--overwrite"):
        harness.run(tmp_path / "merged", asked, quiet=True)
    with pytest.raises(RecipeError, match="did you mean opposites"):
        tasks_of(Asked(("oposites",), own_tasks))


@pytest.mark.slow
def test_a_model_that_edits_prompts_is_asked_only_to_write(own_tasks: str, tmp_path: Path) -> None:
    """lm-eval scores a given answer in one text with its prompt, whose end LoReFT would have to know."""
    rows = Path(own_tasks) / "rows.jsonl"
    (Path(own_tasks) / "written.yaml").write_text(WRITES.format(rows=rows, most=4))
    recipe = tiny_recipe(
        tiny_llama_folder(tmp_path / "model"), tmp_path / "run", train={"epochs": 1, "method": "loreft"}
    )
    train.run(recipe, quiet=True)
    with pytest.raises(RecipeError, match=r"opposites score given answers, and loreft .* \(generate_until\)"):
        harness.run(recipe.run_path, Asked(("opposites", "written"), own_tasks), quiet=True)
    assert harness.run(recipe.run_path, Asked(("written",), own_tasks), quiet=True)["written"].n == len(ROWS)


def loglikelihood(tuned: adapted.Adapted, prompt: str, choice: str) -> float:
    prompt_ids = tuned.tokenizer(prompt).input_ids
    ids = tuned.tokenizer(prompt + choice).input_ids
    with torch.no_grad():
        logits_SV = tuned.model(torch.tensor([ids])).logits[0].float()
    after_S = torch.log_softmax(logits_SV, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return float(after_S[len(prompt_ids) - 1 :].sum())


@pytest.mark.slow
def test_rows_that_cannot_be_had_end_it_before_the_model_loads(own_tasks: str) -> None:
    (Path(own_tasks) / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be had"):
        harness.run("no-such-model", Asked(("opposites",), own_tasks), quiet=True)


WRITES = """\
task: written
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_text: "The opposite of {{{{question}}}} is"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: {most}}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
TEXTS = """\
task: texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
"""


@pytest.mark.slow
def test_prompts_that_are_cut_are_counted_by_task(
    own_tasks: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A byte is a token: of 256 the prompt has what its answer leaves. Scores stay the harness's own."""
    rows = Path(own_tasks) / "rows.jsonl"
    long = [{"question": "x" * n, "choices": ["a", "bb"], "gold": 0} for n in (3, 232, 233, 235, 236, 400)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in long))
    for name, text in {"written": WRITES, "texts": TEXTS}.items():
        (Path(own_tasks) / f"{name}.yaml").write_text(text.format(rows=rows, most=5))
    (Path(own_tasks) / "group.yaml").write_text("group: both\ntask: [opposites, written]\n")
    model = tiny_llama_folder(tmp_path / "model")
    names = ("both", "texts")
    found = harness.run(model, Asked(names, own_tasks, batch_size=2), out=tmp_path / "out")
    shown = " ".join(capfd.readouterr().out.split())
    expected = {"opposites": 0, "written": 0}
    for row in long:
        prompt = len(f"The opposite of {row['question']} is")
        expected["opposites"] += prompt + len(" bb") - 1 > 256
        expected["written"] += prompt > 256 - 5
    assert expected == {"opposites": 2, "written": 4}
    for name, count in expected.items():
        assert found[name].cut == count
        told = f"{name}: {count} of 6 prompts, with their answers, are longer than the model's 256 tokens"
        assert told in shown
        stored = json.loads((tmp_path / "out/harness" / f"{name}.json").read_text())
        assert (stored["cut"], stored["max_length"]) == (count, 256)
    assert found["texts"].cut == 0, "they are read in windows"
    assert "texts: " not in shown
    assert "indexing errors" not in caplog.text + shown

    plain = lm_eval_scores(model, own_tasks)
    for name, metric in (("opposites", "acc"), ("written", "exact_match"), ("texts", "bits_per_byte")):
        assert found[name].metrics[metric] == pytest.approx(plain[name][f"{metric},none"], abs=1e-12)

    (Path(own_tasks) / "written.yaml").write_text(WRITES.format(rows=rows, most=256))
    with pytest.raises(DataError, match="an answer of up to 256 tokens leaves a model that takes 255 no"):
        harness.run(model, Asked(("written",), own_tasks), out=tmp_path / "other", quiet=True)


@pytest.mark.slow
def test_the_models_own_settings_of_writing_are_told(
    own_tasks: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The harness leaves them on: the figures are its own, and who compares them should know."""
    (Path(own_tasks) / "written.yaml").write_text(
        WRITES.format(rows=Path(own_tasks) / "rows.jsonl", most=4).replace(
            "until:", "do_sample: false, until:"
        )
    )
    model = tiny_llama_folder(tmp_path / "model")
    plain = harness.run(model, Asked(("written",), own_tasks), out=tmp_path / "plain")
    assert "generation_config" not in capfd.readouterr().out
    settings = json.loads((model / "generation_config.json").read_text())
    own = {"max_new_tokens": 9, "repetition_penalty": 1.5, "num_beams": 1, "top_p": 0.8, "do_sample": True}
    (model / "generation_config.json").write_text(json.dumps(settings | own))
    found = harness.run(model, Asked(("written", "opposites"), own_tasks), out=tmp_path / "own")
    assert "as lm-eval leaves it on: max_new_tokens 9, repetition_penalty 1.5;" in " ".join(
        capfd.readouterr().out.split()
    )
    stored = json.loads((tmp_path / "own/harness/written.json").read_text())
    assert stored["generation_config"] == {"max_new_tokens": 9, "repetition_penalty": 1.5}

    def answers(of: dict[str, harness.Score]) -> list[str]:
        return [row["resps"][0][0] for row in of["written"].samples]

    assert answers(found) != answers(plain), "or it would not have to be told"
    harness.run(model, Asked(("opposites",), own_tasks), out=tmp_path / "given")
    assert "generation_config" not in capfd.readouterr().out, "where nothing is written it changes nothing"


def lm_eval_scores(model: Path, own_tasks: str) -> dict[str, dict[str, float]]:
    """By the harness's own model class."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = adapted.load(model)
    found = simple_evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=2),
        tasks=["opposites", "written", "texts"],
        task_manager=TaskManager(None, own_tasks, include_defaults=False),
    )
    assert found is not None
    results: dict[str, dict[str, float]] = found["results"]
    return results
