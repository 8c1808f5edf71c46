"""The cache folder has one home, whoever asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroada_cli.machine.cache import cache_folder


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("~/kept", None, "home/kept"),
        ("", None, "home/.cache/neuroada"),
        (None, "", "home/.cache/neuroada"),
        (None, "~/x", "home/x/neuroada"),
        ("", "~/x", "home/x/neuroada"),
    ],
)
def test_home_is_meant_by_a_tilde_and_nothing_by_nothing(
    own: str | None, xdg: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("NEUROADA_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cache_folder() == tmp_path / expected


def test_kernels_models_and_data_lie_in_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroada_cli.data import fetching
    from neuroada_cli.delta import native
    from neuroada_cli.hub import packaged

    assert native.cache_folder is packaged.cache_folder is fetching.cache_folder is cache_folder
