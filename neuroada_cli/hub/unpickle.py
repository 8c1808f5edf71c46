"""Reads pickled weights and hands them on as plain bytes: run by `hub.pickled` as a process of its own.

The only place of the package that opens a pickle. torch's own unpickler with `weights_only=True` builds
tensors and plain containers and runs nothing else; since such promises have been broken before, it works in
a process that the kernel has shut off first: no sockets, no programs, no changes to files (seccomp; kernel
documentation, userspace-api/seccomp_filter). It is started by its path, imports nothing of the package, and
has no secrets in its environment.

On standard output, for every file named on the command line: a line of JSON, either {"error": text} or
{"tensors": [[name, dtype, shape], ...]}, then the bytes of these tensors in their order.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
import zipfile
from contextlib import suppress
from typing import Any, BinaryIO

# Denied with EPERM, by architecture: (audit number, system calls). Network (also through io_uring, which no
# filter sees into), programs, other processes, and whatever changes a file.
# fmt: off
FORBIDDEN = {
    "x86_64": (0xC000003E, (
        41, 42, 43, 44, 46, 49, 50, 53, 288, 299, 307,  # socket … sendmmsg
        425, 426, 427,  # io_uring
        59, 322, 101, 310, 311, 62, 200, 234, 424,  # execve, ptrace, process_vm, kill
        85, 76, 77, 82, 264, 316, 83, 258, 84, 86, 265, 88, 266, 87, 263,  # creat, truncate, rename … unlink
        90, 91, 268, 452, 92, 93, 94, 260, 133, 259, 165, 166, 272, 308,  # chmod … mknod, mount, setns
    )),
    "aarch64": (0xC00000B7, (
        198, 199, 200, 201, 202, 203, 206, 211, 242, 269, 243,
        425, 426, 427,
        221, 281, 117, 270, 271, 129, 130, 131, 424,
        45, 46, 38, 276, 34, 37, 36, 35,
        52, 53, 452, 54, 55, 33, 40, 39, 97, 268,
    )),
}
# fmt: on
X32 = 0x40000000  # bit of x86-64's second numbering of the same calls
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # DENY: EPERM
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
SPARE_BYTES = 4 << 30  # of memory beside the largest file: torch's own

with suppress(ImportError):  # Windows has none, and no seccomp: `shut_off` says so before it is used
    import resource

BLOCKED = re.compile(r"GLOBAL ([\w.]+)")


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32)
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def shut_off() -> str | None:
    """Give up network, programs and changes to files for good; or say why that cannot be done here."""
    known = FORBIDDEN.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return f"{sys.platform} on {platform.machine()} is not known to it"
    architecture, calls = known
    code = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    code += [(JUMP_AT_LEAST, 0, 1, X32), (RETURN, 0, 0, DENY)]
    for number in calls:
        code += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, DENY)]
    code.append((RETURN, 0, 0, ALLOW))
    program = _Program(len(code), (_Instruction * len(code))(*(_Instruction(*each) for each in code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(
        SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0
    ):
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # files stay as they are; pipes have no size
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return None


def read(path: str) -> dict[str, Any]:
    """name -> tensor of a pickled state dict. Raises ValueError for anything else, told in a line."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the file is foreign: anything may come out of it
        text = str(error)
        if (found := BLOCKED.search(text)) is not None:
            raise ValueError(f"wants to call {found[1]} when opened, which weights have no need of") from None
        said = "is not a file of pickled weights, or was cut short"
        if "MmapError" in text or isinstance(error, MemoryError):
            said = "does not fit into memory"
        raise ValueError(said) from None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"holds a {type(state).__name__}, not tensors by name")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"holds {str(name)[:80]!r}, a {type(tensor).__name__}, which is no tensor by name"
            )
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            raise ValueError(f"{name[:80]} is a {type(tensor).__name__} of layout {tensor.layout}")
    return state


def send(out: BinaryIO, path: str) -> None:
    """A file's header line, then its tensors' bytes, one of them in memory at a time."""
    import torch

    try:
        state = read(path)
    except ValueError as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    plan = [
        [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in state.items()
    ]
    out.write(json.dumps({"tensors": plan}).encode() + b"\n")
    out.flush()  # the reader may refuse what it is told before anything is made of it
    for tensor in state.values():
        flat = tensor.detach().contiguous().reshape(-1)
        if flat.numel():
            out.write(flat.view(torch.uint8).numpy().data)


def main() -> None:
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print is no part of the answer
        import torch

        torch.set_num_threads(1)
        largest = max(os.path.getsize(path) for path in sys.argv[1:])
        if sys.platform != "win32":
            resource.setrlimit(resource.RLIMIT_DATA, (SPARE_BYTES + 2 * largest,) * 2)
        problem = shut_off()
        if problem is not None:
            out.write(json.dumps({"open": problem}).encode() + b"\n")
            return
        for path in sys.argv[1:]:
            send(out, path)


if __name__ == "__main__":
    main()
