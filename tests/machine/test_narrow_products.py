"""16-bit products by way of fp32 are the products, whatever their layout; and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from tiny_run import losses, tiny_llama_folder, tiny_recipe
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.benchmarking import shapes
from neuroada_cli.commands import train
from neuroada_cli.hub import sharded
from neuroada_cli.machine import narrow_products
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.training import forecast
from neuroada_cli.training.preflight import check

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = [
    (1, 5, 3), (9, 1, 1), (3, 40, 17), (40, 3, 17), (17, 40, 3), (12, 96, 96), (96, 12, 96), (96, 96, 12),
]  # fmt: skip
LAYOUTS = ("as it is", "transposed", "every second")


@pytest.fixture(autouse=True)
def only_here(monkeypatch):
    """The kernels are put back, and tiles are small enough to be many."""
    monkeypatch.setattr(narrow_products, "_slow", frozenset())
    monkeypatch.setattr(narrow_products, "TILE", 512)
    before = narrow_products._registered
    yield
    if before is None and narrow_products._registered is not None:
        narrow_products._registered._destroy()
        narrow_products._registered = None
        narrow_products._original.clear()


def laid_out(rows: int, columns: int, layout: str, dtype: torch.dtype, *batch: int) -> Tensor:
    if layout == "transposed":
        return torch.randn(*batch, columns, rows).to(dtype).mT
    if layout == "every second":
        return torch.randn(*batch, rows, 2 * columns).to(dtype)[..., ::2]
    return torch.randn(*batch, rows, columns).to(dtype)


def is_rounded(got: Tensor, exact: Tensor) -> None:
    """Within the rounding of the type, and of fp32 sums on the way."""
    step = torch.finfo(got.dtype).eps
    assert got.shape == exact.shape
    assert ((got.double() - exact).abs() <= step * exact.abs() + 1e-5 * exact.abs().max() + 1e-30).all()


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_products_are_the_exact_ones_rounded(dtype, shape, first, second):
    rows, inner, columns = shape
    a, b = laid_out(rows, inner, first, dtype), laid_out(inner, columns, second, dtype)
    added, line = torch.randn(rows, columns).to(dtype), torch.randn(columns).to(dtype)
    narrow_products.widen(frozenset({BF16, FP16}))
    exact = a.double() @ b.double()
    is_rounded(a @ b, exact)
    is_rounded(torch.mm(a, b, out=torch.empty(columns, rows, dtype=dtype).T), exact)
    is_rounded(torch.addmm(line, a, b, beta=0.5, alpha=2), 0.5 * line.double() + 2 * exact)
    is_rounded(torch.addmm(added, a, b, out=torch.empty(rows, columns, dtype=dtype)), added.double() + exact)
    nothing = torch.full_like(added, float("nan"))
    is_rounded(torch.addmm(nothing, a, b, beta=0), exact)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_batches_are_the_exact_ones_rounded(dtype, first, second):
    a, b = laid_out(9, 8, first, dtype, 17), laid_out(8, 6, second, dtype, 17)
    added = torch.randn(17, 9, 6).to(dtype)
    narrow_products.widen(frozenset({BF16, FP16}))
    exact = a.double() @ b.double()
    is_rounded(a @ b, exact)
    is_rounded(torch.bmm(a, b, out=torch.empty(17, 9, 6, dtype=dtype)), exact)
    is_rounded(torch.baddbmm(added, a, b, beta=2, alpha=0.5), 2 * added.double() + 0.5 * exact)
    is_rounded(torch.baddbmm(added[:1], a, b, out=torch.empty_like(added)), added[:1].double() + exact)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_a_layer_of_every_kind_gives_the_gradients_of_fp64(dtype):
    narrow_products.widen(frozenset({BF16, FP16}))
    torch.manual_seed(0)
    makers = {
        "linear": (lambda: torch.nn.Linear(33, 21), (2, 19, 33)),
        "convolution": (lambda: torch.nn.Conv2d(3, 4, 3, bias=False), (2, 3, 9, 9)),
        "by channel": (lambda: torch.nn.Conv1d(6, 6, 4, groups=6), (2, 6, 12)),
        "attention": (lambda: torch.nn.MultiheadAttention(32, 4, batch_first=True), (2, 11, 32)),
    }
    for name, (make, size) in makers.items():
        layer = make().to(dtype)
        exact_layer = make().double()
        exact_layer.load_state_dict({key: value.double() for key, value in layer.state_dict().items()})
        x = torch.randn(size).to(dtype)
        found = []
        for one, given in ((layer, x), (exact_layer, x.double())):
            given.requires_grad_()
            out = one(given, given, given)[0] if name == "attention" else one(given)
            out.square().sum().backward()
            found.append([given.grad, *(parameter.grad for parameter in one.parameters())])
        for got, exact in zip(*found, strict=True):
            assert got.dtype == dtype
            error = float((got.double() - exact).norm() / exact.norm().clamp_min(1e-9))
            assert error < 8 * torch.finfo(dtype).eps, name


def test_fp32_and_fp64_stay_the_same_bits():
    pairs = [(torch.randn(9, 30).to(t), torch.randn(30, 40).to(t)) for t in (torch.float32, torch.float64)]
    pairs += [(a.expand(3, 9, 30), b.expand(3, 30, 40)) for a, b in pairs]
    before = [a @ b for a, b in pairs]
    narrow_products.widen(frozenset({BF16, FP16}))
    for (a, b), was in zip(pairs, before, strict=True):
        assert torch.equal(a @ b, was)
        assert torch.equal(
            torch.stack([a, a]) @ torch.stack([b, b]), torch.stack([a, a]) @ torch.stack([b, b])
        )


def test_only_the_types_named_are_widened(monkeypatch):
    seen = []
    inner = narrow_products._tiles
    monkeypatch.setattr(narrow_products, "_tiles", lambda *given: seen.append(1) or inner(*given))
    narrow_products.widen(frozenset({FP16}))
    a = torch.randn(40, 40)
    a.to(BF16) @ a.to(BF16)
    assert not seen
    a.to(FP16) @ a.to(FP16)
    assert seen


def test_errors_and_empty_products_are_those_of_before():
    narrow_products.widen(frozenset({BF16, FP16}))
    empty = torch.empty(4, 0, dtype=BF16) @ torch.empty(0, 3, dtype=BF16)
    assert torch.equal(empty, torch.zeros(4, 3, dtype=BF16))
    for a, b in ((torch.ones(4, 5), torch.ones(4, 5)), (torch.ones(2, 4, 5), torch.ones(3, 5, 4))):
        with pytest.raises(RuntimeError):
            a.to(BF16) @ b.to(BF16)
    with pytest.raises(RuntimeError):
        torch.mm(torch.ones(4, 5, dtype=BF16), torch.ones(5, 4, dtype=FP16))


@pytest.mark.parametrize("way", ["load", "shapes", "dry run"])
def test_a_model_is_prepared_where_it_will_compute(way, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(narrow_products, "prepare", lambda device, dtype: seen.append((str(device), dtype)))
    if way == "shapes":
        shapes.build("smollm2-135m", layers=1, dtype=BF16)
    elif way == "load":
        hub.load_model(tiny_llama_folder(tmp_path / "base"), "causal-lm", "bf16")
    else:
        base = tiny_llama_folder(tmp_path / "base")
        forecast.dry_run(check(tiny_recipe(base, tmp_path / "run", model={"dtype": "bf16"}), overwrite=False))
    assert set(seen) == {("cpu", BF16)}


def test_a_shared_model_is_prepared_before_it_is_loaded(monkeypatch, tmp_path):
    """Two ranks would be needed to load it; what is asked is that none gets there unprepared."""

    class Prepared(Exception):
        pass

    def prepare(device, dtype):
        assert (str(device), dtype) == ("cpu", BF16)
        raise Prepared

    monkeypatch.setattr(narrow_products, "prepare", prepare)
    base = hub.open_base(tiny_llama_folder(tmp_path / "base"))
    with pytest.raises(Prepared):
        sharded.load_sharded(base, {}, BF16, Ranks(size=2), torch.device("cpu"))


def test_only_a_processor_that_is_slow_at_a_type_is_changed(monkeypatch):
    monkeypatch.setattr(narrow_products, "slow_here", lambda: frozenset({BF16}))
    for device, dtype, changed in (("meta", BF16, False), ("cpu", torch.float32, False), ("cpu", BF16, True)):
        narrow_products.prepare(device, dtype)
        assert bool(narrow_products._slow) == changed


def test_a_training_learns_the_same_either_way(monkeypatch, tmp_path):
    """The same connections, and losses as close as sums in another order bring them."""
    base, runs = tiny_llama_folder(tmp_path / "base", attention_dropout=0.0), {}
    for name, slow in (("as it was", frozenset()), ("widened", frozenset({BF16}))):
        monkeypatch.setattr(narrow_products, "slow_here", lambda slow=slow: slow)
        train.run(tiny_recipe(base, tmp_path / name, model={"dtype": "bf16"}), quiet=True)
        assert narrow_products._slow == slow
        runs[name] = losses(tmp_path / name)
    for (step, loss, _), (other_step, other_loss, _) in zip(*runs.values(), strict=True):
        assert step == other_step
        assert loss == pytest.approx(other_loss, rel=2e-2)
