"""`train` with `train.share_prefix`: the same losses for fewer tokens."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_run import losses, tiny_llama_folder, tiny_recipe
from transformers import LlamaForCausalLM

from neuroada_cli.commands import train
from neuroada_cli.errors import ModelError


@contextmanager
def counting_tokens() -> Iterator[list[int]]:
    """Inside, filled with how many tokens go through a Llama in each pass."""
    seen: list[int] = []

    with pytest.MonkeyPatch.context() as patch:
        own = LlamaForCausalLM.forward

        def counted(self: LlamaForCausalLM, *args: Any, **given: Any) -> Any:
            seen.append(given["input_ids"].numel())
            return own(self, *args, **given)

        counted.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
        patch.setattr(LlamaForCausalLM, "forward", counted)
        yield seen


def test_a_prefix_that_is_computed_once_trains_the_same(tmp_path: Path) -> None:
    """Rows of one question form, the same validation loss, and fewer tokens computed."""
    folder = tiny_llama_folder(tmp_path / "model", attention_dropout=0.0)
    rows = [{"instruction": f"What is {n} and one?", "output": str(n + 1)} for n in range(14)]
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    data = {"task": "instruct", "train": str(source), "validation_rows": 4, "limit": None}
    data |= {"validation_limit": None}
    found, computed = [], []
    for shared in (False, True):
        section = {"share_prefix": shared, "max_steps": 3, "batch_size": 10, "micro_batch_size": 10}
        recipe = tiny_recipe(folder, tmp_path / f"run-{shared}", train=section, data=data)
        with counting_tokens() as seen:
            result = train.run(recipe, quiet=True)
        found.append([value for _, *values in losses(result.run_dir) for value in values])
        computed.append(sum(seen))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert computed[1] < computed[0] / 2


def test_a_model_that_drops_entries_shares_no_prefix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"drops entries at random.*train\.share_prefix: false"):
        train.run(
            tiny_recipe(
                tiny_llama_folder(tmp_path / "model"), tmp_path / "run", train={"share_prefix": True}
            ),
            quiet=True,
        )
