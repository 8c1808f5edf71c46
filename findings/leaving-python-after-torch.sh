#!/usr/bin/env bash
# What the end of a process costs that has imported torch.
#
# Guess before running: some hundredths of a second, nothing beside the import.
#
# Seen (torch 2.13.0, CPython 3.11, x86-64): of the processor's time of `python -c "import torch"`, some two seconds, a
# fifth to a third goes into leaving: the interpreter looks for cycles among all that was imported and takes it
# apart object by object. os._exit leaves that to the system. After numpy alone leaving takes three hundredths of a second.
#
# So a command line built on torch is answered sooner by half a second if it sees to its threads, its atexit calls and
# its output itself and then leaves at once; whoever compares start times compares ends, too.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import os
import statistics
import subprocess
import sys

ROUNDS = 7
ENDS = {"as ever": "", "at once": "; import os; os._exit(0)"}


def processor_seconds(code):
    """Of one process, its start and its end included."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


shares = []
for turn in range(ROUNDS + 1):  # the first one reads the files from the disk
    taken = {name: processor_seconds(f"import torch{end}") for name, end in ENDS.items()}
    if turn:
        shares.append(1 - taken["at once"] / taken["as ever"])
        print(f"import torch: {taken['as ever']:.2f} s, left at once {taken['at once']:.2f} s")
share = statistics.median(shares)
print(f"share of the end: {share:.0%}")
assert 0.08 < share < 0.6
import torch  # noqa: E402

print("torch", torch.__version__, "Python", sys.version.split()[0])
PY
"$room/venv/bin/python" "$room/seen.py"
