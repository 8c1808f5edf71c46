"""An image processor is loaded, or the user is told what it lacks."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from neuroada_cli.errors import ModelError, ResourceError
from neuroada_cli.hub.pictures import load_image_processor


def folder_of(folder: Path, kind: str) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
    return folder


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "ViTImageProcessor", "Qwen2VLImageProcessorFast"])
def test_whichever_works_here_is_taken(kind: str, tmp_path: Path) -> None:
    assert kind.removesuffix("Fast") in type(load_image_processor(folder_of(tmp_path, kind))).__name__


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here")
def test_a_missing_package_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="needs a package that is not here: torchvision; install it"):
        load_image_processor(folder_of(tmp_path, "Sam2ImageProcessor"))


def test_no_processor_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nobody can tell how it sees pictures; copy it there"):
        load_image_processor(tmp_path)
    with pytest.raises(ModelError, match=r"no image processor can be loaded: .*copy its preprocessor_config"):
        load_image_processor(folder_of(tmp_path, "NoSuchProcessor"))
