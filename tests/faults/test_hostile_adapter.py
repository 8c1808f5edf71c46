"""`eval` and `merge` on an adapter that would run code and call home: watched by an audit hook at work."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import pico_llama
from counting import record
from tiny_choice import selected
from tiny_run import tiny_tokenizer
from trees import tree

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.data import sources
from neuroada_cli.data.reading import FileRows
from neuroada_cli.errors import DataError, ModelError, OutputError
from neuroada_cli.files.manifest import seal
from neuroada_cli.recipe.load import load_recipe

HOME = "http://127.0.0.1:9/rows.json"  # where it would call; nobody listens there
EVIL = "import pathlib\npathlib.Path({bomb!r}).write_text('went off')\nfrom transformers import "
EVIL += "PreTrainedTokenizerFast as Evil\n"
RECIPE = """
name: evil
run_dir: {place}/elsewhere
model: {{path: {base}, trust_remote_code: true}}
data: {{task: commonsense, train: "{home}", validation: "{home}"}}
eval: {{tasks: [boolq], max_new_tokens: 2, batch_size: 2}}
"""
KINDS = [None, *(["nf4"] if importlib.util.find_spec("bitsandbytes") else [])]

# Runs in a process of its own: an audit hook cannot be taken away again.
WORK = """
import os, sys
from pathlib import Path
from neuroada_cli.commands import eval as evaluate, merge

place = Path(sys.argv[1])
out, evil = place / "out", place / "evil"

def work(kind, name):
    where = out / f"{name}{kind}"
    result = evaluate.run(str(place / f"{name}{kind}"), out=where / "eval", device="cpu")
    merge.run(place / f"{name}{kind}", where / "merged", quiet=True)
    return result.results["boolq"]

KINDS = sys.argv[2].split()
for kind in KINDS:  # once without the hook: what the commands import late is no work of the adapter
    work(kind, "good")

CALLS = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.", "http.",
         "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pickle.",
         "marshal.load", "webbrowser.")
DRIVERS = "libnvidia-ml.so.1"  # which torch, where it is built for CUDA, asks how many devices there are
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
           "os.chmod")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
events, watching = [], False

def outside(path):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False  # an open file
    path = os.path.realpath(os.fsdecode(path))
    return path != os.devnull and not path.startswith(str(out) + os.sep)

def hook(event, arguments):
    if not watching:
        return
    if event == "open":
        bad = isinstance(arguments[2], int) and arguments[2] & WRITES and outside(arguments[0])
    elif event == "import":
        name, file = arguments[0], str(arguments[1] or "")
        bad = name.startswith("transformers_modules") or file.startswith(str(place))
    elif event == "exec":
        bad = str(getattr(arguments[0], "co_filename", "")).startswith(str(place))
    elif event in CHANGES:
        bad = any(outside(each) for each in arguments)
    elif event == "ctypes.dlopen":
        bad = arguments[0] != DRIVERS
    else:
        bad = event.startswith(CALLS)
    if bad:
        events.append((event, str(arguments)[:200]))

sys.addaudithook(hook)
watching = True
for kind in KINDS:
    scores = work(kind, "evil")
    assert scores.n == 3 and scores.leaked is None, scores
watching = False
assert not events, events
assert not (place / "bomb").exists()

