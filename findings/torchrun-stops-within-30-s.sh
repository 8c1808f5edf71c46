#!/usr/bin/env bash
# torchrun: what becomes of a job that is asked to stop, and whose processes save and leave with 0?
#
# Guess before running: torchrun hands SIGTERM on to its processes, waits for them, and ends with what they made of
# it: 0 when all left with 0, or the shell's 143. How long saving takes is the processes' own affair.
#
# Seen (torch 2.13.0): SIGTERM is handed on, but torchrun itself always ends with 1 and a traceback, also when every
# process saved and left with 0; a scheduler that tells "stopped as asked" (0, 143) from "failed" sees a failure. And
# after 30 seconds whoever is still saving is killed, without a word about it in the exit code: nothing of the slow
# save is left, and the code is the same 1. `--shutdown-timeout` lengthens the 30 seconds; nothing changes the 1.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/worker.py" <<'PY'
import os
import signal
import sys
import time
from pathlib import Path

folder, seconds, rank = Path(sys.argv[1]), float(sys.argv[2]), os.environ["RANK"]


def save(*_):
    (folder / f"asked{rank}").touch()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.1)
    (folder / f"saved{rank}").touch()
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
(folder / f"up{rank}").touch()
while True:
    time.sleep(0.1)
PY
cat > "$room/seen.py" <<'PY'
import signal
import subprocess
import sys
import time
from pathlib import Path

room = Path(sys.argv[1])


def stopped(seconds, *options):
    """torchrun's exit code, how long it took, and how many of two processes were asked and have saved."""
    folder = room / f"saving-for-{seconds}-s{len(options)}"
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = subprocess.Popen(
        [*command, *options, str(room / "worker.py"), str(folder), str(seconds)], stderr=subprocess.DEVNULL
    )
    while len(list(folder.glob("up*"))) < 2:
        time.sleep(0.2)
    asked = time.monotonic()
    job.send_signal(signal.SIGTERM)
    code = job.wait()
    return code, time.monotonic() - asked, len(list(folder.glob("asked*"))), len(list(folder.glob("saved*")))


for seconds, saved, *options in ((1, 2), (75, 0), (45, 2, "--shutdown-timeout", "100")):
    code, took, asked, done = stopped(seconds, *options)
    print(f"saving takes {seconds} s {' '.join(options)}: exit code {code} after {took:.0f} s, {asked} of 2 asked, {done} of 2 saved")
    assert (code, asked, done) == (1, 2, saved), "torchrun stops otherwise now"
    assert took < 70, "torchrun waits longer than 30 seconds now"
PY
cd "$room" && "$room/venv/bin/python" "$room/seen.py" "$room"
