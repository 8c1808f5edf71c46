"""What makes a folder a model, an adapter or a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroada_cli.files.folders import ADAPTER_CONFIG, CONFIG, LINKS, is_adapter, is_model, is_run


@pytest.mark.parametrize(
    ("held", "model", "adapter"),
    [
        ((), False, False), ((CONFIG,), True, False), ((ADAPTER_CONFIG,), False, True),
        ((CONFIG, ADAPTER_CONFIG), False, True),  # an adapter that carries its base's config
    ],
)  # fmt: skip
def test_the_file_makes_the_folder(held: tuple[str, ...], model: bool, adapter: bool, tmp_path: Path) -> None:
    for name in held:
        (tmp_path / name).write_text("{}")
    assert (is_model(tmp_path), is_adapter(tmp_path), is_run(tmp_path)) == (model, adapter, False)
    assert not is_model(tmp_path / "absent")


@pytest.mark.parametrize("link", LINKS)
def test_a_run_has_a_named_checkpoint(link: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / ADAPTER_CONFIG).write_text("{}")
    assert not is_run(tmp_path)
    (tmp_path / link).symlink_to("checkpoint-3")
    assert is_run(tmp_path)
    assert not is_adapter(tmp_path)