# what the hook must see, or it would prove nothing: the same code where a user asks for it
watching = True
options = {"tasks": ["boolq"], "max_new_tokens": 2, "trust_remote_code": True}
evaluate.run(str(place / "model"), out=out / "model", **options)
watching = False
assert (place / "bomb").exists()
assert {"exec", "open"} <= {event for event, _ in events}, events
"""


def write_evil(folder: Path, bomb: Path) -> None:
    """A tokenizer that brings code, in a model's or an adapter's folder."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(EVIL.format(bomb=str(bomb)), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, model (the same with an evil tokenizer), and by quantisation good and evil adapters of base."""
    place = tmp_path_factory.mktemp("place")
    build = pico_llama(hidden_size=64, intermediate_size=128, vocabulary=259, max_position_embeddings=256)
    for name in ("base", "model"):
        build.to(torch.bfloat16).save_pretrained(place / name)
        tiny_tokenizer().save_pretrained(place / name)
    write_evil(place / "model", place / "bomb")
    (place / "sets/boolq").mkdir(parents=True)
    rows = [json.dumps({"instruction": f"Is {n} even?", "answer": "true"}) for n in range(3)]
    (place / "sets/boolq/test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for kind in KINDS:
        write_adapters(place, kind)
    return place


def write_adapters(place: Path, kind: str | None) -> None:
    base = place / "base"
    selection = selected(base, k=2, quantization=kind)
    deltas = {name: torch.full(index_OK.shape, 0.25) for name, index_OK in selection.indices.items()}
    settings = {"dtype": "bf16", "quantization": kind, "task": "commonsense"}
    adapter = Adapter(selection, deltas, {}, str(base), None, "causal-lm", settings)
    good = RECIPE.format(base=base, place=place, home="due_dates")
    for name, recipe in {"good": good, "evil": RECIPE.format(base=base, place=place, home=HOME)}.items():
        folder = place / f"{name}{kind}"
        with files.atomic_folder(folder) as temporary:
            adapters.write_adapter(temporary, adapter, tiny_tokenizer(), recipe)
        if name == "evil":
            write_evil(folder, place / "bomb")
            (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch bomb'\ntR.")
            (folder / files.MANIFEST).unlink()
            seal(folder)


def test_nothing_but_the_output_comes_about(place: Path) -> None:
    (place / "home").mkdir()
    before = tree(place)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(place / "home"), "HF_HOME": str(place / "home/hf"),
        "HF_MODULES_CACHE": str(place / "home/modules"), "NEUROADA_DATA": str(place / "sets"),
        "NEUROADA_CACHE": str(place / "home/cache"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    command = [sys.executable, "-c", WORK, str(place), " ".join(map(str, KINDS))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place / "home")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("which rows were trained on is not known") == len(KINDS), done.stdout
    made = {name for name in set(tree(place)) - set(before) if not name.startswith("out/")}
    assert {name for name in made if not name.startswith("home")} == {"out", "bomb"}, made
    assert all(tree(place)[name] == before[name] for name in before)
    record(
        "eval and merge of hostile adapters under an audit hook", {"nothing brought about": 2 * len(KINDS)}
    )


def test_the_adapters_own_recipe_is_no_consent(place: Path) -> None:
    recipe = adapted.recipe_of(adapted.find_target(str(place / "evilNone")))
    assert recipe is not None
    assert not recipe.model.trust_remote_code
    assert "trust_remote_code: true" in (place / "evilNone/recipe.yaml").read_text(encoding="utf-8")


def test_its_tokenizer_runs_no_code_whatever_flag_is_given(place: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    folder = place / "evilNone"
    adapted.reader_of(adapted.find_target(str(folder)), hub.Work(), trust_remote_code=True)
    assert not bomb.exists()
    assert not (place / "home/bomb").exists()
    only = tmp_path / "only"
    write_only_evil(folder, only, bomb)
    with pytest.raises(ModelError, match=r"Python code of its own .* copy its base"):
        adapted.reader_of(adapted.find_target(str(only)), hub.Work(), trust_remote_code=True)
    assert not bomb.exists()


def write_only_evil(source: Path, folder: Path, bomb: Path) -> None:
    """The same adapter with a tokenizer class that transformers does not have."""
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name != files.MANIFEST:
            (folder / file.name).write_bytes(file.read_bytes())
    write_evil(folder, bomb)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "Evil"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    seal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "spiece.model",
        "additional_chat_templates/x.jinja",
    ],
)
def test_what_is_read_has_to_be_in_the_manifest(place: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "adapter"
    write_only_evil(place / "goodNone", folder, tmp_path / "bomb")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}", encoding="utf-8")
    manifest = json.loads((folder / files.MANIFEST).read_text(encoding="utf-8"))
    manifest["files"].pop(name, None)
    (folder / files.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for reader in (adapters.read_adapter, lambda path: evaluate.run(str(path), quiet=True)):
        with pytest.raises(ModelError, match=f"manifest.json does not list {name}; copy the whole folder"):
            reader(folder)


def test_a_recipe_is_read_after_its_folder_was_verified(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_only_evil(place / "goodNone", folder, tmp_path / "bomb")
    (folder / "recipe.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(ModelError, match=r"recipe.yaml has 7 bytes, its manifest says"):
        evaluate.run(str(folder), quiet=True)


@pytest.mark.parametrize("source", [HOME, "somebody/rows", "somebody/rows:part"])
def test_a_strangers_source_is_not_fetched(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"named by the adapter.*not fetched; name a recipe of your own"):
        sources.refuse_foreign(source, "train", None)
    sources.refuse_foreign("commonsense_15k", "train", None)  # ours: known by name
    sources.refuse_foreign("due_dates", "train", None)
    (tmp_path / "somebody").mkdir()
    (tmp_path / "somebody/rows.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    sources.refuse_foreign("somebody/rows", "train", tmp_path)


@pytest.mark.parametrize("key", ["validation", "train"])
def test_rows_to_score_are_fetched_only_if_the_user_names_the_recipe(
    key: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sources, "_from_url", lambda url, *_: asked.append(url) or FileRows([]))
    folder = tmp_path / "adapter"
    write_only_evil(place / "goodNone", folder, tmp_path / "bomb")
    data = {
        "task": "instruct",
        "train": "due_dates",
        "validation_rows": 2 if key == "train" else 0,
        key: HOME,
    }
    values = {"name": "x", "device": "cpu", "model": {"path": str(place / "base")}, "data": data}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / files.MANIFEST).unlink()
    seal(folder)
    with pytest.raises(DataError, match=r"named by the adapter.*name a recipe of your own with --recipe"):
        evaluate.run(str(folder), quiet=True)
    assert not asked
    with pytest.raises(DataError, match="holds no rows"):
        evaluate.run(str(folder), recipe=load_recipe(folder / "recipe.yaml"), quiet=True)
    assert set(asked) == {HOME}


def test_results_stay_in_the_folder(place: Path, tmp_path: Path) -> None:
    """A link that came with an adapter must not lead what is written elsewhere."""
    folder = tmp_path / "adapter"
    write_only_evil(place / "goodNone", folder, tmp_path / "bomb")
    (tmp_path / "mine").mkdir()
    (folder / "eval").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="is a link that leaves the folder; choose an --out"):
        evaluate.run(str(folder), tasks=["boolq"], quiet=True)
    assert not list((tmp_path / "mine").iterdir())
