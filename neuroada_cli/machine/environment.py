"""What this machine and installation are, for bug reports and for `env.json` of every run. Nothing secret."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from neuroada_cli import __version__
from neuroada_cli.machine.processor import cpu_name, usable_cores

PACKAGES = (
    "torch", "transformers", "datasets", "safetensors", "numpy", "pydantic", "peft", "bitsandbytes",
    "triton", "gguf", "scikit-learn",
)  # fmt: skip


def facts() -> dict[str, str]:
    """Versions, processor, memory and accelerators by name."""
    shown = {
        "neuroada": __version__,
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "memory": _memory(),
    }
    shown |= {name: _version(name) for name in PACKAGES}
    return shown | _accelerators()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    return f"{cpu_name()}, {usable_cores()} cores usable"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"{total / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _accelerators() -> dict[str, str]:
    try:
        import torch
    except ImportError as error:  # this screen is there for broken set-ups, too
        return {"torch import": f"fails: {error}"}
    shown = {"torch threads": str(torch.get_num_threads()), "cuda": torch.version.cuda or "not in this build"}
    if not torch.cuda.is_available():
        return shown | {"gpu": "none"}
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        major, minor = torch.cuda.get_device_capability(i)
        shown[f"gpu {i}"] = f"{device.name}, {device.total_memory / 2**30:.1f} GiB, sm_{major}{minor}"
    return shown
