"""How long threads of the CPU spin while they wait for each other."""

from __future__ import annotations

import os

# GCC's OpenMP, which torch's wheels bring, spins 300,000 times by default: where other programs use the
# cores as well, threads then take from each other the time in which the awaited one could have run.
SPINS = "10000"
SPOKEN_FOR = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Spin for microseconds, then sleep, unless the user has said how to wait. OpenMP reads it when it is
    loaded, so call it before torch is imported.
    """
    if not any(name in os.environ for name in SPOKEN_FOR):
        os.environ["GOMP_SPINCOUNT"] = SPINS
