"""The CPU kernels against their definitions: folding bit by bit, largest magnitudes with ties, a shared x."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from neuroada_cli.delta import native
from neuroada_cli.delta.fold import fold_all, fold_entries, write_entries
from neuroada_cli.delta.layout import Layout
from neuroada_cli.delta.native import last_columns
from neuroada_cli.delta.sampled_grad import dense_oracle
from neuroada_cli.selection.criteria import choose

pytestmark = pytest.mark.skipif(not native.available(torch.float32), reason="needs a C compiler (cc)")

LAYOUTS = {
    "rows": Layout(9, 14),
    "columns": Layout(9, 14, transposed=True),
    "experts": Layout(3, 14, experts=3),
    "experts in columns": Layout(3, 14, transposed=True, experts=3),
}
ODD = [0.0, -0.0, 1e-42, -1e-42, 3.3e38, -3.3e38, float("inf"), -float("inf"), float("nan"), 1 + 2**-8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_folding_gives_the_bits_of_its_definition(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, generator = LAYOUTS[name], torch.Generator().manual_seed(0)
    neurons, inputs = layout.shape
    index_OK = torch.stack([torch.randperm(inputs, generator=generator)[:4] for _ in range(neurons)]).int()
    base_OK = torch.randn(neurons, 4, generator=generator).to(dtype)
    delta_OK = torch.randn(neurons, 4, generator=generator) * 2.0 ** torch.arange(-20, 16).view(neurons, 4)
    odd = torch.tensor(list(itertools.product(ODD, ODD)))[: neurons * 4]
    for base, delta in ((base_OK, delta_OK), (odd[:, 0].view(-1, 4).to(dtype), odd[:, 1].view(-1, 4))):
        weight = torch.randn(layout.stored_shape, generator=generator).to(dtype)
        expected = weight.clone()
        with monkeypatch.context() as patched:
            patched.setattr(native, "fold_available", lambda *_: False)
            write_entries(expected, index_OK, fold_entries(base, delta, dtype), layout)
        version = weight._version
        fold_all([(weight, index_OK, base, delta, layout)])
        assert torch.equal(bits(weight), bits(expected))
        assert weight._version > version, "a backward pass would not notice"
        write_entries(weight, index_OK, base, layout)
        assert torch.equal(bits(layout.take(weight, index_OK)), bits(base))


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def test_what_the_kernel_does_not_take_is_folded_as_well() -> None:
    index_OK, layout = torch.tensor([[0, 2], [1, 2]]).int(), Layout(2, 3)
    for dtype, delta_type in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        weight, base_OK = torch.ones(2, 3, dtype=dtype), torch.ones(2, 2, dtype=dtype)
        fold_all([(weight, index_OK, base_OK, torch.full((2, 2), 0.5, dtype=delta_type), layout)])
        assert weight.tolist() == [[1.5, 1, 1.5], [1, 1.5, 1.5]]


# ---------------------------------------------------------------------------------------------------


def by_definition(weight_OI: Tensor, k: int) -> Tensor:
    """The K largest magnitudes, of equal ones the lower column."""
    order_OI = weight_OI.float().abs().argsort(dim=1, descending=True, stable=True)
    return order_OI[:, :k].sort(dim=1).values.int()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 576, 1025, 2100])
def test_the_largest_magnitudes_with_many_ties(inputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(inputs)
    smooth_OI = torch.randn(7, inputs, generator=generator)
    coarse_OI = torch.randint(-3, 4, (7, inputs), generator=generator).float()  # zeros, too, of both signs
    for weight_OI in (smooth_OI.to(dtype), coarse_OI.to(dtype), -0.0 * coarse_OI.to(dtype)):
        before = None
        for k in sorted({min(k, inputs) for k in (1, 2, 20, 64, 256)}):
            assert native.top_k_available(weight_OI)
            index_OK = choose(weight_OI, k)
            assert torch.equal(index_OK, by_definition(weight_OI, k))
            if before is not None:  # a smaller selection lies inside every larger one
                assert all(set(a) <= set(b) for a, b in zip(before, index_OK.tolist(), strict=True))
            before = index_OK.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [33, 130, 1025, 4096])
def test_the_largest_magnitudes_wherever_they_lie(inputs: int, dtype: torch.dtype) -> None:
    """The K-th largest is looked for from above: far below the largest, among equals, beside NaN."""
    generator = torch.Generator().manual_seed(inputs)
    normal_OI = torch.randn(5, inputs, generator=generator)
    towering_OI = normal_OI.clone()
    towering_OI[:, inputs // 2] = 6e4
    broken_OI = normal_OI.clone()
    for place, value in enumerate((torch.nan, -torch.inf, -torch.nan, torch.inf)):
        broken_OI[:, place::13] = value
    largest_OI = normal_OI.clone()
    largest_OI[:, 3] = torch.finfo(dtype).max  # the next number is infinity
    first_OI = normal_OI * 1e-4  # all that is large in one block
    first_OI[:, 5:30] = normal_OI[:, 5:30]
    for weight_OI in (
        torch.exp(20 * normal_OI), torch.exp(-9 - normal_OI), towering_OI, broken_OI, largest_OI, first_OI,
        torch.ones(5, inputs), torch.zeros(5, inputs), normal_OI * (normal_OI > 2.2),
    ):  # fmt: skip
        weight_OI = weight_OI.to(dtype)
        for k in (1, 2, 3, 7, 16, 33, inputs // 2, inputs):
            index_OK, finite = native.top_k_magnitude(weight_OI, k)
            assert torch.equal(index_OK, by_definition(weight_OI, k))
            assert finite == torch.isfinite(weight_OI).all()


# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _forgetful() -> None:
    last_columns.clear()
    last_columns.shared.clear()


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 40, 700])
def test_layers_that_read_one_x_turn_it_once(tokens: int, dtype: torch.dtype) -> None:
    x_TI = torch.randn(tokens, 40).to(dtype)
    layers = [(torch.randn(tokens, o).to(dtype), choose(torch.randn(o, 40), 5)) for o in (12, 70, 33)]
    rounds = []
    for _ in range(2):  # which layer is the first of several is known from the second step on
        rounds.append([native.native(grad_TO, x_TI, index_OK) for grad_TO, index_OK in layers])
        assert last_columns.x_TI is x_TI
        last_columns.clear()
    assert last_columns.shared == {layers[0][1].data_ptr()}
    for (grad_TO, index_OK), one, other in zip(layers, *rounds, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, dense_oracle(grad_TO, x_TI, index_OK), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_forgetful")
def test_an_x_that_was_changed_in_place_is_turned_again() -> None:
    x_TI, grad_TO, index_OK = torch.randn(20, 8), torch.randn(20, 6), choose(torch.randn(6, 8), 2)
    for _ in range(3):
        for _ in range(2):
            found = native.native(grad_TO, x_TI, index_OK)
        torch.testing.assert_close(found, dense_oracle(grad_TO, x_TI, index_OK))
        x_TI.mul_(2)


@pytest.mark.usefixtures("_forgetful")
def test_an_x_at_the_place_of_a_freed_one_is_not_taken_for_it() -> None:
    grad_TO, index_OK = torch.randn(300, 6), choose(torch.randn(6, 64), 2)
    for _ in range(20):
        x_TI = torch.randn(300, 64)
        for _ in range(2):
            found = native.native(grad_TO, x_TI, index_OK)
        torch.testing.assert_close(found, dense_oracle(grad_TO, x_TI, index_OK), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_does_not_change_with_the_shape(dtype: torch.dtype) -> None:
    """Every shape sums in fp32: what is left is rounding of the sums, at any K and any length."""
    for tokens, inputs, outputs, k in ((1024, 64, 64, 64), (32, 64, 8, 1), (2000, 700, 8, 20)):
        grad_TO, x_TI = torch.randn(tokens, outputs).to(dtype), torch.randn(tokens, inputs).to(dtype)
        index_OK = choose(torch.randn(outputs, inputs), k)
        exact_OK = (grad_TO.double().T @ x_TI.double()).gather(1, index_OK.long())
        error = (native.native(grad_TO, x_TI, index_OK) - exact_OK).abs().max() / exact_OK.abs().max()
        assert error < 1e-6


# What the compiler may use of the processor: each has code of its own in sampled_grad.c
FEWER = {"all": [], "no AVX-512": ["-mno-avx512f"], "no AVX2": ["-mno-avx512f", "-mno-avx2", "-mno-fma"]}


@pytest.fixture(params=FEWER if platform.machine() in ("x86_64", "AMD64") else ["all"])
def _instructions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The kernels, compiled for a processor that has no more than these."""
    before = native._library()
    monkeypatch.setattr(native, "FLAGS", [*native.FLAGS, *FEWER[request.param]])
    native._library.cache_clear()
    native._kernel.cache_clear()
    last_columns.clear()
    assert native.available(torch.float32)
    if FEWER[request.param]:
        assert native._library() is not before
    yield
    native._library.cache_clear()
    native._kernel.cache_clear()
    last_columns.clear()


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_set_of_instructions_gives_the_gradient(dtype: torch.dtype) -> None:
    """Shapes around the vectors' ends, views, more tokens than a block: nothing beside a matrix counts."""
    shapes = itertools.product(
        (1, 2, 15, 16, 17, 33, 300), (1, 7, 8, 9, 16, 25, 70), (1, 5, 64, 71), (1, 4, 7)
    )
    for tokens, inputs, outputs, k in shapes:
        if k > inputs:
            continue
        wide_TX = torch.full((tokens, inputs + 9), float("nan")).to(dtype)
        wide_TY = torch.full((tokens, outputs + 3), float("nan")).to(dtype)
        x_TI, grad_TO = wide_TX[:, :inputs], wide_TY[:, :outputs]
        x_TI.copy_(torch.randn(tokens, inputs))
        grad_TO.copy_(torch.randn(tokens, outputs))
        index_OK = choose(torch.randn(outputs, inputs), k)
        exact_OK = (grad_TO.double().T @ x_TI.double()).gather(1, index_OK.long())
        found_OK = native.native(grad_TO, x_TI, index_OK).double()
        torch.testing.assert_close(found_OK, exact_OK, rtol=1e-5, atol=1e-4)
