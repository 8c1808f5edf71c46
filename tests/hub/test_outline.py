"""Hub models of which only the headers are fetched, from a stand-in of the hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import pico_llama
from hub_stand_in import Hub, stand_in
from tiny_run import tiny_llama_folder, tiny_recipe, tiny_tokenizer

from neuroada_cli import hub
from neuroada_cli.commands import train
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.outline import is_outline, resolve_outline, weights_of
from neuroada_cli.hub.resolve import OUTLINE
from neuroada_cli.hub.weights import open_weights
from neuroada_cli.show.numbers import size
from neuroada_cli.training import forecast

HUB_ID = "someone/large-llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In several shards, and large enough that its header is a small part of it."""
    place = tiny_llama_folder(tmp_path_factory.mktemp("base"))
    (place / "model.safetensors").unlink()
    model = pico_llama(vocabulary=len(tiny_tokenizer()), max_position_embeddings=256, intermediate_size=4096)
    model.save_pretrained(place, max_shard_size="300KB")
    assert len(list(place.glob("model-*.safetensors"))) > 2
    return place


@pytest.fixture
def online(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "ours"))
    with stand_in(tmp_path / "cache") as found:
        found.repos[HUB_ID] = {file.name: file.read_bytes() for file in folder.iterdir()}
        yield found


def test_an_outline_has_the_shapes_and_takes_no_room(online: Hub, folder: Path) -> None:
    outline = resolve_outline(HUB_ID)
    assert is_outline(outline)
    assert not is_outline(folder)
    own, real = open_weights(outline), open_weights(folder)
    assert {name: (own.info(name).shape, own.info(name).code) for name in own} == {
        name: (real.info(name).shape, real.info(name).code) for name in real
    }
    assert sum(file.stat().st_blocks * 512 for file in outline.glob("*.safetensors")) < real.nbytes / 4
    assert weights_of(outline) > real.nbytes
    fetched = [line.split()[0] for line in online.ranges]
    assert sorted(set(fetched)) == sorted(file.name for file in folder.glob("*.safetensors"))
    asked = len(online.asked)
    assert resolve_outline(HUB_ID) == outline
    assert not any("safetensors" in line.rpartition("/")[2] for line in online.asked[asked:])


def test_a_dry_run_fetches_no_weights_and_tells_what_it_would(
    online: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(forecast, "pace", lambda checked: "the clock is not tested")
    local = train.run(tiny_recipe(folder, tmp_path / "run"), dry_run=True)
    capsys.readouterr()
    found = train.run(tiny_recipe(Path(HUB_ID), tmp_path / "run"), dry_run=True)
    assert (found.trainable, found.total, found.steps) == (local.trainable, local.total, local.steps)
    assert found.peak_bytes == local.peak_bytes
    told = capsys.readouterr()
    weights = size(sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    assert f"the weights are not on this machine: {weights} are fetched when they are needed" in told.err
    whole = [line for line in online.asked if line.startswith("GET") and line.endswith(".safetensors")]
    assert len(whole) == len(online.ranges)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_here_is_taken_as_it_is(online: Hub, tmp_path: Path, folder: Path) -> None:
    here = hub.resolve_model(HUB_ID)
    assert resolve_outline(HUB_ID) == here
    assert resolve_outline(str(folder)) == folder
    assert not online.ranges


def test_a_config_alone_is_told_what_is_enough(tmp_path: Path, folder: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors*"))
    with pytest.raises(ModelError, match="holds a config and no weights, whose headers are needed") as caught:
        resolve_outline(str(bare))
    assert "name the hub id, of which a dry run fetches no more" in caught.value.line()
    (bare / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="holds only pickled weights"):
        resolve_outline(str(bare))


def test_an_outline_that_was_torn_is_made_again(online: Hub) -> None:
    outline = resolve_outline(HUB_ID)
    (outline / OUTLINE).unlink()
    (outline / "config.json").unlink()
    assert resolve_outline(HUB_ID) == outline
    assert (outline / "config.json").is_file()
    shutil.rmtree(outline)
    with pytest.raises(ModelError, match="is neither a folder here nor a model on the hub"):
        resolve_outline("someone/else")


def test_an_outline_is_no_model(online: Hub) -> None:
    """Its numbers are zeros that nobody wrote: nothing may train on them, or merge into them."""
    outline = resolve_outline(HUB_ID)
    with pytest.raises(ModelError, match="holds the headers of a model's weights and no numbers"):
        hub.resolve_model(str(outline))
