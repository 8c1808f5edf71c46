"""What ranks tell each other: sums, verdicts, values; and how the end of one becomes the end of all."""

from __future__ import annotations

import datetime
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import child, code_of
from forked_ranks import in_ranks
from torch import nn

from neuroada_cli import stopping
from neuroada_cli.errors import DataError, Followed, PeerError, ResourceError
from neuroada_cli.ranks import group
from neuroada_cli.ranks.gradients import sum_gradients
from neuroada_cli.ranks.group import ALONE, Ranks, has_gone
from neuroada_cli.ranks.launch import _code_of
from neuroada_cli.ranks.place import Place, place, several


def test_values_travel_to_all_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        summed = torch.full((3,), float(ranks.number + 1))
        ranks.sum_(summed)
        part = torch.arange(10, dtype=torch.int32)[ranks.rows(10)]
        return {
            "sum": summed.tolist(),
            "largest": ranks.largest(7 * ranks.number),
            "any": ranks.any_of([ranks.number == 1, False, True]),
            "collected": ranks.collected({"é": ranks.number * "x", "nan": None}),
            "shared": ranks.shared([ranks.number]),
            "joined": ranks.joined(part, 10).tolist(),
            "from": ranks.from_rank(2, torch.full((2,), ranks.number), (2,)).tolist(),
            "mine": list(ranks.mine(range(7))),
        }

    for number, told in enumerate(in_ranks(3, tmp_path, work)):
        assert told == {
            "sum": [6.0] * 3,
            "largest": 14,
            "any": [True, False, True],
            "collected": [{"é": n * "x", "nan": None} for n in range(3)],
            "shared": [0],
            "joined": list(range(10)),
            "from": [2, 2],
            "mine": list(range(7))[number::3],
        }


def test_alone_everything_is_as_if_nobody_else_was_there() -> None:
    tensor = torch.tensor([1.0])
    ALONE.sum_(tensor)
    assert tensor.item() == 1.0
    assert (ALONE.largest(3), ALONE.any_of([True]), ALONE.collected(1), ALONE.shared(2)) == (
        3,
        [True],
        [1],
        2,
    )
    assert ALONE.rows(5) == slice(0, 5)
    assert ALONE.first_does(lambda: "done") == "done"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_rows_are_cut_as_torch_cuts_a_sharded_tensor(size: int, count: int) -> None:
    parts = [torch.arange(count)[Ranks(number, size).rows(count)] for number in range(size)]
    assert torch.cat(parts).tolist() == list(range(count))
    chunks = torch.arange(count).chunk(size) if count else ()
    assert [len(part) for part in parts][: len(chunks)] == [len(chunk) for chunk in chunks]


def test_a_failure_of_one_ends_all_with_its_code(tmp_path: Path) -> None:
    def refuse() -> None:
        raise DataError("is empty", "a.jsonl", "add rows")

    def by_the_first(ranks: Ranks) -> Any:
        return ranks.first_does(refuse)

    def by_the_other(ranks: Ranks) -> Any:
        return ranks.all_do(refuse if ranks.number else lambda: None)

    for speaker, work in enumerate((by_the_first, by_the_other)):
        told = in_ranks(2, tmp_path / str(speaker), work)
        assert [each["code"] for each in told] == [3, 3]
        assert told[speaker]["line"] == "a.jsonl: is empty; add rows"
        assert "has said why" in told[1 - speaker]["line"]


