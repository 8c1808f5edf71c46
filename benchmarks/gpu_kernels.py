"""What `gpu.py` does with the kernels alone: compile them side by side, check them, tune them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import op
import torch

from neuroada_cli.delta import sampled_grad, triton_buckets, triton_grad
from neuroada_cli.delta.triton_grad import Tile
from neuroada_cli.selection.criteria import choose

LLAMA = ((8192, 4096, 4096), (8192, 4096, 11008), (8192, 11008, 4096))  # (T, I, O)
KS = (1, 20)
# (T, I, O, K); each is a kernel to compile
CHECKS = {
    torch.bfloat16: (
        (1, 1, 1, 1),
        (7, 5, 3, 5),
        (257, 130, 66, 1),
        (1024, 512, 384, 20),
        (509, 1024, 256, 4),
    ),
    torch.float16: ((1024, 512, 384, 20), (509, 1024, 256, 1)),
    torch.float32: ((300, 64, 129, 64), (257, 130, 66, 1)),
}
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}
TILES = (Tile(), Tile(16, 8), Tile(8, 4, 128), Tile(8, 4, 64), Tile(16, 4, 128), Tile(4, 4))


def compile_ahead(
    device: torch.device, shapes: Sequence[tuple[int, int, int]], tiles: Sequence[Tile]
) -> None:
    """Every kernel that the run will need, compiled side by side: most of it is done by ptxas, a process."""
    if not triton_grad.available(device):
        return
    work: list[Callable[[], Any]] = []
    for _, inputs, outputs in shapes:
        for k in KS:
            x_TI, grad_TO = (
                torch.zeros(512, n, device=device, dtype=torch.bfloat16) for n in (inputs, outputs)
            )
            index_OK = torch.zeros(outputs, k, device=device, dtype=torch.int32)
            given = grad_TO, x_TI, index_OK
            if triton_grad.rows_fit(inputs, torch.bfloat16, device):
                work.append(lambda given=given: triton_grad.triton_rows(*given))
            if triton_buckets.fits(k, inputs, torch.bfloat16):
                work.append(lambda given=given: triton_buckets.triton_buckets(*given))
            for tile in tiles if (inputs, outputs) == shapes[0][1:] else tiles[:1]:
                work.append(
                    lambda given=given, tile=tile: triton_grad.triton_grad(
                        *given, tile, triton_grad.transposed(given[1])
                    )
                )
    work[0]()  # alone: the driver's own part is built once
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        failed = [error for job in [pool.submit(one) for one in work] if (error := job.exception())]
    for error in failed[:3]:  # the phases that need it will say so
        print(f"  does not compile: {error}", flush=True)
    print(f"  {len(work) - len(failed)} of {len(work)} kernels compiled", flush=True)


def check(device: torch.device) -> list[dict[str, Any]]:
    """Largest difference to the fp32 oracle, relative to its largest entry, per back-end, dtype and shape."""
    rows = []
    for dtype, tolerance in TOLERANCE.items():
        for tokens, inputs, outputs, k in CHECKS[dtype]:
            generator = torch.Generator(device=device).manual_seed(tokens)
            grad_TO, x_TI = (
                torch.randn(tokens, n, device=device, dtype=dtype, generator=generator)
                for n in (outputs, inputs)
            )
            score_OI = torch.rand(outputs, inputs, device=device, generator=generator)
            index_OK = choose(score_OI, k)
            expected_OK = sampled_grad.dense_oracle(grad_TO.double().float(), x_TI.double().float(), index_OK)
            scale = float(expected_OK.abs().max()) or 1.0
            for name in sampled_grad.usable_for(inputs, k, dtype, device):
                row = {
                    "backend": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "shape_TIOK": [tokens, inputs, outputs, k],
                }
                try:
                    triton_grad.last_transpose.clear()
                    got_OK = sampled_grad.BACKENDS[name](grad_TO, x_TI, index_OK)
                    again_OK = sampled_grad.BACKENDS[name](grad_TO, x_TI, index_OK)
                    error = float((got_OK - expected_OK).abs().max()) / scale
                    fine = error <= tolerance and got_OK.dtype == torch.float32
                    row |= {"error": error, "repeatable": torch.equal(got_OK, again_OK), "ok": fine}
                except Exception as failure:
                    reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
                    row |= {"error": None, "repeatable": False, "ok": False, "failed": reason}
                rows.append(row)
    return rows


def updates(device: torch.device) -> dict[str, Any]:
    """The one launch for clip, AdamW and refold beside torch's own steps: how far deltas differ."""
    from neuroada_cli.delta import triton_update
    from neuroada_cli.delta.fold import fold_entries
    from neuroada_cli.delta.layout import Layout

    torch.manual_seed(0)
    layout = Layout(4096, 1024)
    weight = torch.randn(4096, 1024, device=device, dtype=torch.bfloat16)
    index_OK = choose(weight, 20)
    base_OK = layout.take(weight, index_OK)
    ours, theirs = (torch.nn.Parameter(torch.zeros(4096, 20, device=device)) for _ in range(2))
    optimizers = [torch.optim.AdamW([p], lr=1e-2, weight_decay=0.1, fused=True) for p in (ours, theirs)]
    for _ in range(3):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        norm = torch.nn.utils.get_total_norm([ours.grad])
        update = triton_update.prepared(optimizers[0], [(weight, index_OK, base_OK, ours, layout)])
        if update is None:
            return {"ok": False, "failed": "the kernel does not take this layer"}
        update(norm, 1.0)
        torch.nn.utils.clip_grads_with_norm_([theirs], 1.0, norm)
        optimizers[1].step()
    error = float((ours - theirs).detach().abs().max())
    folded = torch.equal(layout.take(weight, index_OK), fold_entries(base_OK, ours.detach(), weight.dtype))
    return {"ok": error <= 1e-6 and folded, "error": error, "folded_exactly": folded}


