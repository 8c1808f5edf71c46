"""Top-K per neuron: the right columns, the tie rule, and what is refused."""

import pytest
import torch

from neuroada_cli.delta.native import top_k_available
from neuroada_cli.recipe.schema import NEED_GRADIENTS
from neuroada_cli.selection.criteria import CRITERIA, DATA_CRITERIA, choose, choose_by, low_rank


def obvious(score_OI: torch.Tensor, k: int) -> torch.Tensor:
    """Sort every row in plain Python: highest score first, lower column first among equals."""
    rows = []
    for row in score_OI.tolist():
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        rows.append(sorted(best))
    return torch.tensor(rows, dtype=torch.int32)


@pytest.fixture(params=["native", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Magnitude has a C kernel; the rest of the tests must hold with and without it."""
    if request.param == "torch":
        monkeypatch.setattr("neuroada_cli.delta.native.top_k_available", lambda *_: False)
    elif not top_k_available(torch.zeros(1, 1)):
        pytest.skip("no C compiler here")


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 2, 7, 23, 24, 70, 100])
def test_magnitude_is_the_obvious_top_k_with_ties(dtype: torch.dtype, k: int) -> None:
    torch.manual_seed(k)
    inputs = 24 if k <= 24 else 100
    weight_OI = (torch.randn(40, inputs) * 3).round().div(2).to(dtype)  # coarse values: many ties
    weight_OI[3] = 0
    assert torch.equal(choose(weight_OI, k), obvious(weight_OI.abs(), k))
    fine_OI = torch.randn(40, inputs).to(dtype)
    assert torch.equal(choose(fine_OI, k), obvious(fine_OI.abs(), k))
    view_OI = torch.randn(40, 2 * inputs).to(dtype)[:, 5 : 5 + inputs]
    assert torch.equal(choose(view_OI, k), obvious(view_OI.abs(), k))


def test_reverse_takes_the_smallest() -> None:
    weight_OI = torch.tensor([[3.0, -1.0, 2.0], [0.0, 5.0, -0.0]])
    assert choose(weight_OI, 1, "reverse").tolist() == [[1], [0]]
    assert choose(weight_OI, 2, "reverse").tolist() == [[1, 2], [0, 2]]


def test_random_is_seeded_and_without_repeats() -> None:
    weight_OI = torch.zeros(50, 10)
    first = choose(weight_OI, 4, "random", torch.Generator().manual_seed(1))
    again = choose(weight_OI, 4, "random", torch.Generator().manual_seed(1))
    other = choose(weight_OI, 4, "random", torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.diff(dim=1) > 0).all()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three rows of 16, as a matrix of more than 4 million weights has them."""
    monkeypatch.setattr("neuroada_cli.selection.criteria.BLOCK_ELEMENTS", 50)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # in fp64 magnitude has no C kernel
@pytest.mark.parametrize("criterion", ["magnitude", "reverse", "lift"])
def test_every_row_goes_by_its_own_scores(criterion: str, dtype: torch.dtype) -> None:
    weight_OI = torch.randn(65, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = {
        "magnitude": weight_OI.abs(),
        "reverse": -weight_OI.abs(),
        "lift": low_rank(weight_OI, 4).abs(),
    }[criterion]
    assert torch.equal(choose(weight_OI, 3, criterion, rank=4), obvious(scores, 3))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("criterion", DATA_CRITERIA)
def test_every_row_goes_by_its_own_evidence(criterion: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI, grad_OI = (torch.randn(65, 16, generator=generator) for _ in range(2))
    norm_I = torch.rand(16, generator=generator) + 0.1
    evidence, scores = {
        "gradient": (grad_OI, grad_OI.abs()),
        "snip": (grad_OI, (weight_OI * grad_OI).abs()),
        "gallop": (grad_OI, grad_OI.abs() / weight_OI.abs()),
        "activation": (norm_I, weight_OI.abs() * norm_I),
    }[criterion]
    assert torch.equal(choose_by(weight_OI, 3, criterion, evidence), obvious(scores, 3))


def test_gallop_takes_weights_that_are_zero_by_their_gradients() -> None:
    weight_OI = torch.tensor([[0.0, 0.0, 1.0, 0.5, 0.0], [1.0, 2.0, -1.0, 0.5, -4.0]], dtype=torch.bfloat16)
    grad_OI = torch.tensor([[1.0, -3.0, 9.0, 9.0, 0.0], [1.0, 4.0, -3.0, 1.0, 4.0]])
    assert choose_by(weight_OI, 1, "gallop", grad_OI).tolist() == [[1], [2]]
    assert choose_by(weight_OI, 2, "gallop", grad_OI).tolist() == [[0, 1], [1, 2]], "of equal ones the lower"
    assert choose_by(weight_OI[:1], 3, "gallop", grad_OI[:1]).tolist() == [[0, 1, 3]]


def test_what_needs_gradients_is_told_alike_by_recipes_and_criteria() -> None:
    assert {*NEED_GRADIENTS, "activation"} == set(DATA_CRITERIA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("native_kernel", [True, False])
def test_of_equal_weights_the_lower_columns_at_every_k_and_each_k_within_the_next(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, native_kernel: bool
) -> None:
    """torch's top-K keeps the lowest of equal values only while 64 * K <= I; few levels make many ties."""
    if not native_kernel:
        monkeypatch.setattr("neuroada_cli.delta.native.top_k_available", lambda *_: False)
    inputs = 200
    weight_OI = torch.randint(-3, 4, (9, inputs), generator=torch.Generator().manual_seed(0)).to(dtype)
    order_OI = weight_OI.float().abs().argsort(dim=1, descending=True, stable=True)
    before: list[set[int]] = [set() for _ in weight_OI]
    for k in (1, 2, 3, 4, 7, 16, 20, 63, 64, 65, 128, inputs - 1, inputs):
        chosen_OK = choose(weight_OI, k)
        assert torch.equal(chosen_OK, order_OI[:, :k].sort(dim=1).values.int()), k
        now = [set(row) for row in chosen_OK.tolist()]
        assert all(small <= large for small, large in zip(before, now, strict=True))
        before = now


def test_lift_goes_by_the_best_approximation_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(40, 24, generator=generator)
    assert torch.equal(choose(weight_OI, 3, "lift", rank=6), obvious(low_rank(weight_OI, 6).abs(), 3))
    assert not torch.equal(choose(weight_OI, 3, "lift", rank=6), choose(weight_OI, 3))


@pytest.mark.parametrize("shape", [(200, 300), (300, 200)])
@pytest.mark.parametrize("rank", [4, 32])
def test_lift_is_exact_where_singular_values_fall_slowly(shape: tuple[int, int], rank: int) -> None:
    """As those of trained matrices do, where a few iterations from a random start find other subspaces."""
    weight_OI = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left_OR, values_R, right_RI = torch.linalg.svd(weight_OI.double(), full_matrices=False)
    expected_OI = (left_OR[:, :rank] * values_R[:rank]) @ right_RI[:rank]
    torch.testing.assert_close(low_rank(weight_OI, rank).double(), expected_OI, rtol=0, atol=1e-5)
    assert torch.equal(choose(weight_OI, 3, "lift", rank=rank), obvious(expected_OI.abs(), 3))


def test_works_on_the_transposed_view_of_a_conv1d() -> None:
    weight_IO = torch.randn(12, 9)
    assert torch.equal(choose(weight_IO.T, 2), choose(weight_IO.T.contiguous(), 2))


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_the_inputs_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"choose 1\.\.4"):
        choose(torch.randn(3, 4), k)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight_OI = torch.randn(3, 4)
    weight_OI[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        choose(weight_OI, 1)


def test_an_unknown_criterion_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=", ".join(CRITERIA)):
        choose(torch.randn(3, 4), 1, "largest")
