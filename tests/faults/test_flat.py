"""Memory and file descriptors stay flat over a long training."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch
from counting import record
from torch import nn

from neuroada_cli.methods import METHODS
from neuroada_cli.selection.criteria import choose
from neuroada_cli.training.log import MetricsLog

GROWTH = 4 << 20


def grown(steps: int, tmp_path: Path) -> tuple[int, int]:
    """(bytes, file descriptors) that the process grew by in `steps` steps, after 1,000 to warm up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    method = METHODS["neuroada"].build()
    method.attach(model, {name: choose(model.get_submodule(name).weight.detach(), 2) for name in ("0", "2")})
    optimizer = torch.optim.AdamW(method.parameters(model), lr=1e-3)
    memory = Path("/dev/shm")  # every line of the log is synced, which a disk would take its time for
    file = (memory if os.access(memory, os.W_OK) else tmp_path) / f"flat-{os.getpid()}.jsonl"
    log = MetricsLog(file)
    x_TI, process = torch.randn(8, 16), psutil.Process()
    before = (0, 0)
    for step in range(steps + 1_000):
        if step == 1_000:
            before = process.memory_info().rss, process.num_fds()
        loss = model(x_TI).square().sum()
        loss.backward()
        method.before_step(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(model)
        log.append({"kind": "train", "step": step, "loss": loss.item()})
    assert file.stat().st_size > 0
    file.unlink()
    return process.memory_info().rss - before[0], process.num_fds() - before[1]


def test_a_few_thousand_steps_are_flat(tmp_path: Path) -> None:
    nbytes, descriptors = grown(2_000, tmp_path)
    assert nbytes < GROWTH
    assert descriptors == 0


@pytest.mark.slow
def test_fifty_thousand_steps_are_flat(tmp_path: Path) -> None:
    nbytes, descriptors = grown(50_000, tmp_path)
    assert nbytes < GROWTH, f"{nbytes:,} bytes"
    assert descriptors == 0
    record("steps of training with flat memory", {"flat": 50_000})
