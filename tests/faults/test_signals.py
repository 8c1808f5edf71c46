"""Signals end every command from its first instant: its code, one line, nothing half written.

Through the installed command (`python -m neuroada_cli`, and its `main` in forked children of a process that
has imported everything already).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from counting import TARGET, record, scale
from test_kills import run_cases
from tiny_run import tiny_llama_folder

from neuroada_cli import stopping

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# In a folder before all others on Python's path: says, or is sent a signal at, the imports of a process.
SITE = """
import os, signal, sys

at, number, log = os.environ["AT"], int(os.environ["NUMBER"]), os.environ["LOG"]
seen = []

def hook(event, arguments):
    if event != "import" or seen[-1:] == ["done"]:
        return
    name = arguments[0]
    if name == "neuroada_cli.cli.app" or seen:  # the handlers are there
        seen.append(name)
    if seen and name == at:
        seen.append("done")
        os.kill(os.getpid(), number)

sys.addaudithook(hook)
if log:
    import atexit
    atexit.register(lambda: open(log, "w").write("\\n".join(seen)))
"""
MODULES = ["typer", "yaml", "torch", "torch.nn.functional", "tokenizers", "transformers.modeling_utils"]
RECIPE = """
name: tiny
run_dir: run
device: cpu
model: {path: llama, dtype: fp32}
data: {task: due_dates, limit: 8, validation_limit: 4, max_length: 256}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    tiny_llama_folder(tmp_path / "llama")
    return tmp_path


