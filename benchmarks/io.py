"""File work against the plain way: select / reading the files, merge / cp, attach and switch / loading.

    python benchmarks/io.py                 # models of 1 and 8 GB in four shards, in a temporary folder
    python benchmarks/io.py --gigabytes 0.2 --rounds 1 --no-write

Every timed command is a process of its own. `select` has imported everything before the clock starts, which
is the processor's, so that a busy machine does little harm; `merge` and `cp` are whole processes, from their
start to their end on the wall. Rounds are interleaved; a figure is the median of the ratios within a round.
"Cold" asks the system to drop the files from its cache first; `cp` is timed as it is and with the copies
flushed to disk, which merge always does. All but merge is done with the first of the models.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Taken, whole_process
from transformers import AutoConfig, AutoModelForCausalLM

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.machine.load import machine
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.selection.choice import Choice, target_layers
from neuroada_cli.selection.from_files import select_from_files
from neuroada_cli.selection.spread import Spread

SHARDS = 4
CHUNK = 16 << 20
K = 20


def make_model(folder: Path, gigabytes: float) -> None:
    """A Llama of bf16 noise with as many blocks as the size takes, in SHARDS files."""
    hidden, inner, vocabulary = 2048, 5632, 32000
    block = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * vocabulary * hidden) / block))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    folder.mkdir(parents=True)
    files.write_json(folder / "config.json", config)
    with torch.device("meta"):  # there are no files yet that the hub could check the config against
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = sorted(shapes)
    per_shard = -(-len(names) // SHARDS)
    weight_map = {}
    for number in range(SHARDS):
        here = names[number * per_shard : (number + 1) * per_shard]
        shard = hub.shard_name(number + 1, SHARDS)
        plan = [(name, torch.bfloat16, shapes[name]) for name in here]
        noise = (torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02) for name in here)
        files.stream_tensors(folder / shard, plan, noise, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(here, shard)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    files.write_json(folder / hub.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def make_adapter(model: Path, folder: Path) -> None:
    base = hub.open_base(model)
    selection = select_from_files(base, Choice(target_layers(base), Spread(K)))
    generator = torch.Generator().manual_seed(0)
    deltas = {
        name: 0.01 * torch.randn(index.shape, generator=generator)
        for name, index in selection.indices.items()
    }
    trained = adapters.Adapter(selection, deltas, {}, str(model), None, "causal-lm", {"dtype": "bf16"})
    with files.atomic_folder(folder) as temporary:
        adapters.write_adapter(temporary, trained)


# ---------------------------------------------------------------------------------------------------
# What is timed; each runs in a process of its own


def select(model: Path, work: Path, k: int = K) -> None:
    from neuroada_cli.commands import select as command

    recipe = recipe_from(
        {
            "name": "bench",
            "model": {"path": str(model)},
            "select": {"k": k},
            "data": {"task": "commonsense"},
        }
    )
    command.run(recipe, out=work / "selection.safetensors", overwrite=True, quiet=True)


def select_one(model: Path, work: Path) -> None:
    select(model, work, 1)


def select_many(model: Path, work: Path) -> None:
    select(model, work, 64)


def merge(model: Path, work: Path) -> None:
    from neuroada_cli.commands import merge as command

    command.run(work / "adapter", work / "merged", quiet=True)


def read(model: Path, work: Path) -> None:
    buffer = bytearray(CHUNK)
    for file in sorted(model.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def cp(model: Path, work: Path) -> None:
    subprocess.run(["cp", "-r", str(model), str(work / "copy")], check=True)


def cp_flushed(model: Path, work: Path) -> None:
    cp(model, work)
    for file in (work / "copy").iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())


TIMED: dict[str, Callable[[Path, Path], None]] = {
    "select": select, "select_1": select_one, "select_64": select_many, "merge": merge, "read": read,
    "cp": cp, "cp_flushed": cp_flushed,
}  # fmt: skip


def child(name: str, model: Path, work: Path) -> dict[str, Any]:
    """Seconds, the processor's and on the wall, and how much anonymous memory (no file pages) and resident
    set grew at their peak.
    """
    importlib.import_module("neuroada_cli.commands.merge")
    importlib.import_module("neuroada_cli.commands.select")
    before = memory()
    peak = dict(before)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for key, value in memory().items():
                peak[key] = max(peak[key], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, before_cpu = time.perf_counter(), time.process_time()
    TIMED[name](model, work)
    seconds, processor = time.perf_counter() - started, time.process_time() - before_cpu
    done.set()
    watcher.join()
    grown = {f"{key}_growth_bytes": peak[key] - before[key] for key in before}
    return {"seconds": seconds, "processor_seconds": processor, **grown}


def memory() -> dict[str, int]:
    """Bytes of this process: of its own memory, what it shares with nobody's file included, and of all."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    held = {
        p[0][:-1]: int(p[1]) * 1024
        for p in map(str.split, status.splitlines())
        if p and p[0][:2] in ("Rs", "Vm")
    }
    return {"anonymous": held["RssAnon"] + held["RssShmem"], "resident": held["VmRSS"]}


