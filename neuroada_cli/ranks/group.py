"""What the processes of a run tell each other. Only JSON and plain tensors travel, never a pickle.

Tensors are summed on the device they are on (NCCL for CUDA, gloo for the CPU); everything said about the run
(a stop, a verdict, a checkpoint's name) goes over gloo, so that no GPU is waited for.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from neuroada_cli import stopping
from neuroada_cli.errors import Followed, PeerError, ResourceError, UserError
from neuroada_cli.ranks.place import LAUNCHED, Place, place

Value = TypeVar("Value")
# A process that has died is noticed at once (its connections close); one that hangs, after this long. What
# one process does for all of them (checks, a download, a checkpoint) may take longer.
STEP_TIMEOUT, WORK_TIMEOUT = datetime.timedelta(minutes=10), datetime.timedelta(hours=6)
ANSWER_TIMEOUT = datetime.timedelta(seconds=5)  # for a launcher that is there
# in the store that all share: how many were about to tell why the run ends, and that it is told
SPOKEN, TOLD = "neuroada/spoken", "neuroada/told"


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them. In a run of one process everything is as if alone.

    sharded  every one holds its own rows of the model: all run as many forwards and backwards, in step

    All ranks have to call the same methods in the same order. Each raises PeerError when another process has
    gone or does not answer.
    """

    number: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    _patient: Any = None
    sharded: bool = False

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0: the one that writes, holds locks and talks to the user."""
        return self.number == 0

    def mine(self, items: Sequence[Value]) -> Sequence[Value]:
        """This rank's share: every `size`-th item."""
        return items[self.number :: self.size]

    def rows(self, count: int) -> slice:
        """This rank's share of so many rows, in one piece; the last ranks may have none.

        As torch cuts a sharded tensor: ceil(count / size) each.
        """
        share = -(-count // self.size)
        return slice(min(count, self.number * share), min(count, (self.number + 1) * share))

    def sum_(self, tensor: Tensor) -> None:
        """The sum over all ranks, in place: the same bits on each."""
        if not self.alone:
            with talking():
                dist.all_reduce(tensor)

    def largest(self, number: int) -> int:
        if self.alone:
            return number
        told = torch.tensor(number)
        with talking():
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told)

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Entry by entry: whether it holds on any rank."""
        if self.alone or not flags:
            return list(flags)
        told = torch.tensor(flags, dtype=torch.uint8)
        with talking():
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in told.tolist()]

    def stacked(self, tensor: Tensor) -> Tensor:
        """[size, ...]: every rank's tensor (CPU, all of one shape and data type), on all of them."""
        if self.alone:
            return tensor[None]
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        with talking():
            dist.all_gather(every, tensor.contiguous(), group=self._patient)
        return torch.stack(every)

    def joined(self, part: Tensor, count: int) -> Tensor:
        """[count, ...]: every rank's part (CPU), cut as `rows` says, on all of them."""
        share = -(-count // self.size)
        padded = part.new_zeros((share, *part.shape[1:]))
        padded[: len(part)] = part
        return self.stacked(padded).flatten(0, 1)[:count]

    def from_rank(self, rank: int, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """A rank's tensor (CPU) of that shape, on all; of the others only the data type counts."""
        if self.alone:
            return tensor
        told = tensor.contiguous() if self.number == rank else tensor.new_empty(tuple(shape))
        with talking():
            dist.broadcast(told, src=rank, group=self._patient)
        return told

    def collected(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in the order of the ranks, on all of them."""
        if self.alone:
            return [value]
        data = json.dumps(value).encode()
        sizes = self.stacked(torch.tensor([len(data)])).flatten().tolist()
        padded = torch.zeros(max(1, *sizes), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = self.stacked(padded)
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes, strict=True)]

    def shared(self, value: Any = None) -> Any:
        """The JSON value of rank 0, on all."""
        return value if self.alone else self.collected(value if self.first else None)[0]

    def first_does(self, work: Callable[[], Value]) -> Value | None:
        """Rank 0 works, the others wait; what it returns, to itself only.

        Raises on every rank when it fails: rank 0's own error there, Followed with its exit code elsewhere.
        """
        return self.all_do(lambda: work() if self.first else None)

    def all_do(self, work: Callable[[], Value]) -> Value:
        """Every rank works; when one fails, all of them raise: Followed where the work itself went well."""
        if self.alone:
            return work()
        try:
            result = work()
        except UserError as error:
            self.collected(error.exit_code)
            raise
        codes = [code for code in self.collected(None) if code is not None]
        if codes:
            raise Followed(codes[0])
        return result

    def refuse_differences(self, facts: dict[str, Any]) -> None:
        """Raises ResourceError on a rank that knows other facts (JSON) than rank 0, Followed elsewhere."""
        told = self.shared(facts)

        def compare() -> None:
            if odd := [name for name in facts if told.get(name) != json.loads(json.dumps(facts[name]))]:
                raise ResourceError(
                    f"process {self.number} on {socket.gethostname()} has another {odd[0]} than process 0",
                    fix="give all machines the same files, or a folder that they share",
                )

        self.all_do(compare)


ALONE = Ranks()


@contextmanager
def talking() -> Iterator[None]:
    """Inside, what torch raises because another process has gone becomes PeerError."""
    try:
        yield
    except RuntimeError as error:
        if not has_gone(error):
            raise
        raise gone() from error


def gone() -> PeerError:
    return PeerError("another process of this run has ended or does not answer")


def has_gone(error: BaseException) -> bool:
    """Whether an exception says that another process of the run cannot be reached: by torch's classes, and
    for gloo, which raises plain RuntimeErrors, by its text.
    """
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    said = ("gloo/transport", "gloo connect", "connection closed by peer", "connection reset by peer")
    return isinstance(error, RuntimeError) and any(words in text for words in said)


def join() -> Ranks:
    """This process's place among those of the run, connected to them.

    Raises ResourceError where they cannot find each other, or a machine has fewer GPUs than processes.
    """
    here = place()
    if here.size == 1:
        return ALONE
    cuda = torch.cuda.is_available()
    if cuda and here.local_size > torch.cuda.device_count():
        raise ResourceError(
            f"{here.local_size} processes on {socket.gethostname()}, which has "
            f"{torch.cuda.device_count()} GPUs",
            fix=f"start {torch.cuda.device_count()} there",
        )
    if cuda:
        torch.cuda.set_device(here.local)
    if not dist.is_initialized():
        stopping.end_with_parent()
        _connect(here, "cpu:gloo,cuda:nccl" if cuda else "gloo")
    patient = _hearing_signals(lambda: dist.new_group(timeout=WORK_TIMEOUT, backend="gloo"))
    return Ranks(here.number, here.size, here.local, here.local_size, patient)


def _connect(here: Place, backend: str) -> None:
    try:
        _hearing_signals(lambda: dist.init_process_group(backend, timeout=STEP_TIMEOUT))
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"the {here.size} processes cannot reach each other: {' '.join(str(error).split())[:200]}",
            f"MASTER_ADDR={os.environ.get('MASTER_ADDR', '')[:80]}",
            "check the address and the network (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)",
        ) from error


def _hearing_signals(connect: Callable[[], Value]) -> Value:
    """What waits in C for processes that may never come, in a thread: Python runs handlers of signals only in
    the main one, and only when that is back from C.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(connect).result()


def leave(ranks: Ranks) -> None:
    """Part from the others in good order: when all have come here."""
    if not ranks.alone and dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.barrier(group=ranks._patient)
        dist.destroy_process_group()


def speaks(error: BaseException) -> bool:
    """Whether this process tells the user of `error`: the first that is about to does, once for all, and says
    so by `told`. The others wait for that, a few seconds at most: once one has ended, the launcher ends all.

    The store is the launcher's where torchrun keeps it, so it outlives rank 0 and is there before the
    processes know each other. Without it rank 0 tells what then all run into.
    """
    follows = isinstance(error, Followed)
    if isinstance(error, PeerError) and not follows and LAUNCHED in os.environ:
        return False  # the launcher tells of the one that was killed
    try:
        store = _store()
        if store is None:
            return place().number == 0 and not follows
        first = not follows and bool(store.add(SPOKEN, 1) == 1)
        if not first:
            with contextlib.suppress(RuntimeError):
                store.wait([TOLD], ANSWER_TIMEOUT)
        return first
    except RuntimeError:  # the store has gone with the process that kept it
        return not follows


def told() -> None:
    """The one that `speaks` has done so."""
    with contextlib.suppress(RuntimeError):
        if (store := _store()) is not None:
            store.set(TOLD, "1")


def _store() -> Any:
    """What all processes share; before they know each other the launcher's, None where it has none."""
    if dist.is_initialized():
        return dist.distributed_c10d._get_default_store()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=ANSWER_TIMEOUT)  # type: ignore[attr-defined]
