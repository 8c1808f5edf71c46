"""What the table of trainings leaves out is refused, by a line that says why and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_loop import BASES, TILE, WAYS, Case, cases, every_case, packs, refused
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.errors import RecipeError
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.training import preflight

LEFT_OUT = sorted({(case.way, case.base) for case in every_case() if refused(case)})
NOT_PACKED = sorted({case.way for case in cases() if not packs(case)})


def recipe_of(way: str, base: str, folder: Path = Path("base"), **train: Any) -> Recipe:
    method, built, settings = WAYS[way]
    dtype, quantization = BASES[base]
    given = {key: value for key, value in built.items() if key == "delta_dtype"}
    return tiny_recipe(
        folder, folder.parent / "run",
        model={"dtype": dtype, "quantization": quantization},
        select={"tile": TILE if METHODS[method].tiles else None},
        train={"method": method, **given, **settings, **train},
    )  # fmt: skip


@pytest.mark.parametrize("case", sorted({(c.way, c.base) for c in cases()}), ids=", ".join)
def test_what_is_in_the_table_can_be_asked_for(case: tuple[str, str]) -> None:
    assert recipe_of(*case).train.method == WAYS[case[0]][0]


@pytest.mark.parametrize("case", LEFT_OUT, ids=", ".join)
def test_bases_on_which_a_method_cannot_train(case: tuple[str, str]) -> None:
    way, base = case
    quantization, method = BASES[base][1], WAYS[way][0]
    why = rf"train.method={method} cannot train weights in model.quantization={quantization}; use method .+"
    if way == "neuroada choosing anew":
        why = "train.reselect_every does not go with model.quantization; remove one of the two"
    with pytest.raises(RecipeError, match=why) as caught:
        recipe_of(way, base)
    assert "\n" not in re.sub(r"\s+$", "", str(caught.value))


@pytest.mark.parametrize("way", NOT_PACKED)
def test_methods_that_do_not_pack(way: str, tmp_path: Path) -> None:
    """By the recipe, or, where it is the task that does not, before anything is loaded."""
    if METHODS[WAYS[way][0]].packs:
        recipe = recipe_of(way, "fp32", tiny_llama_folder(tmp_path / "llama"), packing=True)
        data = recipe.data.model_copy(update={"task": "mrpc"})
        with pytest.raises(RecipeError, match=r"train.packing is for tasks that generate, not .*; remove it"):
            preflight.check(recipe.model_copy(update={"data": data}), overwrite=False)
    else:
        with pytest.raises(RecipeError, match=r"train.packing has no prompt per row for .*; remove it"):
            recipe_of(way, "fp32", packing=True)


def test_a_case_is_trained_or_refused() -> None:
    assert {str(case) for case in every_case() if not refused(case)} == {str(case) for case in cases()}
    assert {WAYS[way][0] for way in WAYS} == METHODS.keys()
    assert LEFT_OUT
    assert Case("full", "nf4", "all-linear") not in cases()
