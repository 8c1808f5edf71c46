"""The table of families holds nothing wrong, and a type that is swept comes out as the table says."""

from __future__ import annotations

import json
from pathlib import Path

import oracles
import pictures_learnt
import pytest
import sweep
import transformers
from swept_types import SWEPT
from transformers.models.auto import modeling_auto

from neuroada_cli.hub.kinds import CLASSES
from neuroada_cli.hub.parts import parts_of
from neuroada_cli.training.remarks import left_aside, not_language

ROWS = json.loads(sweep.RESULTS.read_text(encoding="utf-8"))["types"]


def test_the_table_is_of_the_types_that_are_swept_and_nothing_in_it_is_wrong() -> None:
    assert {f"{row['type']} {row['task']}" for row in ROWS} <= {sweep.key(one) for one in SWEPT}
    assert len({row["type"] for row in ROWS}) >= 60
    said = [cell for row in ROWS for cell in row["cells"].values()]
    assert all(cell == sweep.YES or cell.startswith((sweep.REFUSED, sweep.MODEL)) for cell in said)
    assert not any("bug in neuroada" in cell for cell in said)


def test_types_without_a_row_are_named() -> None:
    """Every type that transformers could load for a task stands in the table or below it."""
    told = json.loads(sweep.RESULTS.read_text(encoding="utf-8"))
    if told["versions"]["transformers"] != transformers.__version__:
        pytest.skip(f"swept with transformers {told['versions']['transformers']}")
    assert told["not swept"] == sweep.unswept(ROWS)
    page = (sweep.ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    for task, (_, table) in CLASSES.items():
        rows = {row["type"] for row in ROWS if row["task"] == task}
        names = set(getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES"))
        assert rows <= names
        assert names - rows == set(told["not swept"][task])
        assert all(f"<code>{name}</code>" in page for name in names - rows)


def test_a_command_that_ends_as_a_bug_is_wrong_and_so_is_what_an_oracle_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def finds(said: str) -> None:
        raise AssertionError("others are larger")

    for code, cell in {70: "wrong: a bug", 4: "refused: a bug", 0: "wrong: others are larger"}.items():
        monkeypatch.setattr(sweep, "command", lambda *words, code=code: (code, "first\nerror: a bug\n"))
        assert sweep.cell(("train",), finds) == cell


def test_experts_that_no_target_can_name_are_told_with_their_share() -> None:
    told = ("dbrx", "mixtral", "mamba", "zamba", "gpt_oss")
    models = {one.name: one.model() for one in SWEPT if one.name in told and "causal" in one.task}
    for name in ("mixtral", "mamba", "gpt_oss"):  # time constants by channel, and experts' biases, are none
        assert not list(left_aside(models[name])), name
    assert "mamba.x_proj_weight and 7 more" in next(left_aside(models["zamba"]))
    [line] = left_aside(models["dbrx"])
    experts = sum(p.numel() for n, p in models["dbrx"].named_parameters() if ".experts." in n)
    total = sum(p.numel() for p in models["dbrx"].parameters())
    assert line.startswith(
        f"{100 * experts / total:.2g} % of the parameters are matrices outside linear layers"
    )
    assert line.endswith("transformer.blocks.0.ffn.experts.mlp.w1 and 5 more")


def test_what_all_linear_leaves_out_of_a_model_that_looks_is_told_with_its_share() -> None:
    model = next(one.model() for one in SWEPT if one.name == "smolvlm")
    parts = parts_of(model)
    [line] = not_language(model, parts["language"])
    named = {n: p.numel() for n, p in model.named_parameters()}
    share = 100 * sum(named[f"{n}.weight"] for n in (*parts["vision"], *parts["projector"]))
    assert f"of vision and projector, {share / sum(named.values()):.2g} % of the parameters" in line
    [rest] = not_language(model, [*parts["language"], *parts["projector"]])
    assert "of vision, " in rest
    assert not list(not_language(model, [name for names in parts.values() for name in names]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jamba", "gpt_oss", "t5"])
def test_a_type_comes_out_as_the_table_says(name: str) -> None:
    one = next(one for one in SWEPT if one.name == name)
    row = next(row for row in ROWS if row["type"] == name)
    found = sweep.alone(one)
    works, stated = ({c: said == sweep.YES for c, said in cells.items()} for cells in (found, row["cells"]))
    assert works == stated
    assert one.recipe()["select"]["k"] == oracles.K


def test_models_that_write_about_pictures_learn_to_see_by_the_file_of_the_page() -> None:
    runs = json.loads(pictures_learnt.RESULTS.read_text(encoding="utf-8"))["runs"]
    assert [run["model"] for run in runs] == pictures_learnt.MODELS
    for run in runs:
        assert run["merged answers the same"]
        assert run["right"]["colour"] > run["most frequent"]["colour"] + 0.4, run["model"]


@pytest.mark.slow
def test_a_tiny_llava_really_learns_to_see(tmp_path: Path) -> None:
    """Pictures that it never saw: about a third is what one gets without a look at them."""
    found = pictures_learnt.learnt("llava", tmp_path)
    assert found["merged answers the same"]
    assert found["right"]["colour"] > 0.8 > 2 * found["most frequent"]["colour"]
    assert found["right"]["shape"] > found["most frequent"]["shape"]
