"""docs/reliability.md from the tests' own counts, docs/results/reliability.json: `make reliability`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from performance_page import machine_line

DOCS = Path(__file__).parents[1]
COUNTS = DOCS / "results" / "reliability.json"
KILLED = DOCS / "results" / "killed_ranks.json"
EVERY_CALL = "every call: "
INTRODUCTION = """\
# Nothing lost, nothing let in

Written by `make reliability`, which runs `tests/faults/` at full size; `make test` runs the same tests with
fewer cases. Every number is a case that was tried. A case with any other outcome fails the tests, so it
cannot appear here.

## A machine that dies or a disk that refuses, at every call

A shim under the C library counts the calls that change files (write, fsync, rename, symlink, truncate, make,
remove) on the way through each kind of output, and at call 1, 2, 3, ... until there are no more:

- **kill**: SIGKILL instead of the call
- **torn write**: half of the bytes, then SIGKILL
- **ENOSPC**: the disk is full from this call on
- **EIO**: this call fails

Afterwards the output is *as before* (absent, or the old version, complete) or *complete* (the new version,
every byte), never anything between. Only a training that is to replace another (`--overwrite`) may be found
*on the way*: the old run is gone or about to go, no new checkpoint is there yet, and it can be started again.
After a failure no temporary file is left, after a kill the next writer removes it. A failing call ends in
exit code 6 and one line; none is passed over in silence.
"""
MOMENTS = """
## At random moments

Nothing is aimed at here: the process dies, or is asked to stop, at a random moment of its whole life. A
checkpoint it said it had saved must load afterwards and hold what was saved; a training that goes on must end
with the same bits in adapter, optimizer and loss log as one that was never stopped; a signal ends it with
130, 143 or 129, and the command can be done again. A limit on the size of files (as under a quota) or on how
many may be open ends in exit code 6, and everything is as before. Whoever reads or merges a run while it
saves and removes checkpoints gets a whole one.
"""
RANKS = """
## One of several processes dies

`make killed-ranks` starts trainings in two processes (`--processes 2`, with whole models and sharded ones),
kills one of the two with SIGKILL at a random moment of their whole life, from the first import to the end,
and goes on with `--resume`. Nothing may be half written, the line says which process was killed, the exit
code is 8, and the end has the same bits in adapter, optimizer, random states and loss log as that of a run
that was never killed. The folders lie in memory where they can: a process that waits for a busy disk ends
only when that answers. The counts are written after every kill, also of a series that was cut short.
"""
READERS = """
## Damaged and hostile files

Each case is read by the real reader. It is refused in one line of sane length, without a traceback, or it is
accepted and every number equals what an independent reading by NumPy, or by Python's own JSON, gives. A
recipe is accepted when it is a valid one: much damage falls into comments and descriptions. Adapters are
damaged with a manifest that agrees with the damage, so that it is the reader that is tried and not only the
hash.
"""
PEERS = """
## Beside others

Measured in 2026 on their current versions, where the same question could be asked:

| | others | neuroada |
|---|---|---|
| killed while saving a checkpoint, an older good one beside it | Hugging Face Trainer: resuming fails at \
17 of 19 kill points | goes on from the newest complete one at all of them |
| stopped by a signal within a step, with dropout and accumulation, then resumed | Hugging Face Trainer: \
bit-exact at 0 of 32 micro-batches | bit-exact at every one |
| every label masked | Hugging Face Trainer: trains, at loss 0.0 | refused before the model loads, rows \
counted |
| merging an adapter onto a base it was not made for | PEFT: merges, says nothing | refused, the first \
difference named |
| NaN in the adapter | PEFT: merges unless asked to check | never written, and refused when read |
| full disk | `torch.save`: leaves a part of the file | nothing left over, exit code 6, the bytes needed |
| no permission to save | Lightning's atomic save: says nothing | exit code 6, the place and what to do |

## What runs where

