"""`eval` as it is used: on bases, adapters and merged folders, stopped and continued, refused in time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_bert, pico_llama
from tiny_choice import selected
from tiny_tokenizer import SIZE, byte_tokenizer

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.cli.app import app, main
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import merge, predictions
from neuroada_cli.errors import DataError, ModelError, NumericsError, OutputError, RecipeError, Stopped
from neuroada_cli.evaluation.records import Records
from neuroada_cli.evaluation.results import EvalResult
from neuroada_cli.recipe.load import recipe_from, to_yaml

NEW = 5


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sets in the published form, in the folder that is searched first."""
    folder = tmp_path / "sets"
    monkeypatch.setenv("NEUROADA_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    questions = [
        {"instruction": f"Is {n * 37} even?", "answer": ["false", "true"][n % 3 > 0]} for n in range(11)
    ]
    pairs = [{"sentence1": f"a{n}", "sentence2": "b" * n, "label": n % 2} for n in range(12)]
    for name, rows in {
        "boolq/test": questions,
        "piqa/test": questions[:5],
        "SVAMP/test": [{"instruction": f"{n} + 1?", "answer": str(n + 1)} for n in range(4)],
        "glue_rte/validation": pairs,
    }.items():
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def base_folder(folder: Path, build: Callable[..., Any] = pico_llama, **changes: object) -> Path:
    name = "vocabulary" if build is pico_llama else "vocab_size"
    build(**{name: SIZE, "max_position_embeddings": 512} | changes).save_pretrained(folder)
    byte_tokenizer(pairs=build is pico_bert).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


def adapter_folder(base: Path, folder: Path, task: str = "causal-lm", recipe: str | None = None) -> Path:
    """An adapter as training leaves it, with random deltas in place of trained ones."""
    labels = None if task == "causal-lm" else 2
    selection = selected(base, k=2, task=task, num_labels=labels)
    generator = torch.Generator().manual_seed(5)
    adapter = adapters.Adapter(
        selection=selection,
        deltas={n: 0.5 * torch.randn(i.shape, generator=generator) for n, i in selection.indices.items()},
        whole={},
        base=str(base),
        revision=None,
        task=task,
        settings={"dtype": "fp32", "num_labels": labels},
    )
    with files.atomic_folder(folder, overwrite=True) as temporary:
        adapters.write_adapter(temporary, adapter, tokenizer=hub.load_tokenizer(base), recipe_yaml=recipe)
    return folder


