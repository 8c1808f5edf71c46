"""The command line as a person types it: exit codes, one line per error, true examples, a fast start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer.main
from conftest import pico_llama
from tiny_families import tiny
from tiny_run import tiny_llama_folder
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from neuroada_cli import __version__, failures
from neuroada_cli.cli import app as cli
from neuroada_cli.cli.options import parse_bytes, parse_counts
from neuroada_cli.delta.model import attach
from neuroada_cli.errors import DataError, RecipeError, Stopped
from neuroada_cli.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def neuroada(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command line in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(words))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def commands(app: typer.Typer = cli.app, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """(words, help text) of every command."""
    own = [
        ((*path, c.name or c.callback.__name__), c.callback.__doc__)  # type: ignore[union-attr]
        for c in app.registered_commands
    ]
    return own + [
        command
        for group in app.registered_groups
        for command in commands(group.typer_instance, (*path, str(group.name)))  # type: ignore[arg-type]
    ]


# --- a fast start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys; from neuroada_cli.cli.app import main\n"
        f"try: main({words})\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "yaml", "datasets", "matplotlib"}
    assert not heavy & set(done.stderr.split())


def test_a_wrong_recipe_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    script = "from neuroada_cli.cli.app import main\nmain(['train', 'x.yaml'])"
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert traced.returncode == 2
    assert "error: x.yaml: model is missing; add it" in traced.stderr
    assert not re.search(r"\| +(torch|transformers)$", traced.stderr, re.MULTILINE)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            ["train"],
            2,
            "error: RECIPE: no recipe, and no --model and --data; name a recipe, or --model and --data",
        ),
        (["trian", "x"], 2, "error: no such command 'trian'"),
        (
            ["train", "x", "--lr", "3"],
            2,
            "error: --lr: no such option; a recipe's keys are set by --set optim.lr=VALUE",
        ),
        (["train", "--learning_rate=3"], 2, "--learning_rate: no such option; a recipe's keys are set by"),
        (["train", "--output_dir", "x"], 2, "error: --output_dir: no such option; it is --out here"),
        (["trian", "x"], 2, "error: no such command 'trian'; did you mean 'train'?\n"),
        (["merge", "a", "--ouut", "x"], 2, "error: --ouut: no such option; did you mean --out?"),
        (["env", "--lr", "3"], 2, "error: --lr: no such option; see `neuroada env --help`"),
        (["merge", "a", "b", "--dtype", "bfloat17"], 2, "error: --dtype: 'bfloat17' is not a data type"),
        (["bench", "--seq", "0"], 2, "error: invalid value for '--seq'"),
        (["eval", "x", "--engine", "y"], 2, "error: invalid value for '--engine': 'y' is not "),
        (["bench", "--k", "1,x"], 2, "error: --k: '1,x' is not a list of positive whole numbers"),
        (["merge", "a", "b", "--dtype", "int8"], 2, "error: --dtype int8: folding back into 4 or 8 bits"),
        (["merge", "a", "b", "--max-shard-size", "5GBB"], 2, "error: --max-shard-size: '5GBB' is not a size"),
        (["merge", "nowhere", "out"], 4, "error: nowhere"),
        (["train", "nowhere.yaml"], 2, "error: nowhere.yaml: no such recipe"),
        (["train", "quickstart", "--set", "optim.lrr=1"], 2, "did you mean lr?"),
        (["validate", "quickstart", "--set", "data.task=due_date"], 2, "error: due_date is not a task"),
        (["validate", "quickstart", "--set", "select.criterion=big"], 2, "select.criterion=big is not known"),
        (["eval"], 2, "error: eval: nothing to score"),
        (["eval", "x", "--set", "a=1"], 4, "error: x: no such folder"),
        (["eval", "--predictions", "x.jsonl"], 3, "error: x.jsonl: no such file"),
        (["eval", "x", "--predictions", "x.jsonl"], 2, "error: --predictions: takes no TARGET; leave it out"),
        (["eval", "--predictions", "x", "--limit", "3", "--set", "a=1"], 2, "takes no --limit, --set; leave"),
        (["eval", "--predictions", "x", "--recipe", "quickstart"], 2, "takes no --recipe; leave it out"),
        (["eval", "--predictions", "x", "--data-dir", "y", "--dtype", "fp32"], 2, "no --data-dir, --dtype;"),
        (["eval", "--predictions", "x", "--batch-size", "1", "--device", "cpu"], 2, "--batch-size, --device"),
        (["eval", "--predictions", "x", "--max-new-tokens", "1"], 2, "takes no --max-new-tokens; leave"),
        (
            ["eval", "--predictions", "x", "--overwrite"],
            2,
            "--overwrite: replaces what lies in --out; name one",
        ),
        (["eval", "--predictions", "x", "--tasks", "boolq,piqa"], 2, "--predictions: scores one task; name"),
        (["eval", "--predictions", "x", "--tasks", "math-all"], 2, "error: math-all is a group of tasks"),
        (["eval", "--predictions", "x.jsonl", "--tasks", "boolq"], 3, "error: x.jsonl: no such file"),
        (["eval", "./nowhere"], 4, "error: ./nowhere: no such folder; check the path"),
        (["eval", "runs/nowhere"], 4, "error: runs/nowhere: no such folder; check the path"),
        (["eval", "./nowhere", "--tasks", "due_dates"], 4, "error: ./nowhere: no such model folder"),
        (["eval", "x", "--tasks", "boolqq"], 2, "error: boolqq is not a task; did you mean boolq?"),
        (["recipes", "show", "quickstar"], 2, "did you mean quickstart?"),
    ],
)
def test_a_mistake_gets_one_line_and_its_exit_code(
    neuroada, tmp_path: Path, words: list[str], code: int, expected: str
) -> None:
    found, out, err = neuroada(*words)
    assert found == code
    assert expected in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == [], "a refused command writes nothing"


def test_the_traceback_is_shown_only_when_asked_for(neuroada) -> None:
    assert "Traceback" not in neuroada("train", "nowhere.yaml")[2]
    code, _, err = neuroada("train", "nowhere.yaml", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: nowhere.yaml")


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's class."""


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (DataError("is empty", "a.jsonl:3", "add rows"), 3, "error: a.jsonl:3: is empty; add rows"),
        (Stopped(15, "stopped at step 3"), 143, "stopped at step 3"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 6, "error: out of memory; lower train.micro_batch_size"),
        (OutOfMemoryError("CUDA out of memory"), 6, "error: out of memory; lower"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"),
            6,
            "error: out of memory; lower",
        ),
        (OSError(28, "No space left on device", "a/b"), 6, "error: a/b: No space left on device"),
        (ValueError("two\nlines"), 70, "error: this is a bug in neuroada (ValueError: two lines); run again"),
        (AssertionError(), 70, "error: this is a bug in neuroada (AssertionError"),
    ],
)
def test_every_failure_has_a_line_and_a_code(error: BaseException, code: int, expected: str) -> None:
    line, found = failures.explain(error)
    assert found == code
    assert line.startswith(expected)
    assert "\n" not in line


