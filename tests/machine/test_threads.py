"""How threads wait is the user's to say; where nothing is said, not for long."""

from __future__ import annotations

import os

import pytest

from neuroada_cli.machine import threads


@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, threads.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_the_users_word_goes_first(
    said: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(said))
    threads.wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
