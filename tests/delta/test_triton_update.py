"""One launch for clip, AdamW and refold does what torch's own steps and `fold_all` do one after the other."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from neuroada_cli.delta import triton_update
from neuroada_cli.delta.fold import fold_entries
from neuroada_cli.delta.layout import Layout
from neuroada_cli.delta.native import Fold
from neuroada_cli.selection.criteria import choose

LAYERS = [
    (Layout(130, 40), 9, torch.bfloat16),
    (Layout(17, 1), 1, torch.bfloat16),
    (Layout(33, 12, transposed=True), 3, torch.float32),
    (Layout(6, 10, transposed=True, experts=3), 2, torch.float16),
    (Layout(5, 8, experts=2), 8, torch.bfloat16),
]


def jobs(device: str) -> list[Fold]:
    torch.manual_seed(0)
    made = []
    for layout, k, dtype in LAYERS:
        weight = torch.randn(layout.stored_shape).to(device, dtype)
        index_OK = choose(torch.randn(layout.shape), k).to(device)
        delta_OK = torch.nn.Parameter(torch.zeros(index_OK.shape, device=device))
        made.append((weight, index_OK, layout.take(weight, index_OK), delta_OK, layout))
    return made


def check_all(device: str) -> None:
    ours, theirs = jobs(device), jobs(device)
    groups = [{"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.003, "weight_decay": 0.0}]
    optimizers = []
    for made in (ours, theirs):
        deltas = [job[3] for job in made]
        both = [{"params": deltas[:3], **groups[0]}, {"params": deltas[3:], **groups[1]}]
        optimizers.append(torch.optim.AdamW(both, betas=(0.9, 0.98), eps=1e-7))
    for step in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine[3] is not None
            assert other[3] is not None
            mine[3].grad = torch.randn(mine[3].shape, device=device)
            other[3].grad = mine[3].grad.clone()
        if step == 1:  # a layer that no token reached
            ours[4][3].grad = theirs[4][3].grad = None  # type: ignore[union-attr]
        grads = [job[3].grad for job in ours if job[3].grad is not None]  # type: ignore[union-attr]
        norm = torch.nn.utils.get_total_norm(grads)
        limit = (0.5, None, 1e9)[step]
        update = triton_update.prepared(optimizers[0], ours)
        assert update is not None
        update(norm, limit)
        assert all(job[3].grad is None for job in ours)  # type: ignore[union-attr]
        if limit is not None:
            parameters = [job[3] for job in theirs]
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)  # type: ignore[arg-type]
        optimizers[1].step()
        for weight, index_OK, base_OK, delta_OK, layout in theirs:
            assert delta_OK is not None
            weight.put_(layout.flat(index_OK), fold_entries(base_OK, delta_OK.detach(), weight.dtype))
        for (mine, _, _, delta, _), (other, _, _, expected, _) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-7)
            close = {torch.float32: 1e-6}.get(mine.dtype, 1e-2)
            torch.testing.assert_close(mine, other, rtol=close, atol=close)
    for mine, other in zip(ours, theirs, strict=True):
        state, wanted = (o.state[job[3]] for o, job in zip(optimizers, (mine, other), strict=True))
        assert state.keys() == wanted.keys()
        for name in state:
            torch.testing.assert_close(state[name], wanted[name], rtol=1e-5, atol=1e-8)
    folded = [job[0].clone() for job in ours]
    for job in ours:
        job[0].zero_()
        job[0].put_(job[4].flat(job[1]), job[2])
    versions = [job[0]._version for job in ours]
    triton_update.fold(ours)  # alone, the same bits as with the update
    for job, weight, version in zip(ours, folded, versions, strict=True):
        flat = job[4].flat(job[1])
        assert torch.equal(job[0].take(flat), weight.take(flat))
        expected = fold_entries(job[2], job[3].detach(), job[0].dtype)  # type: ignore[union-attr]
        if device == "cpu" and job[0].dtype == torch.bfloat16:  # Triton's interpreter cuts off, a GPU rounds
            torch.testing.assert_close(job[0].take(flat), expected, rtol=2**-7, atol=0)
        else:
            assert torch.equal(job[0].take(flat), expected)
        assert job[0]._version > version
    assert triton_update.prepared(optimizers[0], ours) is None  # no gradient, nothing to do


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_equal_to_torch_in_the_interpreter() -> None:
    script = (
        "from neuroada_cli.delta import triton_update; triton_update.available = lambda device: True\n"
        "from tests.delta.test_triton_update import check_all; check_all('cpu'); print('all equal')"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "NEUROADA_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equal_to_torch_on_a_gpu() -> None:
    check_all("cuda")


def test_what_lies_elsewhere_is_left_to_torch() -> None:
    made = jobs("cpu")
    assert not any(map(triton_update.fits, made))
    optimizer = torch.optim.AdamW([job[3] for job in made])
    for job in made:
        job[3].grad = torch.ones_like(job[3])  # type: ignore[union-attr, arg-type]
    assert triton_update.prepared(optimizer, made) is None
    assert not optimizer.state