def raised_by(act: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


def test_an_error_of_the_models_own_code_is_the_models() -> None:
    config = CONFIG_MAPPING["codegen"](vocab_size=9, n_embd=32, n_layer=1, n_head=4, rotary_dim=64)
    model = AutoModelForCausalLM.from_config(config)
    line, code = failures.explain(raised_by(lambda: model(input_ids=torch.zeros(1, 3, dtype=torch.int64))))
    assert code == 4
    assert re.match(
        r"error: modeling_codegen.py:\d+: the model's own code fails \(RuntimeError: The size", line
    )
    assert "bug in neuroada" not in line


def test_so_is_an_error_of_the_cache_that_it_chooses() -> None:
    """A model of linear attention alone cannot write in transformers, either."""
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    model = tiny("qwen3_next", layer_types=["linear_attention"] * 2, linear_value_head_dim=8, **sizes)
    tokens = torch.ones(1, 3, dtype=torch.int64)
    line, code = failures.explain(raised_by(lambda: model.generate(tokens, max_new_tokens=2)))
    assert code == 4
    assert re.match(r"error: cache_utils.py:\d+: the model's own code fails \(ValueError", line)


def test_an_error_of_our_layers_in_a_model_is_ours() -> None:
    model = pico_llama()
    attach(model, {"lm_head": torch.zeros(96, 1, dtype=torch.int32)})
    model.lm_head.weight = None  # type: ignore[assignment]
    line, code = failures.explain(raised_by(lambda: model(input_ids=torch.zeros(1, 3, dtype=torch.int64))))
    assert code == 70, line


def test_terminal_escapes_of_foreign_files_are_not_passed_on() -> None:
    assert "\x1b" not in failures.explain(DataError("field \x1b[31mred"))[0]


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m neuroada_cli recipes show quickstart | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


# --- help and documentation -----------------------------------------------------------------------


def test_every_command_teaches_by_example() -> None:
    without = {words for words, text in commands() if "\b" not in text}
    assert without == {("env",), ("recipes", "ls"), ("recipes", "show"), ("recipes", "copy")}


def test_every_key_can_be_looked_up(neuroada) -> None:
    from neuroada_cli.recipe.keys import all_keys

    code, out, _ = neuroada("recipes", "keys")
    assert code == 0
    assert all(key in out for key in all_keys())
    code, out, _ = neuroada("recipes", "keys", "optim.")
    assert code == 0
    assert "optim.warmup_ratio" in out
    assert "data." not in out
    code, _, err = neuroada("recipes", "keys", "nothing")
    assert code == 2
    assert "no key contains 'nothing'" in err


def test_version(neuroada) -> None:
    assert neuroada("--version") == (0, f"neuroada {__version__}\n", "")


# --- small commands -------------------------------------------------------------------------------


def test_recipes_are_listed_shown_and_copied(neuroada, tmp_path: Path) -> None:
    code, listed, _ = neuroada("recipes")
    assert code == 0
    assert re.search(r"^llama7b_commonsense_k1 +hub  LLaMA-7B .*\.$", listed, re.MULTILINE), "a line each"
    assert re.search(r"^selection +Which connections", listed, re.MULTILINE), "the suites, too"
    assert not re.search(r" $", listed, re.MULTILINE)
    code, shown, _ = neuroada("recipes", "show", "llama7b_math")
    assert shown == (ROOT / "recipes" / "llama7b_math.yaml").read_text()
    assert "warmup_ratio: 0.0" in neuroada("recipes", "show", "llama7b_math", "--resolved")[1]

    assert neuroada("recipes", "copy", "llama7b_math", "my.yaml")[0] == 0
    schema = "# yaml-language-server: $schema="
    there = ROOT / "recipes" / "recipe.schema.json"
    mine = shown.replace("name: llama7b_math\n", "name: my\n").replace(schema, f"{schema}{there.parent}/")
    assert mine != shown
    assert (tmp_path / "my.yaml").read_text() == mine
    code, _, err = neuroada("recipes", "copy", "quickstart", "my.yaml")
    assert code == 7
    assert "my.yaml: exists" in err
    assert (tmp_path / "my.yaml").read_text() == mine
    assert neuroada("recipes", "copy", "quickstart", "my.yaml", "--overwrite")[0] == 0
    assert neuroada("validate", "my.yaml", "--set", "model.path=x/y")[1].startswith(
        "my: fine as far as it can"
    )


def test_every_copy_is_named_like_its_file_and_is_a_recipe(neuroada, tmp_path: Path) -> None:
    for out, name in (("a b.yaml", "a-b"), (".x.yaml", "x"), ("r-2.1.yaml", "r-2.1"), ("….yaml", "mine")):
        assert neuroada("recipes", "copy", "minilm_rte", out)[0] == 0
        copied, source = load_recipe(tmp_path / out), load_recipe("minilm_rte")
        assert copied.name == name
        assert copied.model_copy(update={"name": source.name}) == source


def test_env_names_the_versions(neuroada) -> None:
    import torch

    code, out, _ = neuroada("env")
    assert code == 0
    number = torch.__version__.partition("+")[0]  # not every build's package says for which accelerator it is
    assert re.search(rf"^torch +{re.escape(number)}(\+\w+)?$", out, re.MULTILINE)


def test_env_says_what_the_cache_takes(neuroada, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "kept"))
    assert "~/kept: 0.0 MB in 0 files" in neuroada("env")[1]
    (tmp_path / "kept" / "rows").mkdir(parents=True)
    (tmp_path / "kept" / "rows" / "a").write_bytes(b"0" * 1_500_000)
    with (tmp_path / "kept" / "outline").open("wb") as sparse:
        sparse.truncate(1 << 30)
    assert "~/kept: 1.5 MB in 2 files, which may be removed at any time" in neuroada("env")[1]


