"""Large files: in chunks by another thread, past the system's cache, with the same bytes as small ones."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from io import FileIO
from pathlib import Path

import pytest
import torch
from trees import file_size_limit

from neuroada_cli import files
from neuroada_cli.errors import ResourceError
from neuroada_cli.files import hashed, system
from neuroada_cli.files.hashed import BLOCK, HashedFile

SHM = Path("/dev/shm")  # a file system without a disk
LENGTHS = [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 8, 9 * BLOCK - 3, 40 * BLOCK, 40 * BLOCK + 1]


@pytest.fixture(params=["through the cache", "past the cache"])
def past(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Chunks of two blocks; a file is large from its first byte on, or never."""
    wanted = bool(request.param == "past the cache")
    monkeypatch.setattr(hashed, "CHUNK", 2 * BLOCK)
    monkeypatch.setattr(hashed, "PAST_CACHE", 0 if wanted else 1 << 60)
    return wanted


def noise(nbytes: int) -> bytes:
    return random.Random(nbytes).randbytes(nbytes)


def pieces(data: bytes, seed: int) -> list[bytes]:
    """The data cut at random: within chunks, over several, and nothing at all now and then."""
    cuts = sorted(random.Random(seed).choices(range(len(data) + 1), k=7))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def write(path: Path, parts: list[bytes], nbytes: int) -> str:
    with open(path, "wb", buffering=0) as file, HashedFile(file, nbytes) as writer:
        for part in parts:
            mine = bytearray(part)
            writer.write(memoryview(mine))
            mine[:] = bytes(len(mine))  # the memory is the caller's again
        return writer.finish()


@pytest.mark.parametrize("nbytes", LENGTHS)
def test_the_bytes_and_their_hash_are_those_given(past: bool, nbytes: int, tmp_path: Path) -> None:
    data = noise(nbytes)
    for place in [tmp_path, *([SHM] if os.access(SHM, os.W_OK) else [])]:
        file = place / f"neuroada-test-{os.getpid()}"
        try:
            for seed in range(3):
                digest = write(file, pieces(data, seed), nbytes)
                assert file.read_bytes() == data
                assert digest == hashlib.sha256(data).hexdigest()
        finally:
            file.unlink(missing_ok=True)


class Recorded(FileIO):
    """How every write went: whether past the cache, how many bytes, from which place. Then it is refused:

    stubborn  with this number: a file system that takes the flag and will not have such writes
    broken    writes until the disk fails at this one; short  every write takes at most so many bytes
    """

    def __init__(
        self, path: Path, stubborn: int | None = None, broken: int = -1, short: int | None = None
    ) -> None:
        super().__init__(path, "wb")
        self.seen: list[tuple[bool, int, int]] = []
        self.threads: set[int] = set()
        self._stubborn, self._broken, self._short = stubborn, broken, short

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        assert system.fcntl is not None
        flags = system.fcntl.fcntl(self.fileno(), system.fcntl.F_GETFL)
        direct = bool(flags & getattr(os, "O_DIRECT", 0))
        self.seen.append((direct, len(data), self.tell()))
        self.threads.add(threading.get_ident())
        if len(self.seen) - 1 == self._broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if direct and self._stubborn is not None:
            raise OSError(self._stubborn, os.strerror(self._stubborn))
        return super().write(data[: self._short])


def takes_direct(place: Path) -> bool:
    with open(place / "probe", "wb", buffering=0) as file:
        return system.pass_cache(file.fileno(), True)


def send(file: Recorded, data: bytes) -> str:
    with file, HashedFile(file, len(data)) as writer:
        writer.write(memoryview(data))
        return writer.finish()


def test_whole_blocks_go_past_the_cache_and_only_the_rest_through_it(past: bool, tmp_path: Path) -> None:
    if not takes_direct(tmp_path):
        pytest.skip("this file system has no writes past the cache")
    data = noise(7 * BLOCK + 5)
    file = Recorded(tmp_path / "x")
    send(file, data)
    chunks = [(past, 2 * BLOCK, place * BLOCK) for place in (0, 2, 4)]
    rest = [(True, BLOCK, 6 * BLOCK), (False, 5, 7 * BLOCK)] if past else [(False, BLOCK + 5, 6 * BLOCK)]
    assert file.seen == chunks + rest
    assert len(file.threads) == 2  # the rest is written by the caller


def test_by_itself_only_a_large_file_goes_past_the_cache(tmp_path: Path) -> None:
    file = Recorded(tmp_path / "x")
    send(file, noise(9 * BLOCK))
    assert not any(direct for direct, _, _ in file.seen)
    assert hashed.PAST_CACHE >= 64 << 20  # an adapter, a small classifier: read next by an evaluation


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("short", [None, 1000, BLOCK])
def test_a_file_system_that_refuses_such_writes_gets_others(
    past: bool, short: int | None, number: int, tmp_path: Path
) -> None:
    data = noise(7 * BLOCK + 5)
    file = Recorded(tmp_path / "x", stubborn=number, short=short)
    assert send(file, data) == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "x").read_bytes() == data
    assert sum(direct for direct, _, _ in file.seen) <= 1


@pytest.mark.parametrize("short", [BLOCK, 1000])
def test_a_write_that_took_less_is_gone_on_with(past: bool, short: int, tmp_path: Path) -> None:
    data = noise(7 * BLOCK + 5)
    assert send(Recorded(tmp_path / "x", short=short), data) == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "x").read_bytes() == data


@pytest.mark.parametrize("broken", [0, 1, 5, 19])
def test_after_a_failing_write_there_is_no_other(past: bool, broken: int, tmp_path: Path) -> None:
    before = threading.active_count()
    file = Recorded(tmp_path / "x", broken=broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        send(file, noise(40 * BLOCK))
    assert len(file.seen) == broken + 1
    assert threading.active_count() == before


def test_whoever_leaves_early_leaves_no_thread_and_no_later_write(past: bool, tmp_path: Path) -> None:
    def leave(file: Recorded) -> None:
        with file, HashedFile(file, 40 * BLOCK) as writer:
            writer.write(memoryview(noise(11 * BLOCK)))
            raise KeyboardInterrupt

    before = threading.active_count()
    file = Recorded(tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        leave(file)
    assert len(file.seen) <= 5
    assert threading.active_count() == before


def test_tensors_over_many_chunks_are_written_alike(past: bool, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{n}": torch.randn(n * 997, generator=generator).bfloat16() for n in range(12)}
    files.write_tensors(tmp_path / "x", tensors, {"format": "pt"})
    read, _ = files.read_tensors(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_limit_is_told_in_one_line_whatever_thread_meets_it(past: bool, tmp_path: Path) -> None:
    with file_size_limit(5 * BLOCK), pytest.raises(ResourceError, match="ulimit"):
        files.write_tensors(tmp_path / "x", {"w": torch.zeros(40 * BLOCK)})
    assert os.listdir(tmp_path) == []
