"""`--processes N`: torchrun on this machine, called from here, so that its end is one line and one code."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from neuroada_cli.errors import PeerError
from neuroada_cli.machine.processor import usable_cores
from neuroada_cli.ranks.place import LAUNCHED

# A stop reaches a step's end and a checkpoint before it is enforced; torchrun's own patience is 30 s.
STOP_SECONDS = 600
FOLLOWED = PeerError.exit_code


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m neuroada_cli ARGUMENTS` in so many processes; the exit code of all together.

    A signal goes on to all of them: they save and end, and the code is 128 + its number.
    Raises PeerError when one of them was killed or vanished, whatever the others made of it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # one line says it: ours
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (usable_cores() or 1) // processes)))
    # torch 2.11 has its 30 s and no way to say otherwise
    told = any(field.name == "shutdown_timeout" for field in dataclasses.fields(LaunchConfig))
    patience: dict[str, Any] = {"shutdown_timeout": STOP_SECONDS} if told else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        logs_specs=DefaultLogsSpecs(),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        **patience,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "neuroada_cli", *arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        return _code_of({rank: failure.exitcode for rank, failure in failed.failures.items()})
    return 0


def _code_of(codes: dict[int, int]) -> int:
    """The code of the process that failed by itself, and has said why; not of those that followed it.

    codes  rank -> exit code, negative for a signal. Raises PeerError where there is none.
    """
    asked = (signal.SIGTERM, signal.SIGINT)  # what the launcher itself sends once one has failed
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code not in asked}
    # beside a killed one, another's "stopped by SIGTERM" is the launcher's doing
    followed = {FOLLOWED, *(128 + number for number in asked if killed)}
    own = [code for code in codes.values() if code > 0 and code not in followed]
    if own:
        return own[0]
    what = "a process has ended or does not answer"
    if killed:
        rank, number = min(killed.items())
        what = f"process {rank} was killed by {signal.Signals(number).name}"
    raise PeerError(f"{what}, so the others were ended, too", fix="go on with --resume")