def test_validate_says_what_a_recipe_would_do(neuroada, capsys, tmp_path: Path) -> None:
    tiny_llama_folder(tmp_path / "model")
    capsys.readouterr()  # transformers draws a bar
    words = ("validate", "quickstart", "--set", "model.path=model", "--set", "data.max_length=256")
    code, out, err = neuroada(*words, "--set", "select.k=2")
    assert code == 0, err
    rows = 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)  # q k v o gate up down of two blocks
    assert f"K=2 by magnitude in 14 layers: {2 * rows:,} of" in out
    code, _, err = neuroada(*words, "--set", "select.k=40")
    assert code == 2
    assert "has 32 inputs; choose 1..32" in err


def test_a_foreign_prediction_file_is_scored(neuroada, tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "prediction": "the correct answer is true", "answer": "true"},
        {"instruction": "b", "prediction": "the correct answer is true", "answer": "false"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = neuroada("eval", "--predictions", "p.jsonl", "--tasks", "boolq")
    assert code == 0
    assert "50.0" in out


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5GB", 5 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 kb", 1500),
        ("10", 10),
        ("2G", 2 * 10**9),
        (None, None),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text, "--x") == expected


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1i", "1 000", "5GBit"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--x: .* is not a size; write e\.g\. 5GB"):
        parse_bytes(text, "--x")


