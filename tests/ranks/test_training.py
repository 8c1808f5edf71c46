"""The same training in 1, 2 and 4 processes: losses, selection, what is learnt, and going on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import in_ranks, shards, undrawn  # noqa: F401
from tiny_run import one_thread, tiny_bert_folder, tiny_llama_folder, tiny_recipe  # noqa: F401
from trees import tree

from neuroada_cli import files
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import merge, train
from neuroada_cli.errors import Stopped
from neuroada_cli.loop import rng
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.stopping import Noted
from neuroada_cli.training import fit
from neuroada_cli.training.log import read_metrics


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("llama"), attention_dropout=0.0)


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("dropout"))


def run_in(size: int, recipe: Recipe, **options: Any) -> list[Any]:
    """Train in so many forked processes; what each returned, an error as its code and line."""

    def work(ranks: Ranks) -> Any:
        result = train.run(recipe, quiet=True, ranks=ranks, **options)
        return {"best": result.best_value, "loss": result.loss, "steps": result.steps}

    if size == 1:  # here, so that those that are forked later find everything imported
        try:
            return [work(ALONE)]
        except Stopped as stopped:
            return [{"code": stopped.exit_code, "line": stopped.line()}]
    return in_ranks(size, recipe.run_path.with_name(f"{recipe.run_path.name}-told"), work)


def losses(run: Path) -> list[tuple[str, int, float]]:
    return [(entry["kind"], entry["step"], entry["loss"]) for entry in read_metrics(run / "metrics.jsonl")]


def learnt(checkpoint: Path) -> dict[str, torch.Tensor]:
    adapter = read_adapter(checkpoint)
    return {**adapter.deltas, **adapter.whole}


def assert_same_course(one: Path, other: Path, rtol: float = 1e-6) -> None:
    """The same selection bit for bit, and the same losses to the order of summation."""
    assert (one / "selection.safetensors").read_bytes() == (other / "selection.safetensors").read_bytes()
    pairs = list(zip(losses(one), losses(other), strict=True))
    assert [a[:2] for a, _ in pairs] == [b[:2] for _, b in pairs]
    for (*_, a), (*_, b) in pairs:
        assert a == pytest.approx(b, rel=rtol)


@pytest.mark.skipif(not shards.args[0], reason="this torch shards whole numbers")
def test_sharding_is_refused_where_torch_cannot(llama: Path, tmp_path: Path) -> None:
    for told in run_in(2, tiny_recipe(llama, tmp_path / "run", train={"parallel": "shard"})):
        assert told["code"] == 2
        assert "train.parallel=shard needs torch 2.12 or later, and this is 2.11" in told["line"]
        assert "set train.parallel: replicate" in told["line"]


MICRO = (None, 2, 1)


@pytest.fixture(scope="module")
def courses(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Number of processes -> a run for each of MICRO; of one start, as a start takes longer than a run."""
    found = {}
    for size in (1, 2, 4):
        here = tmp_path_factory.mktemp(f"runs{size}")
        recipes = [
            tiny_recipe(llama, here / f"{n}", train={"epochs": 1, "micro_batch_size": micro})
            for n, micro in enumerate(MICRO)
        ]

        def work(ranks: Ranks, recipes: list[Recipe] = recipes) -> None:
            for recipe in recipes:
                with pytest.MonkeyPatch.context() as patches:
                    if recipe is not recipes[0]:
                        patches.setattr(fit, "_draw", lambda *given: None)
                    train.run(recipe, quiet=True, ranks=ranks)

        if size == 1:
            work(ALONE)
        else:
            in_ranks(size, here / "told", work)
        found[size] = [recipe.run_path for recipe in recipes]
    return found


