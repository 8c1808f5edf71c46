"""`neuroada env`: one screen about this machine, to paste into a bug report. Nothing in it is secret."""

from __future__ import annotations

from neuroada_cli.machine import environment


def run() -> None:
    """Print versions, processor, memory and accelerators, one `name: value` a line."""
    for name, value in environment.facts().items():
        print(f"{name:14} {value}")