def test_counts() -> None:
    assert parse_counts("1, 20", "--k") == (1, 20)
    for text in ("", "0", "-1", "1.5", "a"):
        with pytest.raises(RecipeError):
            parse_counts(text, "--k")


# --- rows of one's own, without a recipe -----------------------------------------------------------


def test_a_model_and_a_file_of_rows_are_enough(neuroada, tmp_path: Path) -> None:
    """Tuned, merged and written down, named after the rows; the merged folder is a plain checkpoint."""
    rows = [{"instruction": f"say {n}", "output": str(n)} for n in range(20)]
    (tmp_path / "my rows.v2.json").write_text(json.dumps(rows))
    tiny_llama_folder(tmp_path / "model")
    given = ("train", "--model", "model", "--data", "my rows.v2.json")
    code, out, _ = neuroada(*given, "--dry-run")
    assert code == 0
    assert re.search(r"data\.train +my rows\.v2\.json +command line", out)
    assert re.search(r"select\.k +16 +instruct:\d+", out)
    assert "train.epochs" not in out
    assert "train.epochs" in neuroada(*given, "--dry-run", "--full")[1]
    assert not (tmp_path / "runs").exists()
    code, out, err = neuroada(*given, "--set", "train.max_steps=2")
    assert code == 0, err
    run = tmp_path / "runs" / "my-rows"
    assert (run / "merged" / "model.safetensors").is_file()
    assert "finished: 2 steps in " in err
    assert "validation: 1 row from" in err  # a twentieth of 20
    assert "\u27e6" in err, "what is learnt of the first row is marked where there are no colours"
    code, out, _ = neuroada(*given, "--json", "--no-merge", "--overwrite", "--set", "train.max_steps=1")
    assert code == 0
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["train", "eval", "sample", "end"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model", "m"), "no recipe, and no --data; name a recipe, or --model and --data"),
        (("quickstart", "--full"), "--full: shows the recipe of a dry run; add --dry-run"),
        (("quickstart", "--merge", "--set", "train.method=loreft"), "--merge: train.method=loreft: "),
    ],
)
def test_options_that_do_not_go_together(neuroada, words: tuple[str, ...], expected: str) -> None:
    code, _, err = neuroada("train", *words)
    assert code == 2
    assert expected in err


# --- what editors and shells are told --------------------------------------------------------------


def test_the_schema_for_editors_is_the_program_s_and_every_recipe_names_it(neuroada) -> None:
    code, out, _ = neuroada("recipes", "schema")
    assert code == 0
    assert out == (ROOT / "recipes" / "recipe.schema.json").read_text(), "make pages"
    assert json.loads(out)["properties"].keys() >= {"name", "model", "select", "data", "optim", "train"}
    for file in (ROOT / "recipes").glob("*.yaml"):
        assert file.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n"), file.name


def test_a_shell_completes_commands_and_recipes(neuroada, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    for words, expected in (
        ("tr", "train"),
        ("train quick", "quickstart"),
        ("recipes sc", "schema"),
        ("export runs/mine --to gg", "gguf"),
        ("bench --suite sel", "selection"),
    ):
        told = {
            "_NEUROADA_COMPLETE": "complete_bash",
            "COMP_WORDS": f"neuroada {words}",
            "COMP_CWORD": str(len(words.split())),
        }
        found = CliRunner().invoke(cli.app, [], env=told, prog_name="neuroada")
        assert found.stdout.split() == [expected]


def test_recipes_are_grouped_by_what_they_run_on(neuroada) -> None:
    from neuroada_cli.commands.recipes import billions, needs_hub
    from neuroada_cli.recipe.load import bundled_recipes

    _, out, _ = neuroada("recipes", "ls")
    headings = [out.index(words) for words in ("On a laptop", "On one GPU", "On several GPUs")]
    assert headings == sorted(headings)
    assert headings[0] < out.index("quickstart ") < headings[1] < out.index("llama7b_math ") < headings[2]
    assert headings[2] < out.index("llama2_70b_commonsense_k1")
    for name in bundled_recipes():
        path = load_recipe(name).model.path
        assert billions(path) > 0
        (line,) = [each for each in out.splitlines() if each.startswith(f"{name} ")]
        assert (" hub " in line) == needs_hub(path)


def test_a_switch_is_not_shown_as_if_it_took_a_value(neuroada) -> None:
    _, out, _ = neuroada("train", "--help")
    assert "<bool>" not in out