`make test` tries all of these kinds but the longest, with fewer cases each, so that the whole suite stays
under a quarter of an hour on two cores; what takes minutes by itself (the longer outputs call by call,
signals at any moment, the steps with flat memory) is in `make test-slow`. `make reliability` runs both at
full size. Whether the tests would notice a fault in the product is tried one line at a time
([mutants](mutants.md)).

## What this does not show

The counts at every call and of signals are of runs of one process. In a run of several (`torchrun`,
`--processes`) only rank 0 writes, by the same code.

In the first tenth of a second (more on a busy machine) the interpreter itself starts, and no line of this
package has run: a signal then does what it does to any Python program. SIGTERM and SIGHUP end it at once and
without a line, SIGINT with Python's own. Nothing has been begun then.

A kill leaves the operating system alive: what it has taken, it writes. A machine that loses power may forget
what was not yet synced. Therefore every file and folder is fsynced before it gets the name that makes it
visible, and a test reads the order of these calls from `strace` (`tests/files/test_atomic.py`); the disk has
to keep its word.
"""


def page() -> str:
    counts = json.loads(COUNTS.read_text(encoding="utf-8"))
    random = MOMENTS + _moments(counts) + RANKS + _ranks(json.loads(KILLED.read_text(encoding="utf-8")))
    return INTRODUCTION + _calls(counts) + random + READERS + _readers(counts) + PEERS


def _calls(counts: dict[str, Any]) -> str:
    kinds, states = ("kill", "torn write", "ENOSPC", "EIO"), ("as before", "on the way", "complete")
    lines = [
        "",
        f"| output | {' | '.join(kinds)} | {' | '.join(states)} |",
        "|---|" + "---:|" * (len(kinds) + len(states)),
    ]
    total = 0
    for name in (name for name in counts if name.startswith(EVERY_CALL)):
        found = counts[name]
        tried = {kind: sum(found[kind].values()) for kind in kinds}
        ended = [sum(found[kind].get(f"after {state}", 0) for kind in kinds) for state in states]
        cells = [f"{number:,}" for number in (*tried.values(), *ended)]
        lines.append(f"| {name.removeprefix(EVERY_CALL)} | {' | '.join(cells)} |")
        total += sum(tried.values())
    lines += ["", f"{total:,} faults in all; states that could not be used afterwards: 0."]
    return "\n".join(lines) + "\n"


def _at_random(name: str) -> bool:
    return name.startswith(("random ", "file size", "steps ", "few ", "signals "))


def _moments(counts: dict[str, Any]) -> str:
    lines = ["", "| what | cases | came out as |", "|---|---:|---|"]
    for name, found in counts.items():
        if _at_random(name):
            shown = ", ".join(f"{key}: {number:,}" for key, number in found.items())
            lines.append(f"| {name} | {sum(found.values()):,} | {shown} |")
    return "\n".join(lines) + "\n"


def _ranks(found: dict[str, Any]) -> str:
    lines = ["", "| what | cases |", "|---|---:|"]
    lines += [f"| {name} | {number} |" for name, number in found["came_out"].items()]
    known = len(found.get("seconds", ()))
    timed = f" of the last {known}" if 0 < known < found["kills"] else ""
    bound, longest, median = (found[f"{name}_seconds"] for name in ("promised", "longest", "median"))
    lines += [
        "",
        f"{found['kills']} kills. From the kill until every process was gone: {median} s in the middle{timed}"
        f", {longest} s at most; {bound:.0f} s are promised. (One that hangs but lives is noticed after ten "
        "minutes.)",
        machine_line(found["machine"], "make killed-ranks"),
    ]
    return "\n".join(lines)


def _readers(counts: dict[str, Any]) -> str:
    lines = ["", "| what | cases | refused | accepted and right |", "|---|---:|---:|---:|"]
    for name, found in counts.items():
        if name.startswith(EVERY_CALL) or _at_random(name):
            continue
        tried, refused = sum(found.values()), found.get("refused")
        results = ["", ""] if refused is None else [f"{refused:,}", f"{tried - refused:,}"]
        lines.append(f"| {name} | {tried:,} | {' | '.join(results)} |")
    return "\n".join(lines) + "\n"