@pytest.mark.parametrize("way", range(len(MICRO)))
def test_losses_selection_and_deltas_are_those_of_one_process(
    courses: dict[int, list[Path]], way: int
) -> None:
    alone = courses[1][way]
    expected = learnt(alone / "last")
    assert len(losses(alone)) == 7
    for size in (2, 4):
        run = courses[size][way]
        assert_same_course(alone, run)
        assert tree(alone).keys() == tree(run).keys()
        for name, value in learnt(run / "last").items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_merged_folders_are_equal_within_one_rounding(llama: Path, tmp_path: Path) -> None:
    merged = {}
    for size in (1, 2):
        recipe = tiny_recipe(llama, tmp_path / f"run{size}", train={"max_steps": 3}, model={"dtype": "bf16"})
        run_in(size, recipe)
        merge.run(recipe.run_path, tmp_path / f"merged{size}", quiet=True)
        merged[size] = files.read_tensors(tmp_path / f"merged{size}" / "model.safetensors")[0]
    assert merged[1].keys() == merged[2].keys()
    for name, weight in merged[1].items():
        step = torch.finfo(weight.dtype).eps * weight.float().abs()
        assert bool(((weight.float() - merged[2][name].float()).abs() <= step).all())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("rte", {"select": {"k": 1}}),
        ("stsb", {"select": {"k": 1}}),
        ("due_dates", {"train": {"method": "lora"}, "peer": {"rank": 2}}),
        ("due_dates", {"train": {"method": "full"}, "optim": {"lr": 1e-3}}),
        ("due_dates", {"train": {"packing": True}, "select": {"k": 1, "criterion": "gradient"}}),
        ("due_dates", {"train": {"gradient_checkpointing": True, "reselect_every": 4}}),
    ],
)
def test_whatever_trains_trains_alike_in_two_processes(
    llama: Path, tmp_path: Path, task: str, settings: dict[str, Any]
) -> None:
    model = llama
    data: dict[str, Any] = {"task": task}
    if task != "due_dates":
        model, rows = tiny_bert_folder(tmp_path / "bert"), tmp_path / "rows.jsonl"
        lines = [
            {"sentence1": f"{n} apples", "sentence2": f"{n % 3} pears", "label": n % 2} for n in range(24)
        ]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        data |= {"train": str(rows), "validation": str(rows)}
    for size in (1, 2):
        values = {"data": data, **settings, "train": {"max_steps": 5, **settings.get("train", {})}}
        run_in(size, tiny_recipe(model, tmp_path / f"run{size}", **values))
    assert_same_course(tmp_path / "run1", tmp_path / "run2", rtol=1e-5)


class StopAfter:
    """A signal that comes to one rank only, while it works on a step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from neuroada_cli.loop import loop

        original, signals = loop.train_step, []
        before = Noted.__enter__

        def enter(self_: Noted) -> Noted:
            signals.append(self_)
            return before(self_)

        def step(*given: Any, **named: Any) -> Any:
            stats = original(*given, **named)
            if stats.step == self.steps and named["ranks"].number == named["ranks"].size - 1:
                signals[-1].requested = 15
            return stats

        monkeypatch.setattr(Noted, "__enter__", enter)
        monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.usefixtures("undrawn")
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(llama, tmp_path / "run")
    StopAfter(2)(monkeypatch)
    told = run_in(3, recipe)
    assert [each["code"] for each in told] == [143] * 3
    assert {each["line"] for each in told} == {
        "stopped by SIGTERM after step 2 of 12, everything saved; go on with --resume"
    }
    assert (recipe.run_path / "last").readlink() == Path("checkpoint-2")


@pytest.mark.usefixtures("undrawn")
def test_going_on_in_as_many_processes_ends_with_the_same_bits(
    with_dropout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose stream each rank has for itself."""
    whole, parts = (tiny_recipe(with_dropout, tmp_path / name) for name in ("whole", "parts"))
    run_in(2, whole)
    with monkeypatch.context() as stopping:
        StopAfter(4)(stopping)
        run_in(2, parts)
    run_in(2, parts, resume=True)
    assert losses(whole.run_path) == losses(parts.run_path)
    for name in ("adapter_model.safetensors", "state/optimizer.safetensors", "state/rng.safetensors"):
        one, other = (recipe.run_path / "last" / name for recipe in (whole, parts))
        assert one.read_bytes() == other.read_bytes(), name
    streams = files.read_tensors(whole.run_path / "last" / "state/rng.safetensors")[0]
    assert not torch.equal(streams["torch"], streams["rank1.torch"])