def command(site: Path, at: str, number: int, *words: str, log: Path | None = None) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(site / "site"), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LOG": str(log or "")}
    environment |= {"AT": at, "NUMBER": str(int(number))}
    if TARGET:  # what is kept of an answer takes imports away from the next one
        environment["NEUROADA_CACHE"] = tempfile.mkdtemp(dir=site / "site")
    words = words or ("train", "tiny.yaml", "--dry-run")
    return subprocess.Popen(
        [sys.executable, "-m", "neuroada_cli", *words],
        env=environment, cwd=site, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_in_any_import_a_signal_ends_it_in_one_line(site: Path) -> None:
    modules = MODULES
    if TARGET:  # every hundredth of all that a training imports
        log = site / "log"
        command(site, "", 0, log=log).communicate()
        modules = [name for name in log.read_text().split("\n") if name][::100]
        assert len(modules) > 20
        log.unlink()
    cases = [(name, number) for name in modules for number in SIGNALS]
    cases = cases if TARGET else cases[:: len(SIGNALS) + 1]
    for name, number in cases:
        child = command(site, name, number)
        out, said = child.communicate(timeout=600)
        assert child.returncode == 128 + number, (name, number, said)
        *told, line = said.splitlines()  # some are imported after the run was announced
        assert line == f"stopped by {signal.Signals(number).name}; nothing is left half written", (name, said)
        assert told or not out
        assert not told or re.match(r"[\d,]+ of [\d,]+ parameters train", told[0]), (name, said)
        assert sorted(path.name for path in site.iterdir()) == ["llama", "site", "tiny.yaml"]
    record("signals during imports", {"one line, its code": len(cases)})


def test_every_command_ends_so_before_anything_heavy(site: Path) -> None:
    """`--help` and `env`, too: the handlers come before the command line is read."""
    lines = (
        ["--help"],
        ["env"],
        ["recipes"],
        ["validate", "minilm_rte"],
        ["bench", "minilm_rte"],
        ["merge", "x", "y"],
    )
    for position, words in enumerate(lines):
        number = SIGNALS[position % len(SIGNALS)]
        child = command(site, "typer", number, *words)
        out, said = child.communicate(timeout=600)
        assert (child.returncode, out, said.count("\n")) == (128 + number, "", 1), said


def test_what_is_ignored_stays_ignored(site: Path) -> None:
    """nohup: the command runs on, into its own error."""
    words = ["env", "AT=typer", f"NUMBER={int(signal.SIGHUP)}", "LOG="]
    environment = os.environ | {"PYTHONPATH": f"{site / 'site'}{os.pathsep}{Path(__file__).parents[2]}"}
    nohup = shutil.which("nohup")
    if nohup is None:
        pytest.skip("needs nohup (coreutils)")
    line = [*words, nohup, sys.executable, "-m", "neuroada_cli", "validate", "nothing.yaml"]
    done = subprocess.run(line, env=environment, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "nothing.yaml" in done.stderr


SECOND = """
import os, signal, sys, time
from neuroada_cli import stopping
stopping.install()
def slow():
    os.kill(os.getpid(), signal.SIGTERM)  # at once: `timeout` tells a process and then its group
    print("once", flush=True)
    time.sleep(3600)
with stopping.tidied(slow):
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_second_one_ends_even_the_end(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SECOND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert [child.stdout.readline(), child.stdout.readline()] == ["ready\n", "once\n"]
    time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=600)[1]  # and not the hour that the end would take
    assert (child.returncode, said) == (143, "")


@pytest.mark.parametrize(
    ("first", "second", "seconds", "ends"),
    [
        (signal.SIGINT, signal.SIGINT, 0.0, True),
        (signal.SIGTERM, signal.SIGTERM, 0.0, False),  # told twice
        (signal.SIGTERM, signal.SIGTERM, 0.2, True),
        (signal.SIGINT, signal.SIGTERM, 0.3, False),  # by the terminal, and by the launcher
        (signal.SIGINT, signal.SIGTERM, 1.5, True),
    ],
)
def test_what_a_second_wish_is(first: int, second: int, seconds: float, ends: bool) -> None:
    assert stopping.is_again(second, first, time.monotonic() - seconds) is ends


HELD = """
import os, signal
from pathlib import Path
from neuroada_cli import stopping
stopping.install()
with stopping.saying("as it should"):
    with stopping.held(), stopping.held():
        os.kill(os.getpid(), signal.SIGINT)
        Path("inside").touch()
    Path("behind").touch()
"""


def test_what_belongs_together_is_not_torn_apart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT; as it should\n")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


FORKED = """
import os, signal, time
from neuroada_cli import stopping
stopping.install()
with stopping.tidied(lambda: print("taken away", flush=True)):
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(say, b"x")
        time.sleep(60)
        os._exit(1)
    os.read(ready, 1)
    os.kill(pid, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM
print("done")
"""


def test_a_librarys_fork_takes_nothing_of_ours_away() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_in_every_phase_a_signal_ends_it_and_it_can_be_done_again(tmp_path: Path) -> None:
    count = scale(1, 3)
    found = run_cases("stops.py", "phases", count, tmp_path)
    assert sum(found.values()) == 17 * count
    record("random signals: every phase of train, select, merge, eval", found)


@pytest.mark.slow
def test_at_any_moment_a_signal_ends_it_and_it_can_be_done_again(tmp_path: Path) -> None:
    count = scale(20, 60)
    found = run_cases("stops.py", "moments", count, tmp_path)
    assert found["stopped, then done"] == count
    record("random signals: any moment of train, select, merge, eval", found)


def test_next_to_nothing_is_imported_before_the_handlers_are_there() -> None:
    """Until then a signal ends the interpreter in its own way: every import here is time without a line."""
    script = (
        "import sys; before = set(sys.modules)\n"
        "from neuroada_cli import stopping; stopping.install()\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    of_os = {"os", "posixpath", "genericpath", "stat", "io", "abc"}
    found = {name for name in done.stdout.split() if not name.startswith("_")} | {"neuroada_cli"}
    assert found <= of_os | {"neuroada_cli", "atexit", "time"}


LATE = """
import os, signal
from neuroada_cli import stopping
stopping.install()
class Late:  # goes with the modules, when Python has put its own handlers back
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, signal.SIGHUP)
late = Late()
print("done")
"""


def test_what_is_done_is_not_killed_while_the_interpreter_ends() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