def drop_from_cache(folder: Path) -> None:
    os.sync()
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_child(name: str, model: Path, work: Path, cold: bool) -> dict[str, Any]:
    for left in ("copy", "merged"):
        shutil.rmtree(work / left, ignore_errors=True)
    os.sync()  # what the one before has left to the disk is not this one's
    if cold:
        drop_from_cache(model)
    command = [sys.executable, __file__, "--child", name, "--model", str(model), "--work", str(work)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(
    ours: str, theirs: Sequence[str], model: Path, work: Path, rounds: int, cold: bool
) -> dict[str, Any]:
    """ours over each of theirs as a ratio of speeds (1 = as fast), and of the processor's seconds where both
    are of one process; medians over interleaved rounds.
    """
    nbytes = _nbytes(model)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (ours, *theirs)}
    for turn in range(rounds):
        order = [ours, *theirs] if turn % 2 == 0 else [*theirs, ours]
        for name in order:
            runs[name].append(in_child(name, model, work, cold))
            print(f"  {name:11} {'cold' if cold else 'warm'}  {runs[name][-1]['seconds']:7.2f} s", flush=True)
    row: dict[str, Any] = {"what": ours, "cache": "cold" if cold else "warm", "bytes": nbytes}
    for name, results in runs.items():
        row[f"{name}_bytes_per_s"] = nbytes / statistics.median(r["seconds"] for r in results)
    for name in theirs:
        pairs = list(zip(runs[ours], runs[name], strict=True))
        row[f"speed_over_{name}"] = round(statistics.median(t["seconds"] / o["seconds"] for o, t in pairs), 3)
        if name == "read":
            cpu = [o["processor_seconds"] / t["processor_seconds"] for o, t in pairs]
            row["processor_over_read"] = round(statistics.median(cpu), 3)
    for kind in ("anonymous", "resident"):
        row[f"peak_{kind}_bytes"] = max(result[f"{kind}_growth_bytes"] for result in runs[ours])
    return row


def _nbytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


COPY = "cp -r model copy"
FLUSH = COPY + " && sync copy/*"
MERGE = f"{sys.executable} -m neuroada_cli merge adapter merged --overwrite"


def whole_merge(model: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Whole processes on the wall: merge over cp, and over cp with its files flushed, of a base that was
    merged before. processor_seconds says what each computed meanwhile.
    """
    taken: dict[str, list[Taken]] = {"merge": [], "cp": [], "cp_flushed": []}
    commands = [("merge", MERGE), ("cp", COPY), ("cp_flushed", FLUSH)]
    for turn in range(1 + rounds):
        # who comes after whom decides how much memory the system has at hand for its cache
        for name, command in commands if turn % 2 else commands[::-1]:
            for left in ("copy", "merged"):
                shutil.rmtree(work / left, ignore_errors=True)
            os.sync()
            found = whole_process(["sh", "-c", command], work)
            taken[name] += [found] if turn else []
            print(f"  {name:11} whole {found.wall:7.2f} s, processor {found.processor:.2f} s", flush=True)
    row: dict[str, Any] = {"what": "merge, whole process", "bytes": _nbytes(model)}
    for name, runs in taken.items():
        row[f"{name}_seconds"] = round(statistics.median(run.wall for run in runs), 2)
        row[f"{name}_processor_seconds"] = round(statistics.median(run.processor for run in runs), 2)
    for name in ("cp", "cp_flushed"):
        pairs = zip(taken["merge"], taken[name], strict=True)
        row[f"time_over_{name}"] = round(statistics.median(o.wall / t.wall for o, t in pairs), 3)
    return row


def attach_and_switch(model: Path, work: Path) -> dict[str, Any]:
    """The processor's seconds to put an adapter on the loaded model, to swap it for another, and to load the
    model from disk.

    Loaded means that the weights lie in memory of their own: a weight that is only mapped is copied page by
    page when it is first written to, and attaching would be charged for that.
    """
    from neuroada_cli.delta import model as delta

    trained = adapters.read_adapter(work / "adapter")
    other = {name: -values for name, values in trained.deltas.items()}
    rows = []
    torch.set_num_threads(1)
    for _ in range(3):
        drop_from_cache(model)
        started = time.process_time()
        loaded = hub.load_model(model, "causal-lm", "bf16").model
        for parameter in loaded.parameters():
            parameter.data = parameter.data.clone()
        load = time.process_time() - started
        started = time.process_time()
        delta.attach(loaded, trained.selection.indices, trained.deltas)
        attach = time.process_time() - started
        switches = []
        for values in (other, trained.deltas, other):
            started = time.process_time()
            delta.switch(loaded, values)
            switches.append(time.process_time() - started)
        rows.append((load, attach, statistics.median(switches)))
        del loaded
    load, attach, switch = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "what": "attach", "k": K, "load_seconds": load, "attach_seconds": attach, "switch_seconds": switch,
        "attach_over_load": round(attach / load, 4), "switch_over_load": round(switch / load, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="select, merge, attach and switch against the plain way.")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the model is made; default: the system's temporary folder")
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    parser.add_argument("--child", choices=TIMED, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.model, given.work)))
        return
    with tempfile.TemporaryDirectory(prefix="neuroada-bench-", dir=given.folder) as folder:
        work = Path(folder)
        model, rows = work / "model", []
        for number, size in enumerate(given.gigabytes):
            print(f"making a model of {size} GB", flush=True)
            shutil.rmtree(model, ignore_errors=True)
            shutil.rmtree(work / "adapter", ignore_errors=True)
            make_model(model, size)
            make_adapter(model, work / "adapter")
            rows.append(whole_merge(model, work, given.rounds))
            if number:
                continue
            rows.append(compare("select", ["read"], model, work, given.rounds, cold=True))
            for name in ("select_1", "select", "select_64"):
                rows.append(compare(name, ["read"], model, work, given.rounds, cold=False))
            rows.append(compare("merge", ["cp", "cp_flushed"], model, work, given.rounds, cold=False))
            rows[-1]["largest_shard_bytes"] = max(f.stat().st_size for f in model.glob("*.safetensors"))
            rows.append(attach_and_switch(model, work))
    for row in rows:
        print(json.dumps(row))
    if not given.no_write:
        files.write_json(RESULTS / "io.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
