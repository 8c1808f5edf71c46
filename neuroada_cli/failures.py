"""How a command ends: quickly, and when it fails with one line on stderr, a traceback only if asked for."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shutil
import sys
import textwrap
import threading
import traceback
from typing import NoReturn

from neuroada_cli.errors import Stopped, UserError, limit_reached, out_of_memory
from neuroada_cli.foreign_text import one_line, printable, public

USAGE = 2
MODEL = 4
RESOURCES = 6
BUG = 70
INTERRUPTED = 130  # where no handler of ours is installed (`stopping`)
# What the machine refused, rather than what we did wrong.
RESOURCE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM,
     errno.EMFILE, errno.ENFILE}
)  # fmt: skip
# A name that no file can have: of whoever gave it.
NAME_ERRNOS = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
LESS_MEMORY = (
    "lower train.micro_batch_size, data.max_length or eval.batch_size, or set train.gradient_checkpointing"
)

# What to do about an error of a model's own code
OWN_CODE = "see whether its settings and inputs suit it in transformers alone, or run again with --debug"
# Where code of a model lies: transformers' own, with the caches that a model chooses, and what came in a
# model's folder
MODEL_CODE = (
    f"transformers{os.sep}models{os.sep}", f"transformers{os.sep}cache_utils.py", "transformers_modules",
)  # fmt: skip
OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


def report(error: BaseException, debug: bool = False, speaks: bool = True) -> int:
    """Tell the user about whatever ended the command, and return the exit code.

    speaks  False where another process of the run tells it
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # the reader of our output (head, a pager) has gone; keep the interpreter from flushing into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    line, code = explain(error)
    if debug:
        lines = "".join(traceback.format_exception(error))
        print(printable(public(lines), keep="\n"), file=sys.stderr, end="")
    if speaks:
        print(_on_terminal(line), file=sys.stderr)
    return code


def leave(code: int) -> NoReturn:
    """End this process as the interpreter would: its threads are waited for, what was registered for the end
    is called, what was printed is flushed. Only what takes half a second or more once torch is imported is
    left to the system: taking every object apart.

    Under a profiler or a debugger, and with `python -i`, the interpreter itself ends it.
    """
    wait_for_threads = getattr(threading, "_shutdown", None)  # as multiprocessing ends its processes
    call_registered = getattr(atexit, "_run_exitfuncs", None)
    watched = sys.flags.inspect or sys.gettrace() is not None or sys.getprofile() is not None
    if watched or wait_for_threads is None or call_registered is None:
        sys.exit(code)
    wait_for_threads()
    call_registered()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # gone, closed, never there
            stream.flush()
    os._exit(code)


def _on_terminal(line: str) -> str:
    """Broken between words where a terminal would break it anywhere; a path stays whole, to be copied."""
    if not sys.stderr.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, max(width, 20), break_long_words=False, break_on_hyphens=False)


def explain(error: BaseException) -> tuple[str, int]:
    """One line and an exit code for any exception."""
    if isinstance(error, Stopped):  # as its user wished
        return error.line(), error.exit_code
    if isinstance(error, UserError):
        return f"error: {error.line()}", error.exit_code
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "stopped", INTERRUPTED
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "neuroada"
        message = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
        message, hinted, meant = message.partition(". Did you mean ")
        fix = f"did you mean {meant}" if hinted else f"see `{command} --help`"
        return _line(f"{message[:1].lower()}{message[1:]}; {fix}"), USAGE
    if out_of_memory(error):
        return f"error: out of memory; {LESS_MEMORY}", RESOURCES
    if isinstance(error, OSError) and error.errno in RESOURCE_ERRNOS:
        place = f"{error.filename}: " if error.filename else ""
        return _line(f"{place}{error.strerror}"), RESOURCES
    if isinstance(error, OSError) and error.errno in NAME_ERRNOS:
        place = f"{error.filename}: " if error.filename else ""
        return _line(f"{place}{str(error.strerror).lower()}; name one that the file system can hold"), USAGE
    remedy = limit_reached(error)
    if remedy is not None:
        return _line(f"{str(error)[:300]}; {remedy}"), RESOURCES
    text = public(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    raised_at = _in_model_code(error)
    if raised_at is not None:
        return _line(f"{raised_at}: the model's own code fails ({text}); {OWN_CODE}"), MODEL
    return _line(f"this is a bug in neuroada ({text}); run again with --debug and report it"), BUG


def _in_model_code(error: BaseException) -> str | None:
    """`file:line` of a model's code where the error rose in it, or in what it calls. An error in a layer
    that we have put into the model is ours.
    """
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file.startswith(OURS):
            place = None
        elif any(part in file for part in MODEL_CODE):
            place = f"{os.path.basename(file)}:{line}"
    return place


def _line(text: str) -> str:
    return f"error: {one_line(text)}"