@pytest.mark.usefixtures("undrawn")
def test_going_on_in_fewer_and_in_more_processes_loses_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (tiny_recipe(llama, tmp_path / name) for name in ("whole", "parts"))
    run_in(1, whole)
    for size, stop in ((4, 3), (2, 5), (1, 8), (2, None)):
        with monkeypatch.context() as stopping:
            if stop is not None:
                StopAfter(stop)(stopping)
            run_in(size, parts, resume=stop != 3)
    assert_same_course(whole.run_path, parts.run_path)


@pytest.mark.usefixtures("undrawn")
def test_a_checkpoint_of_several_processes_is_that_of_one_beside_its_streams(
    llama: Path, tmp_path: Path
) -> None:
    for size in (1, 2):
        run_in(size, tiny_recipe(llama, tmp_path / f"run{size}", train={"max_steps": 1}))
    one, two = ({file.name for file in (tmp_path / f"run{n}" / "last").rglob("*")} for n in (1, 2))
    assert one == two
    state = json.loads((tmp_path / "run2" / "last" / "state/state.json").read_text())
    assert len(state["rng"].pop("ranks")) == 1
    assert (
        state["rng"].keys() == json.loads((tmp_path / "run1/last/state/state.json").read_text())["rng"].keys()
    )


@pytest.mark.parametrize("change", ["rank2.torch", "rank1.cpu", "rankx.torch"])
def test_streams_of_ranks_that_were_not_there_are_refused(change: str) -> None:
    tensors, numbers = rng.capture()
    numbers = numbers | {"ranks": [dict(numbers)]}
    every = tensors | {f"rank1.{name}": tensor for name, tensor in tensors.items()}
    rng.restore(every, numbers)
    with pytest.raises(ValueError, match="is no state of a random generator"):
        rng.restore(every | {change: tensors["torch"]}, numbers)
    with pytest.raises(ValueError, match="not exactly the keys"):
        rng.restore(every, numbers | {"ranks": [{"python": [3, None]}]})


def test_a_rank_without_a_stream_of_its_own_keeps_the_one_it_began_with() -> None:
    tensors, numbers = rng.capture()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    rng.restore(tensors, numbers, dataclasses.replace(ALONE, number=1, size=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_that_have_learnt_different_things_write_no_checkpoint(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuroada_cli.loop import loop

    def apart(*given: Any, **named: Any) -> Any:
        stats = loop_step(*given, **named)
        if named["ranks"].number == 1:
            given[1].parameters(given[0])[3].data.view(-1)[0] += 1e-6
        return stats

    loop_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", apart)
    recipe = tiny_recipe(llama, tmp_path / "run", train={"save_every": 1})
    told = run_in(2, recipe)
    assert [each["code"] for each in told] == [5, 5]
    assert "process 1 has learnt something else than process 0" in told[0]["line"]
    assert not list(recipe.run_path.glob("checkpoint-*"))


def test_what_is_wrong_is_refused_by_all_before_anything_is_written(llama: Path, tmp_path: Path) -> None:
    few = tiny_recipe(llama, tmp_path / "few", train={"batch_size": 2, "micro_batch_size": None})
    told = run_in(3, few)
    assert {each["code"] for each in told} == {2}
    assert "has not a row for each of 3 processes" in told[0]["line"]
    busy = tiny_recipe(llama, tmp_path / "busy")
    with files.Lock(busy.run_path):
        told = run_in(2, busy)
    assert [each["code"] for each in told] == [7, 7]
    assert "is in use by process" in told[0]["line"]
    assert not few.run_path.exists()
    assert not busy.run_path.exists()


def test_a_dry_run_is_told_once(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    in_ranks(
        2,
        tmp_path / "told",
        lambda ranks: train.run(tiny_recipe(llama, tmp_path / "run"), dry_run=True, ranks=ranks).steps,
    )
    shown = capfd.readouterr()
    assert shown.out.count("Predicted memory in each of 2 processes") == 1
    assert shown.err.count("2 processes, each with") == 1
    assert not (tmp_path / "run").exists()


def test_one_of_several_processes_never_trains_alone(llama: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Exception, match="one of 4 processes, but trains alone"):
        train.run(tiny_recipe(llama, tmp_path / "run"))
    assert Stopped.exit_code == 2
