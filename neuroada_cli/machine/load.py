"""The machine a figure comes from."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any

import torch

from neuroada_cli.machine.processor import cpu_name, usable_cores


def machine() -> dict[str, Any]:
    """Processor, its cores and vector instructions, load (the one-minute average of now), GPU, versions."""
    packages = ("torch", "transformers", "peft", "triton", "safetensors", "neuroada-cli")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
