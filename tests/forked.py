"""A forked child that is gone when its work is done: it never runs the rest of the tests."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable

FAILED = 99  # what no command ends with


def child(act: Callable[[], int | None]) -> int:
    """The pid of a child that runs act and exits with what act returns (None is 0), or with FAILED
    and a traceback where act raises.
    """
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # what the parent left is none of this collector's business, which would copy all its pages
    code: int | None = FAILED
    try:
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0 if code is None else code)


def code_of(pid: int) -> int:
    """Wait for the child: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
