"""How a command leaves: all that an end has to see to is done, and nothing is taken apart for nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import pico_llama

from neuroada_cli import failures, hub
from neuroada_cli.benchmarking import shapes
from neuroada_cli.hub import sharded
from neuroada_cli.machine import collector
from neuroada_cli.ranks.group import Ranks

ENDS = """
import atexit, concurrent.futures, os, sys, threading, time
from neuroada_cli import failures

class Object:
    def __del__(self, write=os.write):
        write(1, b"taken apart")

kept = Object()
atexit.register(lambda: print("registered", end=""))
pool = concurrent.futures.ThreadPoolExecutor(1)
pool.submit(lambda: time.sleep(0.2) or print("pool ", end=""))
threading.Thread(target=lambda: time.sleep(0.4) or print("thread ", end="")).start()
print("printed ", end="")
print("told", file=sys.stderr, end="")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [0, 2, 70])
def test_threads_what_is_registered_and_what_is_printed_are_seen_to(code: int) -> None:
    done = run("-c", f"{ENDS}\nfailures.leave({code})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "printed pool thread registered", "told")


@pytest.mark.parametrize("watch", ["sys.setprofile", "sys.settrace"])
def test_whoever_is_watched_ends_as_ever(watch: str) -> None:
    done = run("-c", f"{ENDS}\n{watch}(lambda *_: None)\nfailures.leave(3)")
    assert done.returncode == 3
    assert "taken apart" in done.stdout


def test_a_profile_of_a_command_is_printed() -> None:
    done = run("-m", "cProfile", "-m", "neuroada_cli", "--version")
    assert done.returncode == 0
    assert "function calls" in done.stdout


def test_a_closed_output_is_no_failure() -> None:
    done = run("-c", "import sys; from neuroada_cli import failures; sys.stdout.close(); failures.leave(0)")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["train"], 2), (["train", "no.yaml"], 2)])
def test_the_installed_command_leaves_with_its_code(words: list[str], code: int) -> None:
    assert run("-m", "neuroada_cli", *words).returncode == code


def test_the_installed_command_takes_nothing_apart() -> None:
    done = run(
        "-c", f"{ENDS}\nsys.argv = ['neuroada', '--version']\nfrom neuroada_cli.__main__ import main\nmain()"
    )
    assert done.returncode == 0
    assert "registered" in done.stdout
    assert "taken apart" not in done.stdout


def test_the_installed_command_spares_the_collector() -> None:
    script = (
        "import gc, sys; sys.argv = ['neuroada', '--version']\n"
        "from neuroada_cli.__main__ import command\n"
        "try:\n    command()\nexcept SystemExit:\n    print(gc.get_threshold())\n"
    )
    assert str(collector.RARELY) in run("-c", script).stdout


def test_in_a_process_that_is_not_its_own_nothing_ends() -> None:
    script = (
        "from neuroada_cli.cli.app import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit as end:\n    print('still here', end.code)\n"
    )
    assert "still here 0" in run("-c", script).stdout


def test_the_collector_comes_as_usual_once_a_model_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = gc.get_threshold()

    class Shared(Exception):
        """Two processes would be needed to deal the rows out: by then it has to come as usual."""

    def shard(*given: object) -> None:
        raise Shared

    def load_sharded() -> None:
        base = hub.open_base(tmp_path / "model")
        with pytest.raises(Shared):
            sharded.load_sharded(base, {}, torch.float32, Ranks(size=2), torch.device("cpu"))

    monkeypatch.setattr(sharded, "shard", shard)
    pico_llama().save_pretrained(tmp_path / "model")
    models: list[Callable[[], object]] = [
        lambda: hub.load_model(tmp_path / "model", "causal-lm", "fp32"),
        lambda: shapes.build("smollm2-135m", 1, device="meta"),
        load_sharded,
    ]
    try:
        collector.as_usual()  # nobody has asked to spare it
        assert gc.get_threshold() == usual
        for model in models:
            collector.spare()
            collector.spare()  # the same wish
            assert gc.get_threshold() == collector.RARELY != usual
            model()
            assert gc.get_threshold() == usual
    finally:
        gc.set_threshold(*usual)


def test_a_command_called_from_python_leaves_the_collector_alone() -> None:
    script = (
        "import gc; before = gc.get_threshold()\n"
        "from neuroada_cli.cli.app import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    print(gc.get_threshold() == before)\n"
    )
    assert "True" in run("-c", script).stdout


def test_without_the_interpreters_own_ways_it_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("threading._shutdown")
    with pytest.raises(SystemExit) as end:
        failures.leave(os.EX_USAGE)
    assert end.value.code == os.EX_USAGE
