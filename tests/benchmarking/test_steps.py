"""Interleaved steps: every method trains what it says on shared weights, and leaves them as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuroada_cli.benchmarking import steps
from neuroada_cli.benchmarking.footprint import Load, footprint, largest_batch
from neuroada_cli.benchmarking.measure import BenchPlan, Subject, all_targets, measure
from neuroada_cli.benchmarking.peers import check_names, peers
from neuroada_cli.benchmarking.peers import make as make_peer
from neuroada_cli.benchmarking.shapes import SHAPES, build
from neuroada_cli.benchmarking.steps import Contender, contender, interleave, random_batch, timing
from neuroada_cli.errors import RecipeError, ResourceError
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.methods.peft import CONFIGS, Peft
from neuroada_cli.selection.criteria import choose

K = 2
BATCH = random_batch(96, "generation", 2, 16, "cpu")


@pytest.fixture
def subject() -> Subject:
    built = build("pico")
    return Subject("pico", built.model, all_targets(built.model), built.kind, built.layers, built.depth)


def contenders(subject: Subject, names: list[str]) -> list[Contender]:
    indices = {name: choose(subject.model.get_submodule(name).weight.detach(), K) for name in subject.targets}
    return [contender(name, K, make_peer(name), subject.model, indices) for name in names]


def weights(subject: Subject) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in subject.model.named_parameters()}


def trained_state(entry: Contender) -> list[Tensor]:
    return [p.detach().clone() for p in entry.method.parameters(entry.model)]


@pytest.mark.parametrize("name", [name for name in peers() if name not in ("floor", "bitfit")])
def test_a_method_trains_and_the_shared_weights_keep_their_bits(subject: Subject, name: str) -> None:
    if name in CONFIGS:
        pytest.importorskip("peft")
    before = weights(subject)
    (entry,) = contenders(subject, [name])
    for group in entry.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 1e-2
    start = trained_state(entry)
    losses = []
    for _ in range(4):
        entry.guest.enter()
        losses.append(LOSSES["generation"](entry.model, BATCH)[0].item())
        entry.guest.leave()
        steps.one_step(entry, BATCH, "generation")
    assert losses[0] > losses[-1], "the method does not learn, so its time means nothing"
    entry.guest.enter()
    assert any(not torch.equal(a, b) for a, b in zip(start, trained_state(entry), strict=True))
    entry.guest.leave()
    after = weights(subject)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_floor_trains_nothing_and_reaches_the_embeddings(subject: Subject) -> None:
    (entry,) = contenders(subject, ["floor"])
    reached: list[Tensor] = []

    def watch(_: object, __: object, out: Tensor) -> None:
        out.register_hook(reached.append)

    entry.model.get_input_embeddings().register_forward_hook(watch)
    steps.one_step(entry, BATCH, "generation")
    assert reached
    assert reached[0].abs().sum() > 0
    assert entry.trainable == 0
    assert all(p.grad is None for p in entry.model.parameters())


def test_methods_start_from_the_same_loss(subject: Subject) -> None:
    pytest.importorskip("peft")
    # a Llama has no bias to train, and LoReFT edits states from the beginning
    entries = contenders(subject, [name for name in peers() if name not in ("bitfit", "loreft")])
    losses = [LOSSES["generation"](entry.model, BATCH)[0].item() for entry in entries]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


def test_every_round_holds_every_method_once_in_another_order(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = contenders(subject, ["floor", "neuroada", "mask"])
    order: list[str] = []

    def note(entry: Contender, *_: object) -> float:
        order.append(entry.name)
        return 2.0 if entry.name == "mask" else 1.0

    monkeypatch.setattr(steps, "one_step", note)
    interleave(entries, BATCH, "generation", rounds=3, warmup=1)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(rounds) == 4
    assert all(sorted(r) == ["floor", "mask", "neuroada"] for r in rounds)
    assert len({r[0] for r in rounds}) == 3, "nobody always goes first"
    assert [len(entry.seconds) for entry in entries] == [3, 3, 3], "the warm-up is left out"
    assert timing(entries[2], entries[0]).ratio == 2.0


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(subject: Subject) -> None:
    floor, ours = contenders(subject, ["floor", "neuroada"])
    floor.seconds, ours.seconds = [1.0, 10.0, 1.0], [1.1, 11.0, 3.0]  # the second round ran on a busy machine
    assert timing(ours, floor).ratio == pytest.approx(1.1)


def test_the_rows_of_a_bench(subject: Subject) -> None:
    plan = BenchPlan(("full", "mask"), (1, K), 2, 16, 2, 0, "cpu", torch.float32)
    rows = measure(subject, plan)
    assert [(row.method, row.k) for row in rows] == [
        ("floor", None), ("neuroada", 1), ("neuroada", K), ("mask", K), ("full", None),
    ]  # fmt: skip
    floor, one, two, mask, full = rows
    neurons = sum(subject.model.get_submodule(name).weight.shape[0] for name in subject.targets)
    assert (floor.trainable, one.trainable, two.trainable) == (0, neurons, K * neurons)
    assert mask.trainable == two.trainable
    assert full.trainable == subject.parameters
    assert floor.ratio_to_floor == 1.0
    assert floor.peak_bytes <= one.peak_bytes <= two.peak_bytes < full.peak_bytes
    for row in rows:
        assert row.peak_bytes == row.weights_bytes + row.state_bytes + row.activation_bytes
        assert row.predicted_bytes == pytest.approx(row.peak_bytes, rel=0.1)
        assert row.samples_per_s == pytest.approx(2 / row.step_seconds)


def test_memory_is_measured_on_weights_that_stay(subject: Subject) -> None:
    before = weights(subject)
    load = Load(96, "generation", 2, 16, "cpu")
    indices = {name: choose(subject.model.get_submodule(name).weight.detach(), K) for name in subject.targets}
    print_ = footprint("neuroada", make_peer("neuroada"), subject.model, indices, load, budget=2_000_000)
    assert print_.fits
    assert print_.fits > 2
    assert print_.fits_samples_per_s
    after = weights(subject)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("budget", [0, 99, 100, 110, 1000, 12345])
@pytest.mark.parametrize("start", [1, 4, 5000])
def test_the_largest_batch_is_the_largest(budget: int, start: int) -> None:
    def peak(rows: int) -> int:  # two regimes, as when logits overtake activations
        return 90 + 10 * rows if rows < 40 else 90 + 10 * 40 + 13 * (rows - 40)

    asked: list[int] = []

    def peak_at(rows: int) -> int:
        asked.append(rows)
        return peak(rows)

    best = largest_batch(peak_at, budget, {start: peak(start)})
    assert best == max((rows for rows in range(1, 6000) if peak(rows) <= budget), default=0)
    assert len(asked) <= 20


def test_the_largest_batch_stops_where_the_machine_does() -> None:
    assert largest_batch(lambda rows: 10 * rows if rows <= 37 else None, 10**9, {1: 10}) == 37


def test_shapes_have_the_sizes_of_their_names() -> None:
    billions = {
        "llama-7b": 6.738, "llama-13b": 13.016, "llama2-7b": 6.738, "llama3-8b": 8.030,
        "qwen2.5-7b": 7.616, "smollm2-135m": 0.1345, "roberta-large": 0.3554,
        "llama2-70b": 68.98, "llama3-405b": 405.9, "mixtral-8x7b": 46.70,
    }  # fmt: skip
    for name, size in billions.items():
        model = build(name, device="meta").model
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(size, rel=5e-3), name


def test_cut_and_unknown_shapes() -> None:
    built = build("llama-7b", layers=2, device="meta")
    assert (built.layers, built.depth, len(built.model.model.layers)) == (2, 32, 2)
    with pytest.raises(RecipeError, match=r"choose 1\.\.32"):
        build("llama-7b", layers=33)
    with pytest.raises(RecipeError, match="did you mean llama-7b"):
        build("llama-7")
    assert "pico" in SHAPES


def test_unknown_peers_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="did you mean lora"):
        check_names(["loraa"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="peft, which is not installed"):
        Peft("lora")


def test_supertuning_trains_as_many_entries_as_the_selection(subject: Subject) -> None:
    pytest.importorskip("peft")
    ours, theirs = contenders(subject, ["neuroada", "supertuning"])
    assert theirs.trainable == pytest.approx(ours.trainable, abs=len(subject.targets))


def test_a_peers_state_goes_back_exactly(subject: Subject) -> None:
    pytest.importorskip("peft")
    (entry,) = contenders(subject, ["lora"])
    steps.one_step(entry, BATCH, "generation")
    saved = entry.method.state(entry.model)
    kept = {name: tensor.clone() for name, tensor in saved.whole.items()}
    steps.one_step(entry, BATCH, "generation")
    entry.method.load_state(entry.model, type(saved)({}, kept))
    again = entry.method.state(entry.model).whole
    assert all(torch.equal(kept[name], again[name]) for name in kept)
