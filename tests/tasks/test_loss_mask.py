"""What of a row is learnt, and what every file says of it: never two answers to one question."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_llama_folder, tiny_recipe, tiny_tokenizer

from neuroada_cli import hub
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.adapter.load import find_target
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import train
from neuroada_cli.data.batch import IGNORED
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.tasks.loss_mask import LABEL, LAST, learns_prompt, loss_mask_of
from neuroada_cli.tasks.registry import get_protocol, get_task
from neuroada_cli.training import rows

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"ask {n}"},
            {"role": "assistant", "content": f"one {n}"},
            {"role": "user", "content": "and"},
            {"role": "assistant", "content": f"two {n}"},
        ]
    }
    for n in range(8)
]
PAIRS = [{"prompt": f"ask {n}: ", "completion": f"two {n}"} for n in range(8)]
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
LEARNT = {  # mask -> which of (question, first answer, last answer) are learnt
    "target only": (False, True, True),
    LAST: (False, False, True),
    "prompt and target": (True, True, True),
}


def recipe_on(folder: Path, form: str, protocol: str, learn: str | None, **more: Any) -> Recipe:
    tiny_llama_folder(folder / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (CHATS if form == "chat" else PAIRS)))
    data = {"task": "instruct", "train": str(file), "validation_rows": 2, "protocol": protocol}
    data |= {"learn": learn, "limit": None, "validation_limit": None}
    return tiny_recipe(folder / "base", folder / "run", data=data, **more)


@pytest.mark.parametrize(
    ("form", "protocol", "learn"),
    itertools.product(("chat", "pairs"), ("reft", "llm-adapters"), (None, "last", "assistant", "all")),
)
def test_the_mask_that_is_named_is_the_one_that_labels_have(
    tmp_path: Path, form: str, protocol: str, learn: str | None
) -> None:
    recipe = recipe_on(tmp_path, form, protocol, learn)
    task, reader = get_task("instruct"), hub.load_reader(tmp_path / "base", "causal-lm")
    found = rows.prepare(recipe.data, task, reader, 0).data.train
    row = next(each for each in found if each.row == 3)
    learnt = reader.tokenizer.decode(
        [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
    )
    parts = ("ask 3", "one 3", "two 3") if form == "chat" else ("ask 3", "two 3")
    expected = LEARNT[loss_mask_of(recipe.data, task, get_protocol(protocol))]
    expected = expected if form == "chat" else (expected[0], expected[2])
    assert tuple(part in learnt for part in parts) == expected


@pytest.mark.parametrize(
    ("protocol", "learn", "mask"),
    [("reft", "all", "prompt and target"), ("llm-adapters", "last", LAST), ("llm-adapters", None, None)],
)
def test_every_file_names_the_mask_that_was_trained(
    tmp_path: Path, protocol: str, learn: str | None, mask: str | None
) -> None:
    recipe = recipe_on(tmp_path, "pairs", protocol, learn, train={"epochs": 1})
    mask = mask or get_protocol(protocol).loss_mask
    train.run(recipe, quiet=True)
    run = tmp_path / "run"
    assert f"loss on {mask}" in (run / "report.html").read_text()
    adapter = find_target(str(run)).adapter
    assert adapter is not None
    assert read_adapter(adapter).settings["loss_mask"] == mask
    assert f"loss on {mask}" in (adapter.folder / "README.md").read_text()
    assert masks_of(run) == {mask}
    assert masks_of(run, "reft") == masks_of(run, "llm-adapters") == {mask}, "as it was trained"
    assert masks_of(tmp_path / "base", recipe=recipe) == {mask}, "as a run of this recipe would be"


def masks_of(target: Path, protocol: str | None = None, recipe: Recipe | None = None) -> set[str]:
    options = {"max_new_tokens": 2, "quiet": True, "overwrite": True, "out": target.parent / "out"}
    evaluate.run(target, recipe, protocol=protocol, **options)  # type: ignore[arg-type]
    entries = json.loads((target.parent / "out/results.json").read_text())
    return {entry["loss_mask"] for entry in entries.values()}


def test_what_gives_a_label_has_a_loss_on_it() -> None:
    task, rules = get_task("rte"), get_protocol("llm-adapters")
    assert (loss_mask_of(None, task, rules), learns_prompt(None, task, rules)) == (LABEL, False)
    for name in ("boolq", "gsm8k_cot", "image_text"):
        assert loss_mask_of(None, get_task(name), rules) == rules.loss_mask
        assert learns_prompt(None, get_task(name), rules)
