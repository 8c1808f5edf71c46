"""Random kills and signals, files that may not grow, a full disk and no network: nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from counting import record, scale
from tiny_run import tiny_llama_folder

HERE = Path(__file__).parent


def run(kind: str, count: int, room: Path) -> dict[str, int]:
    return run_cases("kills.py", kind, count, room)


def run_cases(script: str, kind: str, count: int, room: Path) -> dict[str, int]:
    """In a process of its own with one thread, since the cases are forks of it."""
    report = room / "report.json"
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else room
    place = memory / f"neuroada-{kind}-{os.getpid()}"
    command = [sys.executable, str(HERE / script), str(report), str(place), kind, str(count)]
    place.mkdir()
    try:
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(report.read_text(encoding="utf-8")))


def test_killed_at_any_moment_what_was_said_to_be_saved_loads(tmp_path: Path) -> None:
    count = scale(150, 10_000)
    found = run("saves", count, tmp_path)
    assert sum(found.values()) == count
    assert found["recovered"] > count / 4
    record("random kills: saving and pruning checkpoints", found)


def test_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    count = scale(3, 100)
    found = run("training", count, tmp_path)
    assert found["resumed, same end"] == count
    record("random kills: training, resumed", found)


def test_signals_stop_with_their_code_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    count = scale(3, 200)
    found = run("signals", count, tmp_path)
    assert found["resumed, same end"] == count
    record("random signals in training, resumed", found)


def test_files_that_may_not_grow_leave_everything_as_before(tmp_path: Path) -> None:
    found = run("sizes", 7, tmp_path)
    assert found["after as before"] > 0
    record("file size limit (EFBIG)", found)


def unshared(options: str, script: str) -> subprocess.CompletedProcess[str]:
    """A shell script in namespaces of its own. Skips where the system does not allow them."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    probe = subprocess.run(["unshare", options, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"unshare {options} is not allowed here: {probe.stderr.strip()[:100]}")
    return subprocess.run(["unshare", options, "sh", "-c", script], capture_output=True, text=True)


def recipe_file(tmp_path: Path, model: str, run_dir: str) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"name: tiny\nrun_dir: {run_dir}\ndevice: cpu\nmodel: {{path: {model}, dtype: fp32}}\n"
        "data: {task: due_dates, limit: 24, validation_limit: 8, max_length: 256}\n"
        "train: {epochs: 2, batch_size: 4, save_every: 1, keep: 99}\n",
        encoding="utf-8",
    )
    return file


def test_a_full_disk_keeps_the_older_checkpoints_and_training_goes_on_with_room(tmp_path: Path) -> None:
    """Too little room is told before anything begins. What then fills up are the inodes, not the bytes."""
    model = tiny_llama_folder(tmp_path / "llama")
    disk = tmp_path / "disk"
    disk.mkdir()
    recipe = recipe_file(tmp_path, str(model), str(disk / "run"))
    neuroada = f"{sys.executable} -m neuroada_cli"
    script = f"""
        mount -t tmpfs -o size=600k none {disk} || exit 99
        OMP_NUM_THREADS=1 {neuroada} train {recipe} 2> {tmp_path}/before; echo $? > {tmp_path}/code-before
        ls -a {disk} > {tmp_path}/left-before
        mount -o remount,size=100m,nr_inodes=60 {disk} || exit 98
        OMP_NUM_THREADS=1 {neuroada} train {recipe} 2> {tmp_path}/first; echo $? > {tmp_path}/code
        ls -a {disk}/run > {tmp_path}/left
        mount -o remount,nr_inodes=10000 {disk} || exit 98
        OMP_NUM_THREADS=1 {neuroada} train {recipe} --resume 2> {tmp_path}/second || exit 97
        ls {disk}/run > {tmp_path}/all
    """
    done = unshared("-Urm", script)
    if done.returncode == 99:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr + (tmp_path / "second").read_text(encoding="utf-8")
    last_line = (tmp_path / "before").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert (tmp_path / "code-before").read_text().strip() == "6", last_line
    assert re.search(r"disk/run: needs [\d,]+ bytes, [\d,]+ are free; make room", last_line)
    assert (tmp_path / "left-before").read_text(encoding="utf-8").split() == [".", ".."]
    last_line = (tmp_path / "first").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert (tmp_path / "code").read_text().strip() == "6", last_line
    assert re.search(r"disk/run/checkpoint-\d+(/[\w./]+)?: cannot be written: No space left", last_line), (
        last_line
    )
    left = (tmp_path / "left").read_text(encoding="utf-8").split()
    assert "checkpoint-1" in left, left
    assert not [name for name in left if ".tmp-" in name], left
    assert "checkpoint-12" in (tmp_path / "all").read_text(encoding="utf-8").split()


def test_without_a_network_a_hub_id_is_one_line(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, "some-org/some-model", str(tmp_path / "run"))
    home = f"HF_HOME={tmp_path}/hub"
    done = unshared("-Urn", f"{home} {sys.executable} -m neuroada_cli train {recipe}")
    assert done.returncode == 4, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert "some-org/some-model" in line
    assert not (tmp_path / "run").exists()