def tile_rows(
    shapes: Sequence[tuple[int, int, int]], device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Some tiles of the kernel by columns per shape and K, as ratios to that layer's forward + dx."""
    rows = []
    for tokens, inputs, outputs in shapes:
        generator = torch.Generator(device=device).manual_seed(0)
        x_TI, grad_TO, weight_OI = (
            torch.randn(size, device=device, dtype=torch.bfloat16, generator=generator)
            for size in ((tokens, inputs), (tokens, outputs), (outputs, inputs))
        )

        def floor(x_TI: Any = x_TI, grad_TO: Any = grad_TO, weight_OI: Any = weight_OI) -> None:
            torch.nn.functional.linear(x_TI, weight_OI)
            grad_TO @ weight_OI

        for k in KS:
            index_OK = choose(weight_OI, k)
            runs: dict[str, Callable[[], Any]] = {"floor": floor}
            x_IT = triton_grad.transposed(x_TI)
            for tile in TILES:
                run = _tile(grad_TO, x_TI, index_OK, tile, x_IT)
                run()  # compiles
                runs[f"{tile.neurons} neurons, {tile.warps} warps, {tile.registers} registers"] = run
            runs["transpose"] = lambda x_TI=x_TI: triton_grad.transposed(x_TI)
            ratios, seconds = op.interleave(runs, rounds, device)
            best = min((name for name in ratios if name != "transpose"), key=lambda name: ratios[name])
            rows.append(
                {
                    "tokens": tokens, "inputs": inputs, "outputs": outputs, "k": k, "best": best,
                    "best_ratio": ratios[best], "floor_seconds": seconds, "ratios": ratios,
                }
            )  # fmt: skip
            print(f"  T={tokens} I={inputs} O={outputs} K={k}: {best} {ratios[best]:.4f}", flush=True)
    return rows


def _tile(
    grad_TO: torch.Tensor, x_TI: torch.Tensor, index_OK: torch.Tensor, tile: Tile, x_IT: torch.Tensor
) -> Callable[[], torch.Tensor]:
    return lambda: triton_grad.triton_grad(grad_TO, x_TI, index_OK, tile, x_IT)
