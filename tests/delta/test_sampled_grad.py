"""Every back-end of the sampled gradient equals the dense gradient gathered at the index (I7)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import neuroada_cli.delta.sampled_grad as sampled_grad_module
from neuroada_cli.delta.native import available
from neuroada_cli.delta.sampled_grad import BACKENDS, dense_oracle, pick_backend, sampled_grad
from neuroada_cli.selection.criteria import choose

SHAPES = [(1, 1, 1, 1), (5, 7, 3, 2), (33, 65, 17, 1), (70, 48, 130, 20), (129, 31, 64, 31), (256, 96, 96, 4)]
FAST = [name for name in BACKENDS if name != "dense_oracle" and not name.startswith("triton")]  # own file


@pytest.fixture(autouse=True)
def _native_takes_fp32_and_bf16(request: pytest.FixtureRequest) -> None:
    arguments = getattr(getattr(request.node, "callspec", None), "params", {})
    dtype = arguments.get("dtype", torch.float32)
    if arguments.get("backend") == "native" and not available(dtype):
        pytest.skip(f"the native kernel has no {dtype} here (it needs cc, and knows fp32 and bf16)")


def case(tokens: int, inputs: int, outputs: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens)
    grad_TO, x_TI = torch.randn(tokens, outputs).to(dtype), torch.randn(tokens, inputs).to(dtype)
    return grad_TO, x_TI, choose(torch.randn(outputs, inputs), k)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_back_ends_equal_the_oracle(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    grad_TO, x_TI, index_OK = case(*shape, dtype)  # type: ignore[arg-type]
    sampled_OK = sampled_grad(grad_TO, x_TI, index_OK, backend)
    assert sampled_OK.dtype == torch.float32
    # every back-end sums in fp32, so that precision does not depend on which one a shape gets
    torch.testing.assert_close(sampled_OK, dense_oracle(grad_TO, x_TI, index_OK), rtol=1e-4, atol=1e-4)


def test_tiles_are_of_their_own_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large matrix is worked off in blocks of neurons; here blocks of three, the last one of two."""
    monkeypatch.setattr(sampled_grad_module, "TILE_ELEMENTS", 3 * 31)
    grad_TO, x_TI, index_OK = case(17, 31, 20, 4, torch.float32)
    torch.testing.assert_close(
        sampled_grad(grad_TO, x_TI, index_OK, "tiled"), dense_oracle(grad_TO, x_TI, index_OK)
    )


@pytest.mark.parametrize("backend", FAST)
def test_repeated_and_unsorted_columns(backend: str) -> None:
    grad_TO, x_TI, _ = case(19, 11, 6, 1, torch.float32)
    index_OK = torch.tensor([[10, 0, 3], [3, 3, 3], [1, 0, 2], [9, 8, 7], [0, 10, 5], [4, 4, 0]]).int()
    expected = dense_oracle(grad_TO, x_TI, index_OK)
    torch.testing.assert_close(sampled_grad(grad_TO, x_TI, index_OK, backend), expected)


@pytest.mark.parametrize("backend", FAST)
def test_inputs_that_are_not_contiguous(backend: str) -> None:
    grad_OT, x_IT = torch.randn(14, 21), torch.randn(10, 21)
    index_OK = choose(torch.randn(14, 10), 3)
    expected = dense_oracle(grad_OT.T, x_IT.T, index_OK)
    torch.testing.assert_close(sampled_grad(grad_OT.T, x_IT.T, index_OK, backend), expected)
    wide_TO, wide_TI = torch.randn(21, 28)[:, ::2], torch.randn(21, 30)[:, 5:15]
    expected = dense_oracle(wide_TO, wide_TI, index_OK)
    torch.testing.assert_close(sampled_grad(wide_TO, wide_TI, index_OK, backend), expected)


@pytest.mark.parametrize("backend", FAST)
def test_results_are_deterministic(backend: str) -> None:
    arguments = case(256, 96, 96, 4, torch.float32)
    first = sampled_grad(*arguments, backend)
    assert all(torch.equal(first, sampled_grad(*arguments, backend)) for _ in range(5))


def test_no_tokens_give_zeros() -> None:
    index_OK = choose(torch.randn(4, 5), 2)
    assert torch.equal(sampled_grad(torch.zeros(0, 4), torch.zeros(0, 5), index_OK), torch.zeros(4, 2))


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(ValueError, match="sampled_addmm"):
        sampled_grad(*case(5, 7, 3, 2, torch.float32), "cublas")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("k", [1, 3])
def test_nan_and_infinity_are_not_swallowed(backend: str, bad: float, k: int) -> None:
    grad_TO, x_TI, index_OK = case(33, 12, 9, k, torch.float32)
    grad_TO[7, 4] = bad
    assert not torch.isfinite(sampled_grad(grad_TO, x_TI, index_OK, backend)[4]).any()
    assert torch.isfinite(sampled_grad(grad_TO, x_TI, index_OK, backend)[5]).all()


def test_native_gives_the_same_bits_with_any_number_of_threads() -> None:
    if not available(torch.float32):
        pytest.skip("no C compiler here")
    arguments = case(300, 96, 130, 4, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = sampled_grad(*arguments, "native")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(sampled_grad(*arguments, "native"), single)


def test_without_a_compiler_torch_serves(tmp_path: Path) -> None:
    script = (
        "import torch; from neuroada_cli.delta import native, sampled_grad as s;"
        "assert not native.available(torch.float32);"
        "print(s.pick_backend(8, 64, 64, 1, torch.float32, torch.device('cpu')))"
    )
    environment = os.environ | {"PATH": str(tmp_path), "NEUROADA_CACHE": str(tmp_path), "CC": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "sampled_addmm", done.stderr


def test_the_environment_overrides_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (9, 1000, 1000, 1, torch.float32, torch.device("cpu"))
    pick_backend.cache_clear()
    assert pick_backend(*shape) != "gathered"
    monkeypatch.setenv("NEUROADA_BACKEND", "gathered")
    pick_backend.cache_clear()
    assert pick_backend(*shape) == "gathered"
    pick_backend.cache_clear()


def test_the_nearest_measured_shape_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"kind": "cpu float32", "tokens": 512, "inputs": 512, "outputs": 512}
    rows = [row | {"k": 1, "fastest": "gathered"}, row | {"k": 100, "fastest": "tiled"}]
    monkeypatch.setattr("neuroada_cli.delta.sampled_grad._table", lambda: rows)
    pick_backend.cache_clear()
    cpu = torch.device("cpu")
    assert pick_backend(600, 500, 700, 3, torch.float32, cpu) == "gathered"
    assert pick_backend(600, 500, 700, 60, torch.float32, cpu) == "tiled"
    assert pick_backend(600, 500, 700, 200, torch.float64, cpu) == "tiled"  # not in the table: the rule
    pick_backend.cache_clear()
