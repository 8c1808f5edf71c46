"""PEFT's method comparison: prompts and answers as its own scripts read them."""

from __future__ import annotations

import pytest

from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.suites.schema import load_suite
from neuroada_cli.tasks.metamath import example, same_value, stated
from neuroada_cli.tasks.registry import get_protocol, get_task


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("It is $4^2 = \\boxed{16}$.The answer is: 16", "16"),
        ("Natalia sold 48+24 = 72.\n#### 72", "72"),
        ("The answer is: 50%.", "50"),
        ("The answer is 1,000 dollars.", "1,000 dollars"),
        ("The answer is: 5\n\nQuestion: another", "5"),
        ("The answer is: 1. So the answer is 2. The answer is: 3", "3"),
        ("sixteen", ""),
    ],
)
def test_what_is_found(completion: str, found: str) -> None:
    assert stated(completion) == found


@pytest.mark.parametrize(
    ("found", "reference", "right"),
    [
        ("72", "72.0", True), ("20/35", "0.5714285714285714", True), ("72", "73", False),
        ("x^2", "x^2", True), ("", "1", False), ("1/0", "1", False), ("seventy", "70", False),
    ],
)  # fmt: skip
def test_what_counts(found: str, reference: str, right: bool) -> None:
    assert same_value(found, reference) is right


def test_rows_of_both_sets() -> None:
    trained = example(
        {"query": "2+2?", "response": "It is 4. The answer is: 4", "type": "GSM_Rephrased"}, 0, "peft"
    )
    assert trained.prompt == "Question: 2+2? Think step by step.\nAnswer:"
    assert trained.target == "It is 4. The answer is: 4"
    assert example({"question": "2+2?", "answer": "4\n#### 4"}, 1, "peft").answer == "4"
    with pytest.raises(ValueError, match="states no answer"):
        example({"query": "2+2?", "response": "It is 4."}, 0, "peft")


def test_the_recipe_is_that_of_the_comparison() -> None:
    recipe = load_recipe("llama3_2_3b_metamath")
    assert (recipe.train.batch_size, recipe.train.max_steps, recipe.optim.schedule) == (4, 5000, "cosine")
    assert (recipe.optim.weight_decay, recipe.optim.warmup_ratio, recipe.seed) == (0.1, 0.1, 0)
    protocol = get_protocol(recipe.data.protocol)
    assert (protocol.max_length, protocol.beams, protocol.loss_on_prompt) == (768, 1, True)
    assert get_task(recipe.data.task).sets["test"] == "gsm8k_openai"
    assert load_suite("peft_comparison").variants["LoRA r32"]["peer.rank"] == 32