def run(target: Path | str, *tasks: str, **options: Any) -> EvalResult:
    return evaluate.run(
        str(target), tasks=tasks, **{"max_new_tokens": NEW, "batch_size": 2, "quiet": True} | options
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but the lock, with the times taken out."""
    found = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        text = file.read_text()
        if file.name == "results.json":
            text = json.dumps({k: v | {"seconds": 0} for k, v in json.loads(text).items()})
        if file.name == "report.html":
            text = re.sub(r">[\d.]+</td></tr>", "></td></tr>", text)  # rows/s
        found[str(file.relative_to(folder))] = text.encode()
    return found


# -- what is written


def test_a_base_model(base: Path, tmp_path: Path) -> None:
    result = run(base, "boolq", "SVAMP", dtype="fp32")
    assert result.folder == Path("eval/base"), "nothing is put into a foreign model folder"
    rows = [json.loads(line) for line in Path("eval/base/predictions/boolq.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(11))
    assert set(rows[0]) == {
        "row",
        "prompt",
        "prediction",
        "extracted",
        "reference",
        "correct",
        "strict",
        "leaked",
        "asked",
        "credit",
    }
    assert rows[0]["leaked"] is None, "what a base was trained on is not known"
    assert rows[1]["prompt"] == "Is 37 even?\n"
    entry = json.loads(Path("eval/base/results.json").read_text())["boolq"]
    source = {"source": "boolq/test.jsonl", "rows": "all rows"}
    assert entry | {"data": entry["data"] | source} == entry
    assert (entry["protocol"], entry["loss_mask"], entry["decoding"]) == ("reft", "target only", "greedy")
    assert (entry["n"], entry["unparsed"], entry["score"], entry["dtype"]) == (11, 11, 0.0, "float32")
    assert entry["model"] == hub.fingerprint(base)
    assert len(entry["data"]["sha256"]) == 64
    assert {"torch", "transformers", "neuroada"} <= set(entry["versions"])
    assert str(tmp_path) not in Path("eval/base/results.json").read_text()


def test_merged_predictions_are_the_adapters_row_by_row(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = run(adapter_folder(base, tmp_path / "adapter"), "boolq", "SVAMP", quiet=False)
    assert "large tensors are only sampled" in " ".join(capsys.readouterr().out.split())
    merge.run(tmp_path / "adapter", tmp_path / "merged", quiet=True)
    merged = run(tmp_path / "merged", "boolq", "SVAMP")  # in the data type that it was merged to
    assert tuned.predictions == merged.predictions
    assert tuned.predictions != run(base, "boolq", "SVAMP", dtype="fp32").predictions
    assert (tuned.folder, merged.folder) == (tmp_path / "adapter/eval", tmp_path / "merged/eval")
    files.verify_folder(tmp_path / "adapter")
    entry = json.loads((tmp_path / "adapter/eval/results.json").read_text())["boolq"]
    manifest = files.verify_folder(tmp_path / "adapter")["files"]
    assert entry["adapter_sha256"] == manifest["adapter_model.safetensors"]["sha256"]


def test_a_run_folder_and_its_recipe(base: Path, tmp_path: Path) -> None:
    recipe = recipe_from(
        {
            "name": "pico",
            "model": {"path": str(base)},
            "data": {"task": "boolq", "protocol": "llm-adapters"},
            "eval": {"tasks": ["piqa"], "limit": 3, "max_new_tokens": 4, "batch_size": 8},
        }
    )
    adapter_folder(base, tmp_path / "run/checkpoint-7", recipe=to_yaml(recipe))
    (tmp_path / "run/metrics.jsonl").write_text("")
    files.atomic_link(tmp_path / "run/last", "checkpoint-7")
    result = evaluate.run(str(tmp_path / "run"), quiet=True)
    assert result.folder == tmp_path / "run/eval"
    entry = json.loads((tmp_path / "run/eval/results.json").read_text())["piqa"]
    assert (entry["n"], entry["max_new_tokens"], entry["batch_size"]) == (3, 4, 8)
    assert entry["data"]["rows"] == "the first 3 of all rows"
    assert (entry["protocol"], entry["decoding"]) == ("llm-adapters", "4 beams")
    assert entry["loss_mask"] == "prompt and target"
    other = run(tmp_path / "run/last", "piqa", protocol="reft")
    assert other.folder == tmp_path / "run/eval/checkpoint-7", "pruning a checkpoint keeps its results"
    entry = json.loads((other.folder / "results.json").read_text())["piqa"]
    assert (entry["protocol"], entry["loss_mask"]) == ("reft", "prompt and target"), "as it was trained"


def test_a_recipe_names_its_base(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "pico.yaml"
    file.write_text(f"name: pico\nmodel: {{path: {base}, dtype: fp32}}\ndata: {{task: piqa}}\n")
    assert run(str(file)).predictions == run(base, "piqa", dtype="fp32", out="other").predictions


def test_a_classifier_reports_on_the_rows_that_chose_nothing(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "bert", pico_bert)
    tuned = run(adapter_folder(base, tmp_path / "adapter", "sequence-classification"), "rte")
    result = tuned.results["rte"]
    assert (result.n, result.metric, result.unparsed) == (6, "accuracy", 0)
    rows = [p.row for p in tuned.predictions["rte"]]
    assert rows == sorted(rows)
    assert rows != list(range(6)), "numbered as in the source"
    merge.run(tmp_path / "adapter", tmp_path / "merged", quiet=True)
    assert run(tmp_path / "merged", "rte").predictions == tuned.predictions


def test_a_random_head_is_told(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(base, "rte", quiet=False)
    assert "score.weight: random, in none of the files, so scores are chance" in capsys.readouterr().out


@pytest.mark.parametrize("foreign", [False, True])
def test_a_missing_strict_scorer_is_told_once(
    base: Path, foreign: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "no strict column for numbers: pip install 'neuroada-cli[strict]'"
    rows = [{"instruction": "?", "prediction": "4", "answer": answer} for answer in (4, 5)]

    def score() -> str:
        if foreign:
            predictions.run(write_rows(Path("t.jsonl"), rows), "gsm8k", "reft")
        else:
            run(base, "SVAMP", "boolq", quiet=False, overwrite=True)
        return capsys.readouterr().out

    if find_spec("math_verify") is not None:
        assert told not in score()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert score().count(told) == 1
    run(base, "boolq", quiet=False, out="letters")
    assert told not in capsys.readouterr().out


def test_the_table_and_the_note_on_a_part(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (data / "piqa/test.jsonl").rename(data / "piqa/test_5.jsonl")
    run(base, "boolq", "piqa", quiet=False)
    shown = capsys.readouterr().out
    assert "piqa: piqa/test_5.jsonl is only a part of the published rows" in shown
    entries = json.loads(Path("eval/base/results.json").read_text())
    parts = [entries[name]["data"]["rows"] for name in ("boolq", "piqa")]
    assert parts == ["all rows", "a part of the published rows"]
    entry = run(base, "piqa", limit=3, out="limited").folder / "results.json"
    assert json.loads(entry.read_text())["piqa"]["data"]["rows"] == (
        "the first 3 of a part of the published rows"
    )
    assert [line for line in shown.splitlines() if "boolq" in line and "11" in line and "63.6" in line]
    assert "mean" in shown


def test_instructions_of_ones_own_are_scored_on_what_was_held_out(base: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    tokenizer.save_pretrained(base)
    turns = [[("user", f"Say {n}"), ("assistant", str(n))] for n in range(9)]
    rows = [{"messages": [{"role": r, "content": c} for r, c in turn]} for turn in turns]
    mine = write_rows(tmp_path / "mine.jsonl", rows)
    recipe = recipe_from(
        {
            "name": "own",
            "model": {"path": str(base)},
            "data": {"task": "instruct", "train": str(mine), "validation_rows": 2},
        }
    )
    result = run(base, recipe=recipe)
    assert [(p.row, p.prompt, p.reference) for p in result.predictions["instruct"]] == [
        (7, "Say 7\n", "7"),
        (8, "Say 8\n", "8"),
    ]


# -- what was trained on


def trained_on(base: Path, run_dir: Path, rows: list[dict[str, Any]], **data: Any) -> Path:
    """A run folder whose recipe names these training rows (written beside it)."""
    train = write_rows(run_dir.with_suffix(".jsonl"), rows)
    recipe = recipe_from(
        {
            "name": "pico",
            "model": {"path": str(base)},
            "data": {"task": "commonsense", "train": str(train)} | data,
            "eval": {"tasks": ["boolq", "piqa"]},
        }
    )
    adapter_folder(base, run_dir / "checkpoint-7", recipe=to_yaml(recipe))
    (run_dir / "metrics.jsonl").write_text("")
    files.atomic_link(run_dir / "last", "checkpoint-7")
    return run_dir


# the first three questions of boolq in other spelling, which are piqa's, too; the last two are nobody's
SEEN = [{"instruction": f"IS  {n * 37}  EVEN", "answer": "true"} for n in (0, 1, 2, 50, 51)]


def test_test_questions_that_were_trained_on_are_shown(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    target = trained_on(base, tmp_path / "run", SEEN)
    run(target, "boolq", "piqa", "SVAMP", quiet=False)
    shown = capsys.readouterr().out
    assert "accuracy" in shown, "the heading of the scores, where all are of one kind"
    lines = [line.split() for line in shown.splitlines()]
    [boolq, piqa, svamp] = [line for line in lines if line[:1] in (["boolq"], ["piqa"], ["SVAMP"])]
    assert (boolq[-2], piqa[-2], svamp[-2]) == ("27%", "60%", "0")
    assert "mean of 1 clean" in shown
    entries = json.loads((tmp_path / "run/eval/results.json").read_text())
    assert [entries[name]["leaked"] for name in ("boolq", "piqa", "SVAMP")] == [3, 3, 0]
    assert entries["boolq"]["training_set"].endswith("run.jsonl")
    leaked = {
        name: [row["row"] for row in rows_of(tmp_path / "run/eval", name) if row["leaked"]]
        for name in ("boolq", "piqa", "SVAMP")
    }
    assert leaked == {"boolq": [0, 1, 2], "piqa": [0, 1, 2], "SVAMP": []}
    assert {row["leaked"] for row in rows_of(tmp_path / "run/eval", "SVAMP")} == {False}


def rows_of(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = (folder / "predictions" / f"{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_merged_folder_remembers_what_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    """train, merge, eval OUT is the usual way: tasks, protocol, mask and leakage are the adapter's."""
    target = trained_on(base, tmp_path / "run", SEEN, protocol="llm-adapters")
    merge.run(target, tmp_path / "merged", quiet=True)
    files.verify_folder(tmp_path / "merged", needed=("recipe.yaml",))
    run(tmp_path / "merged", limit=3)
    entries = json.loads((tmp_path / "merged/eval/results.json").read_text())
    assert set(entries) == {"boolq", "piqa"}
    assert [entries[name]["leaked"] for name in ("boolq", "piqa")] == [3, 3]
    assert (entries["boolq"]["protocol"], entries["boolq"]["decoding"]) == ("llm-adapters", "4 beams")
    run(tmp_path / "merged", "boolq", limit=3, protocol="reft", out="reft")
    entry = json.loads(Path("reft/results.json").read_text())["boolq"]
    assert (entry["protocol"], entry["loss_mask"], entry["leaked"]) == ("reft", "prompt and target", 3)


@pytest.mark.parametrize(
    "recipe", ["name: stray\n", ": : [", "", "name: x\nmodel: {path: x}\ndata: {task: piqa}"]
)
@pytest.mark.parametrize("manifest", [None, '{"name": "an app"}', "{"])
def test_a_stray_recipe_in_a_foreign_folder_is_not_believed(
    base: Path, recipe: str, manifest: str | None
) -> None:
    (base / "recipe.yaml").write_text(recipe)
    if manifest is not None:
        (base / "manifest.json").write_text(manifest)
    assert adapted.recipe_of(adapted.find_target(str(base))) is None
    with pytest.raises(RecipeError, match="no task to score"):
        run(base)


def test_recipes_that_came_later_or_were_changed(base: Path, tmp_path: Path) -> None:
    merge.run(adapter_folder(base, tmp_path / "adapter"), tmp_path / "merged", quiet=True)
    assert not (tmp_path / "merged/recipe.yaml").exists(), "the adapter has none"
    for folder in ("adapter", "merged"):
        (tmp_path / folder / "recipe.yaml").write_text("name: stray\n")
    assert adapted.recipe_of(adapted.find_target(str(tmp_path / "merged"))) is None
    with pytest.raises(ModelError, match=r"does not list recipe\.yaml"):
        adapted.recipe_of(adapted.find_target(str(tmp_path / "adapter")))
    with pytest.raises(ModelError, match=r"does not list recipe\.yaml"):
        merge.run(tmp_path / "adapter", tmp_path / "other", quiet=True)
    target = trained_on(base, tmp_path / "run", SEEN)
    merge.run(target, tmp_path / "changed", quiet=True)
    with (tmp_path / "changed/recipe.yaml").open("a") as file:
        file.write("# mine now\n")
    with pytest.raises(ModelError, match=r"recipe\.yaml has \d+ bytes"):
        run(tmp_path / "changed", "boolq")


def test_no_folder_can_switch_code_on(base: Path, tmp_path: Path) -> None:
    recipe = recipe_from(
        {"name": "x", "model": {"path": str(base), "trust_remote_code": True}, "data": {"task": "piqa"}}
    )
    adapter_folder(base, tmp_path / "adapter", recipe=to_yaml(recipe))
    merge.run(tmp_path / "adapter", tmp_path / "merged", quiet=True)
    for folder in ("adapter", "merged"):
        found = adapted.recipe_of(adapted.find_target(str(tmp_path / folder)))
        assert found is not None
        assert (found.data.task, found.model.trust_remote_code) == ("piqa", False)


def test_only_rows_that_were_learnt_count(base: Path, tmp_path: Path) -> None:
    """Held-out rows were not, nor those that were left out for being test questions."""
    for name, data, leaked in (
        ("held", {"validation_rows": 4}, 1),
        ("dropped", {"drop_leaked": True}, 0),
    ):
        target = trained_on(base, tmp_path / name, SEEN, **data)
        assert run(target, "boolq").results["boolq"].leaked == leaked


def test_an_unknown_training_set_is_told_and_stops_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = trained_on(base, tmp_path / "run", SEEN)
    (tmp_path / "run.jsonl").unlink()
    result = run(target, "boolq", quiet=False).results["boolq"]
    shown = capsys.readouterr().out
    assert "which rows were trained on is not known" in shown
    assert "run.jsonl: no such data set" in shown
    assert "leaked" not in shown
    assert (result.leaked, result.clean) == (None, None)
    assert run(base, "boolq").results["boolq"].leaked is None, "a base without a recipe"


# -- decoding


def sampling(base: Path, seed: int = 42) -> Any:
    return recipe_from(
        {
            "name": "pico",
            "seed": seed,
            "model": {"path": str(base), "dtype": "fp32"},
            "data": {"task": "gsm8k_cot"},
            "eval": {"tasks": ["boolq"], "decoding": "sampling"},
        }
    )


def test_sampled_results_say_so_and_are_not_mixed_with_others(base: Path, tmp_path: Path) -> None:
    entries = {}
    for name, recipe in {"drawn": sampling(base), "other": sampling(base, 7)}.items():
        run(base, recipe=recipe, out=name)
        entries[name] = json.loads(Path(name, "results.json").read_text())["boolq"]
    assert entries["drawn"]["decoding"] == "sampling (T 0.1, top-p 0.75, top-k 40, 4 beams), seed 42"
    assert entries["other"]["decoding"].endswith(", seed 7")
    with pytest.raises(OutputError, match="made under other settings"):
        run(base, "boolq", "piqa", dtype="fp32", out="drawn")
    rules = recipe_from(sampling(base).model_dump() | {"data": {"task": "boolq", "protocol": "llm-adapters"}})
    with pytest.raises(RecipeError, match="decoding=sampling: protocol llm-adapters has none"):
        run(base, recipe=rules, out="none")
    with pytest.raises(RecipeError, match="rte writes no text"):
        run(base, "rte", recipe=sampling(base), out="none")


def test_sampling_goes_on_after_a_stop(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(base, "SVAMP", recipe=sampling(base), out="whole")
    add, left = Records.add, [1]

    def stopping(*args: Any) -> None:
        add(*args)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Records, "add", stopping)
    with pytest.raises(Stopped):
        run(base, "SVAMP", recipe=sampling(base), out="cut")
    run(base, "SVAMP", recipe=sampling(base), out="cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_decoding_on_the_command_line(base: Path, tmp_path: Path) -> None:
    (tmp_path / "pico.yaml").write_text(f"name: pico\nmodel: {{path: {base}}}\ndata: {{task: piqa}}\n")
    words = ["eval", str(base), "--recipe", "pico.yaml", "--set", "eval.decoding=sampling", "--out", "o"]
    app([*words, "--max-new-tokens", "2"], standalone_mode=False)
    assert json.loads(Path("o/results.json").read_text())["piqa"]["decoding"].startswith("sampling (T 0.1")
    with pytest.raises(RecipeError, match="decoding='beam'"):
        app([*words[:5], "eval.decoding=beam", *words[6:]], standalone_mode=False)


# -- stopped and continued


def test_a_stopped_evaluation_goes_on_and_ends_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first of two tasks, between them, and in the second."""
    tasks = ("boolq", "piqa")
    run(base, *tasks, out=tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    add = Records.add
    for stop_after in (2, 6, 8):
        out, left = tmp_path / f"cut{stop_after}", [stop_after]

        def stopping(*args: Any, left: list[int] = left) -> None:
            add(*args)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Records, "add", stopping)
            with pytest.raises(Stopped, match=r"rows done so far are kept.*start it again") as stopped:
                run(base, *tasks, out=out)
            assert stopped.value.exit_code == 130
        left[0] = -1
        run(base, *tasks, out=out)
        assert contents(out) == whole


def test_a_killed_evaluation_goes_on_and_ends_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    """A process of its own, killed (-9) when it has kept two batches of twelve."""
    rows = [{"instruction": f"Is {n} odd?", "answer": "true"} for n in range(24)]
    write_rows(data / "boolq/test.jsonl", rows)
    run(base, "boolq", out="whole", max_new_tokens=16, device="cpu")
    words = [sys.executable, "-m", "neuroada_cli", "eval", str(base), "--tasks", "boolq", "--out", "cut"]
    words += ["--batch-size", "2", "--max-new-tokens", "16", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    partial = tmp_path / "cut/predictions/boolq.partial.jsonl"
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and lines_of(partial) < 3:
            time.sleep(0.001)
        process.kill()
    assert 3 <= lines_of(partial) < 13, "killed midway"
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        add = Records.add
        patched.setattr(Records, "add", lambda *args: (done.append(len(args[2])), add(*args)))
        run(base, "boolq", out="cut", max_new_tokens=16, device="cpu")
    assert 0 < sum(done) <= 20, "only what was left"
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_answers_of_a_model_that_was_written_over_are_not_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are the file's pages (findings/loaded-weights-follow-the-file.sh)."""
    run(base, "boolq", out="whole")
    file = base / "model.safetensors"
    right = file.read_bytes()
    tensors, metadata = files.read_tensors(file)
    files.write_tensors(tmp_path / "other", {name: -tensor for name, tensor in tensors.items()}, metadata)
    del tensors
    add = Records.add

    def over(content: bytes) -> None:
        with file.open("r+b") as opened:
            opened.write(content)

    def adding(*args: Any) -> None:
        add(*args)
        over((tmp_path / "other").read_bytes())

    with monkeypatch.context() as patched:
        patched.setattr(Records, "add", adding)
        with pytest.raises(ModelError, match=r"model\.safetensors: was written to while the model in memory"):
            run(base, "boolq", out="cut")
    assert 1 < lines_of(tmp_path / "cut/predictions/boolq.partial.jsonl") < 12
    over(right)
    run(base, "boolq", out="cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def lines_of(file: Path) -> int:
    """Whole lines; the first is the head."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_the_second_time_does_only_what_is_left(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(base, "boolq", out=tmp_path / "out")
    done: list[int] = []
    monkeypatch.setattr(Records, "add", lambda self, task, batch, *rest: done.extend(r.row for r in batch))
    result = run(base, "boolq", "piqa", out=tmp_path / "out")
    assert sorted(done) == list(range(5)), "boolq's rows were not done again"
    assert set(result.results) == {"boolq", "piqa"}


def test_what_exists_is_not_overwritten_unasked(base: Path, tmp_path: Path) -> None:
    run(base, "boolq", out=tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match=r"boolq\.jsonl: exists; add --overwrite"):
        run(base, "boolq", out=tmp_path / "out")
    with pytest.raises(OutputError, match="made under other settings"):
        run(base, "boolq", "piqa", out=tmp_path / "out", max_new_tokens=3)
    assert contents(tmp_path / "out") == before
    run(base, "boolq", out=tmp_path / "out", max_new_tokens=3, overwrite=True)
    entry = json.loads((tmp_path / "out/results.json").read_text())["boolq"]
    assert entry["max_new_tokens"] == 3


# -- refused


def test_refused_before_anything_is_loaded_or_written(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(RecipeError, match="bolq is not a task; did you mean boolq"):
        run(base, "bolq")
    with pytest.raises(RecipeError, match="no task to score"):
        run(base)
    with pytest.raises(RecipeError, match="need different heads"):
        run(base, "boolq", "rte")
    with pytest.raises(RecipeError, match="is not a protocol"):
        run(base, "boolq", protocol="refd")
    with pytest.raises(RecipeError, match="instruct has no test set of its own"):
        run(base, "instruct")
    write_rows(data / "boolq/test.jsonl", [{"instruction": "a", "answer": "true"}, {"instruction": "a"}])
    with pytest.raises(DataError, match=r"test\.jsonl:2: has no field 'answer'"):
        run(base, "boolq")
    (data / "boolq/test.jsonl").write_text('{"instruction": "a", "answer": "tr')
    with pytest.raises(DataError, match=r"test\.jsonl:1: not valid JSON"):
        run(base, "boolq")
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--tasks", "bolq"], 2, "bolq is not a task; did you mean boolq"),
        (["--tasks", "boolq", "--protocol", "refd"], 2, "refd"),
        (["--tasks", "hellaswag", "--data-dir", "absent"], 3, "absent: no such folder"),
        (["--tasks", "empty"], 3, "holds no rows"),
        (["--tasks", "boolq", "--max-new-tokens", "600"], 3, "do not fit"),
        (["--tasks", "piqa", "--out", "done"], 7, "exists; add --overwrite"),
    ],
)
def test_exit_codes(
    base: Path, data: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(data / "winogrande/test.jsonl", [])
    if words[-1] == "done":
        run(base, "piqa", out="done")
    words = ["winogrande" if word == "empty" else word for word in words]
    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(base), *words])
    told = capsys.readouterr().err
    assert stopped.value.code == code
    assert message in told
    assert len(told.strip().splitlines()) == 1, "one line, no traceback"


BAD_BYTES = {
    b'{"instruction": "a", "answer": "tr': "not valid JSON",
    b'{"instruction": "a\0", "answer": "true"}': "NUL",
    b'{"instruction": "\xff", "answer": "true"}': "not UTF-8",
    b'{"instruction": "", "answer": 7}': "answer is int",
}


@pytest.mark.parametrize(("line", "message"), BAD_BYTES.items(), ids=list(BAD_BYTES.values()))
def test_bad_lines_have_a_place_and_an_exit_code(
    base: Path, data: Path, line: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = b'{"instruction": "a", "answer": "true"}\n'
    (data / "boolq/test.jsonl").write_bytes(b"\xef\xbb\xbf" + good + line)  # a BOM is no mistake
    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(base), "--tasks", "boolq"])
    told = capsys.readouterr().err
    assert stopped.value.code == 3
    assert "test.jsonl:2: " in told
    assert message in told


def test_models_that_are_not_there_or_not_right(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        run("no/such/model at all", "boolq")
    adapter = adapter_folder(base, tmp_path / "adapter")
    with pytest.raises(ModelError, match="was trained for causal-lm, not for sequence-classification"):
        run(adapter, "rte")
    base_folder(base, initializer_range=0.3)
    with pytest.raises(ModelError, match="base"):
        run(adapter, "boolq")


def test_a_broken_model_scores_nothing(base: Path, tmp_path: Path) -> None:
    model = pico_llama(vocabulary=SIZE, max_position_embeddings=512)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    model.save_pretrained(base)
    with pytest.raises(NumericsError, match=r"lm_head\.weight, row 3 of the model holds NaN"):
        run(base, "boolq", out=tmp_path / "out")
    assert not (tmp_path / "out/results.json").exists()


def test_the_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "eval",
        str(base),
        "--tasks",
        "boolq,piqa",
        "--limit",
        "2",
        "--max-new-tokens",
        "2",
        "--out",
        "o",
    ]
    app(words, standalone_mode=False)
    assert "report, predictions and results: o" in capsys.readouterr().out
    assert len((tmp_path / "o/predictions/piqa.jsonl").read_text().splitlines()) == 2
    file = write_rows(tmp_path / "t.jsonl", [{"instruction": "?", "prediction": "4", "answer": "4"}])
    app(["eval", "--predictions", str(file), "--tasks", "SVAMP"], standalone_mode=False)
    assert "SVAMP" in capsys.readouterr().out
    with pytest.raises(DataError, match="no such file"):
        app(["eval", "--predictions", "absent.jsonl", "--tasks", "SVAMP"], standalone_mode=False)


# -- other prompts are other rows


TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
PLAIN_TURNS = "{% for m in messages %}{{ mark|default('') + m['content'] + '\n' }}{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }}\n" + PLAIN_TURNS


def own_recipe(base: Path, train: Path, **data: Any) -> Any:
    about = {"task": "instruct", "train": str(train), "validation_rows": 6, "validation_limit": None}
    return recipe_from({"name": "own", "model": {"path": str(base)}, "data": about | data})


def stopped_after(batches: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
    add, left = Records.add, [batches]

    def stopping(*args: Any) -> None:
        add(*args)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Records, "add", stopping)
        with pytest.raises(Stopped):
            work()


OTHER_PROMPTS = {
    "format": ({"format": "prompt-completion"}, {"format": "chat"}),
    "columns": ({}, {"columns": {"prompt": "other", "completion": "completion"}}),
    "references": ({}, {"columns": {"prompt": "prompt", "completion": "other"}}),
    "template": ({"format": "chat"}, {"format": "chat", "chat_template": "other.jinja"}),
    "template's words": (
        {"format": "chat", "chat_template_kwargs": {"mark": "a"}},
        {"format": "chat", "chat_template_kwargs": {"mark": "b"}},
    ),
    "day": (
        {"format": "chat", "chat_template": "dated.jinja", "date": "2024-01-01"},
        {"format": "chat", "chat_template": "dated.jinja", "date": "2024-01-02"},
    ),
}


@pytest.mark.parametrize(("before", "after"), OTHER_PROMPTS.values(), ids=list(OTHER_PROMPTS))
def test_an_evaluation_under_other_prompts_starts_anew(
    base: Path,
    tmp_path: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever in a recipe changes the prompt: what is left at the end is that of one evaluation alone."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = PLAIN_TURNS
    tokenizer.save_pretrained(base)
    for name, text in {"other": TURNS, "dated": DATED}.items():
        (tmp_path / f"{name}.jinja").write_text(text)
    mine = write_rows(
        tmp_path / "mine.jsonl",
        [{"prompt": f"Say {n}", "completion": str(n), "other": f"Tell {n}"} for n in range(9)],
    )
    run(base, recipe=own_recipe(base, mine, **after), out="whole")
    for state in ("going on", "starting anew"):
        stopped_after(2, monkeypatch, lambda: run(base, recipe=own_recipe(base, mine, **before), out="cut"))
        told = before if state == "going on" else after
        capsys.readouterr()
        run(base, recipe=own_recipe(base, mine, **told), out="cut", quiet=False)
        shown = " ".join(capsys.readouterr().out.split())
        if state == "going on":
            assert "instruct: going on after 4 rows" in shown
            shutil.rmtree(tmp_path / "cut")
    assert "going on" not in shown
    assert "starting anew, since 4 rows done before had other settings (data.prompts_sha256)" in shown
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    with pytest.raises(OutputError, match=r"made under other settings \(data\.prompts_sha256\)"):
        run(base, "instruct", "boolq", recipe=own_recipe(base, mine, **before), out="cut")


def test_an_evaluation_with_other_arithmetic_or_scorers_starts_anew(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def attending(kind: str) -> Any:
        model = {"path": str(base), "attention": kind, "dtype": "fp32"}
        return recipe_from({"name": "a", "model": model, "data": {"task": "SVAMP"}})

    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    stopped_after(1, monkeypatch, lambda: run(base, recipe=attending("sdpa"), out="cut"))
    stopped_after(1, monkeypatch, lambda: run(base, recipe=attending("eager"), out="cut", quiet=False))
    assert "2 rows done before had other settings (attention)" in " ".join(capsys.readouterr().out.split())
    monkeypatch.delitem(sys.modules, "math_verify")
    if find_spec("math_verify") is not None:
        found = run(base, recipe=attending("eager"), out="cut", quiet=False)
        assert "(versions.math-verify)" in capsys.readouterr().out
        assert {row.strict for row in found.predictions["SVAMP"]} == {False}


def test_classes_in_another_order_are_other_references(tmp_path: Path) -> None:
    rows = [{"text": f"a{n}", "label": ["no", "yes"][n % 2]} for n in range(8)]
    mine = write_rows(tmp_path / "mine.jsonl", rows)
    base = base_folder(tmp_path / "bert", pico_bert)
    told = []
    for labels in (["no", "yes"], ["yes", "no"]):
        about = {"task": "text_classes", "train": str(mine), "validation_rows": 4, "labels": labels}
        recipe = recipe_from({"name": "own", "model": {"path": str(base)}, "data": about})
        folder = run(base, recipe=recipe, out="-".join(labels)).folder
        told.append(json.loads((folder / "results.json").read_text())["text_classes"]["data"])
    assert told[0]["sha256"] == told[1]["sha256"]
    assert told[0]["prompts_sha256"] != told[1]["prompts_sha256"]
