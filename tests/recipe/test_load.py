"""Recipes: strict, frozen, and every mistake is told with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from neuroada_cli.errors import RecipeError
from neuroada_cli.recipe.keys import all_keys, described_keys
from neuroada_cli.recipe.load import load_recipe, recipe_from, to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.recipe.strict_yaml import MAX_BYTES

GOOD = """\
name: mine
model:
  path: some/model
data:
  task: rte
optim:
  lr: 1e-4
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a recipe into the current folder, so that messages show the short path x.yaml."""
    monkeypatch.chdir(tmp_path)

    def write_it(text: str | bytes) -> str:
        Path("x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return "x.yaml"

    return write_it


def message(path: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    line = caught.value.line()
    assert "\n" not in line
    return line


def is_refused_in_one_line_or_fine(path: str, *overrides: str) -> bool:
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        return error.line().isprintable()
    return True


def test_defaults_fill_what_is_not_said(write) -> None:
    recipe = load_recipe(write(GOOD))
    assert recipe.optim.lr == 1e-4  # PyYAML alone would read a string
    assert (recipe.select.k, recipe.train.method, recipe.seed) == (1, "neuroada", 42)
    assert recipe.run_path == Path("runs/mine")


def test_a_recipe_is_frozen(write) -> None:
    recipe = load_recipe(write(GOOD))
    with pytest.raises(ValidationError):
        recipe.optim.lr = 1.0  # type: ignore[misc]


def test_what_is_written_out_reads_back_the_same(write) -> None:
    recipe = load_recipe(write(GOOD), ["optim.betas=[0.8, 0.9]", "data.format=null"])
    assert load_recipe(write(to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD + "  warmup_ration: 0.1\n",
            "x.yaml:8: optim.warmup_ration is not a key; did you mean warmup_ratio?",
        ),
        (GOOD + "lr: 0.1\n", "x.yaml:8: lr is not a key; did you mean optim.lr?"),
        (GOOD.replace("1e-4", "fast"), "x.yaml:7: optim.lr='fast': input should be a valid number"),
        (GOOD.replace("1e-4", "-1"), "x.yaml:7: optim.lr=-1: input should be greater than 0"),
        (GOOD.replace("1e-4", "1e-4\n  lr: 1"), "x.yaml:8: not valid YAML: lr is given twice"),
        (GOOD.replace("  task: rte", "  limit: 3"), "data.task is missing; add it"),
        (GOOD.replace("mine", "../up"), "x.yaml:1: name='../up'"),
        (GOOD + "select: &a {k: 1}\n", "x.yaml:8: anchors and aliases are not used in recipes"),
        (GOOD + "seed: !!python/object:os.system x\n", "x.yaml:8: the tag"),
        (GOOD + "seed: [[[[[[[[[[[[[[1]]]]]]]]]]]]]]\n", "x.yaml:8: nested deeper than 12 levels"),
        ("- a\n- b\n", "x.yaml: a recipe is a mapping with the sections"),
        ("", "x.yaml: a recipe is a mapping with the sections"),
        ("name: [\n", "x.yaml:2: not valid YAML"),
        (b"name: \xff\n", "x.yaml: not UTF-8 text; save it as UTF-8"),
        ("a: " + "[" * 100_000, "x.yaml: nested deeper than 12 levels"),
        ("#" * (MAX_BYTES + 1), "x.yaml: larger than 256 KiB"),
        (
            GOOD + "train: {batch_size: 8, micro_batch_size: 3}\n",
            "train.batch_size=8 is not a multiple of train.micro_batch_size=3; choose a divisor",
        ),
        (
            GOOD + "  warmup_ratio: 0.1\n  warmup_steps: 100\n",
            "x.yaml: optim.warmup_ratio and optim.warmup_steps exclude each other; keep one",
        ),
        (
            GOOD + "train: {share_prefix: true, packing: true}\n",
            "x.yaml: train.share_prefix and train.packing exclude each other; keep one",
        ),
        (
            GOOD + "train: {share_prefix: true, method: loreft}\n",
            "x.yaml: train.share_prefix has no prompt per row for train.method=loreft to edit; remove it",
        ),
        (
            GOOD.replace("task: rte", "{task: rte, format: chat}"),
            "x.yaml: data.format goes with data.task: instruct",
        ),
    ],
)
def test_mistakes_are_told_with_place_and_remedy(write, text: str | bytes, expected: str) -> None:
    assert expected in message(write(text))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr", "--set optim.lr is not of the form section.key=value; write e.g. optim.lr=3e-4"),
        ("optim.lrr=1", "--set optim.lrr=1: optim.lrr is not a key; did you mean lr?"),
        ("train.batch=4", "--set train.batch=4: train.batch is not a key"),
        ("optim.lr=fast", "--set optim.lr=fast: optim.lr='fast'"),
        ("name.x=1", "--set name.x=1: name is not a section"),
        ("select.k=[", "--set select.k=[:1: not valid YAML"),
        ("train.micro_batch_size=5", "choose a divisor"),
    ],
)
def test_an_override_goes_through_the_same_checks(write, override: str, expected: str) -> None:
    assert expected in message(write(GOOD), override)


def test_overrides_win_and_the_last_one_counts(write) -> None:
    recipe = load_recipe(write(GOOD), ["optim.lr=2e-3", "optim.lr=3e-3", "eval.tasks=[a, b]", "device=cpu"])
    assert recipe.optim.lr == 3e-3
    assert recipe.eval.tasks == ["a", "b"]
    assert recipe.device == "cpu"


def test_a_missing_recipe_names_the_nearest_one(write) -> None:
    assert message("llama7b_mathh.yaml").startswith(
        "llama7b_mathh.yaml: no such recipe; did you mean llama7b_"
    )
    assert message("zzz") == "zzz: no such recipe; `neuroada recipes` lists the bundled ones"
    assert message(".") == ".: is a folder, not a recipe; name a .yaml file"


def test_bundled_recipes_are_found_by_every_spelling(write) -> None:
    spellings = ["llama7b_math", "llama7b_math.yaml", "recipes/llama7b_math.yaml"]
    assert {load_recipe(spelling).name for spelling in spellings} == {"llama7b_math"}


def test_a_local_file_wins_over_a_bundled_recipe(write) -> None:
    Path("quickstart").write_text(GOOD)
    assert load_recipe("quickstart").name == "mine"


def test_gradients_and_choosing_anew_are_described_as_they_are(write) -> None:
    told = {key.name: key.description for key in described_keys()}
    assert "every target counts once" in told["select.calibration_batches"]
    assert "SpIEL" in told["train.reselect_every"]
    for criterion in ("gradient", "snip", "gallop", "activation"):
        refused = message(write(GOOD), "train.reselect_every=5", f"select.criterion={criterion}")
        assert "train.reselect_every goes with magnitude, lift, reverse" in refused


def test_every_setting_is_described() -> None:
    import neuroada_cli.recipe.keys as module

    for key in all_keys():
        model: type = Recipe
        *sections, name = key.split(".")
        for section in sections:
            model = module._section_type(model.model_fields[section].annotation)  # type: ignore[attr-defined]
        if name != "path":
            assert key == "name" or model.model_fields[name].description, key  # type: ignore[attr-defined]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(alphabet="abc:-[]{}&*!|>#'\"\n\t 0159.e\u2028\x00", max_size=60),
        st.lists(st.sampled_from(GOOD.splitlines(keepends=True)), max_size=8).map("".join),
        st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")),
    )
)
def test_no_text_gives_anything_but_a_recipe_or_a_recipe_error(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        assert is_refused_in_one_line_or_fine(file.name)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_no_override_gives_anything_but_a_recipe_or_a_recipe_error(key: str, value: str) -> None:
    assert is_refused_in_one_line_or_fine("quickstart", f"{key}={value}")


def test_values_of_a_program_are_checked_like_a_file() -> None:
    with pytest.raises(RecipeError, match=r"adapter: data is missing; add it"):
        recipe_from({"name": "a", "model": {"path": "b"}}, where="adapter")


def test_numbers_are_read_in_tens_as_yaml_12_has_it(write) -> None:
    recipe = load_recipe(write(GOOD), ["train.max_steps=010", "seed=0x10", "optim.eps=.5", "optim.clip=1."])
    assert (recipe.train.max_steps, recipe.seed, recipe.optim.eps, recipe.optim.clip) == (10, 16, 0.5, 1.0)
    assert "seed='12:30': input should be a valid integer" in message(write(GOOD), "seed=12:30")  # not 750
    named = load_recipe(write(GOOD.replace("task: rte", "task: text_classes\n  labels: [010, 1:30, 1.5e]")))
    assert named.data.labels == ["010", "1:30", "1.5e"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("name=a/b", "name='a/b': input should be letters, digits, _, . and -, the first of them no . or -"),
        ("device=gpu", "device='gpu': input should be cpu, mps, cuda or cuda:N"),
        (
            "optim.clip=none",
            "optim.clip='none': input should be a valid number, unable to parse string as a number; "
            "write null for none",
        ),
        (
            "model.quantization=None",
            "model.quantization='None': input should be 'nf4', 'fp4' or 'int8'; write null for none",
        ),
        (
            "train.eval_every=off",
            "train.eval_every=false: input should be greater than or equal to 1; write null for none",
        ),
        ("name=on", "name=true: input should be text; put it in quotes"),
        ("name=2024-01-01", "name=2024-01-01: input should be text; put it in quotes"),
        ("select.targets=q_proj", "select.targets='q_proj': input should be a list; write [q_proj]"),
        ("optim.betas=0.9,0.95", "optim.betas='0.9,0.95': input should be a list; write [0.9,0.95]"),
        ("optim=1", "optim=1: input should be a section with keys of its own; write them below it"),
        ("select.k_per=3", "select.k_per=3: input should be keys with values; write {key: value}"),
        (
            "select.k_per.layers.0.q_proj=2",
            "select.k_per.layers=a dict: input should be a valid integer; "
            "a name with dots stands in braces: select.k_per={layers.0.q_proj: …}",
        ),
        ("-optim.lr=1", "-optim is not a key; did you mean optim?"),
    ],
)
def test_a_wrong_override_says_how_it_is_written(write, override: str, told: str) -> None:
    assert message(write(GOOD), override) == f"--set {override}: {told}"