def test_a_machine_with_other_files_is_named(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        return ranks.refuse_differences({"recipe": {"k": 1}, "base model": [ranks.number // 2]})

    told = in_ranks(3, tmp_path, work)
    assert [each["code"] for each in told] == [6, 6, 6]
    assert told[2]["line"].startswith("process 2 on ")
    assert "another base model than process 0" in told[2]["line"]


def test_the_first_that_is_about_to_speak_speaks_and_the_others_wait_for_it(tmp_path: Path) -> None:
    said = tmp_path / "said"

    def work(ranks: Ranks) -> Any:
        follows = ranks.number == 0  # its work went well
        first = group.speaks(Followed(3) if follows else DataError("is empty"))
        if first:
            time.sleep(1)  # long enough that whoever does not wait is seen
            said.write_text("why")
            group.told()
        return [first, said.exists()]

    told = in_ranks(3, tmp_path, work)
    assert told[0] == [False, True]
    assert sorted(told[1:]) == [[False, True], [True, True]]
    assert not group.speaks(Followed(3))


def test_before_they_know_each_other_the_first_speaks_whichever_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A package that only the second machine lacks: rank 0 runs into nothing, and is only stopped."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    places = {"RANK": 1, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": store.port}
    for name, value in (places | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": True}).items():
        monkeypatch.setenv(name, str(value))
    assert group.speaks(DataError("is empty"))
    group.told()
    monkeypatch.setenv("RANK", "0")
    assert not group.speaks(DataError("is empty"))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")  # another launcher, whose store rank 0 would keep
    assert group.speaks(DataError("is empty"))


def test_a_peer_that_has_gone_is_an_error_of_code_8(tmp_path: Path) -> None:
    """Killed at once, so that nothing is closed in good order."""

    def work(ranks: Ranks) -> Any:
        ranks.largest(0)
        if ranks.number == 1:
            (tmp_path / "rank1.json").write_text("null")
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(1000):
            ranks.largest(0)
        return None

    with pytest.raises(AssertionError, match=r"exit codes \[0, -9\]"):
        in_ranks(2, tmp_path, work)
    assert '"code": 8' in (tmp_path / "rank0.json").read_text()


def test_a_signal_is_heard_while_others_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 never comes: a launcher that sends SIGTERM since it was killed need not wait for a timeout."""
    monkeypatch.setattr(group, "STEP_TIMEOUT", datetime.timedelta(seconds=60))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    places = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": store.port}
    for name, value in (places | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": True}).items():
        monkeypatch.setenv(name, str(value))

    def wait_for_rank_0() -> None:
        stopping.install()
        group.join()

    pid = child(wait_for_rank_0)
    addresses = "default_pg/0//cpu//0/1"  # what rank 1 tells of itself before it asks for rank 0
    while not store.check([addresses]):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGTERM)
    assert code_of(pid) == 143


def test_gradients_are_summed_where_any_rank_has_one(tmp_path: Path) -> None:
    """Of several buckets and data types; a parameter that no rank has a gradient of stays without."""

    def parameters() -> list[nn.Parameter]:
        shapes = ((3,), (2, 5), (4,), (1,), (2,))
        dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float32, torch.float32)
        return [nn.Parameter(torch.zeros(s, dtype=d)) for s, d in zip(shapes, dtypes, strict=True)]

    def work(ranks: Ranks) -> Any:
        from neuroada_cli.ranks import gradients

        gradients.BUCKET_BYTES = 40
        found = parameters()
        for place_, parameter in enumerate(found):
            if place_ != 4 and (place_ != 3 or ranks.number == 1):
                parameter.grad = torch.full_like(parameter, 1 + place_ + 10 * ranks.number)
        sum_gradients(found, ranks)
        return [None if p.grad is None else [p.grad.flatten().tolist(), str(p.grad.dtype)] for p in found]

    one, other = in_ranks(2, tmp_path, work)
    assert one == other
    sums = [12.0, 14.0, 16.0, 14.0]
    for parameter, summed, said in zip(parameters(), sums, one, strict=False):
        assert said == [[summed] * parameter.numel(), str(parameter.dtype)]
    assert one[4] is None


def test_the_environment_of_one_process_is_no_place_among_several(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for size in (None, "", "0", "1"):
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        assert not several()
        assert place() == Place()
        assert group.join() is ALONE


def test_a_launcher_that_says_only_a_part_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ResourceError, match="LOCAL_RANK tells no process its place"):
        place()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5852"), True),
        (torch.distributed.DistNetworkError("The client socket has failed"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("connection closed by peer"), False),
    ],
)
def test_what_torch_says_of_a_peer_that_has_gone(error: Exception, expected: bool) -> None:
    assert has_gone(error) is expected


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 6}, 6),
        ({0: 8, 1: 3}, 3),
        ({0: 143, 1: 143}, 143),
        ({0: 8, 1: -9}, "process 1 was killed by SIGKILL"),
        ({0: 143, 1: -9}, "process 1 was killed by SIGKILL"),
        ({0: -15, 1: -11}, "process 1 was killed by SIGSEGV"),
        ({0: 8, 1: 8}, "a process has ended or does not answer"),
        ({0: -15}, "a process has ended or does not answer"),
    ],
)
def test_the_code_of_all_is_that_of_the_one_that_failed_first(
    codes: dict[int, int], expected: int | str
) -> None:
    if isinstance(expected, int):
        assert _code_of(codes) == expected
        return
    with pytest.raises(PeerError, match=expected):
        _code_of(codes)
