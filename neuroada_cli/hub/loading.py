"""Models and tokenizers from a local folder, through transformers, with errors that a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from neuroada_cli.delta.quantized import keep_layout
from neuroada_cli.delta.targets import is_linear
from neuroada_cli.errors import ModelError, ResourceError, UserError, limit_reached
from neuroada_cli.files.claims import MEND
from neuroada_cli.files.shards import refuse_bare_index
from neuroada_cli.hub.endings import settle
from neuroada_cli.hub.kinds import CLASSES, CLASSIFIERS, ModelTask, Work, as_task, task_of
from neuroada_cli.hub.known import known
from neuroada_cli.hub.plausible import bounded
from neuroada_cli.hub.resolve import TRUST, check_folder, read_config
from neuroada_cli.hub.tokenizer_class import is_code, read_tokenizer
from neuroada_cli.hub.weights import open_weights
from neuroada_cli.machine import collector, narrow_products
from neuroada_cli.machine.quiet import quiet_bitsandbytes

# Without any of these a folder has no tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
# The recipe's names of data types.
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OF_TORCH = ("eager", "sdpa")  # attention without a package of its own


def choose_device(wanted: str | None = None, number: int | None = None) -> str:
    """The device named, else cuda where there is one, else cpu: mps has to be named, since nothing here was
    measured on it. Raises ResourceError where it is missing.

    number  of this process among those of the machine: of its GPUs, the one to take
    """
    cuda = ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    mps = ("mps",) if torch.backends.mps.is_available() else ()
    here = [*(cuda if torch.cuda.is_available() else ()), "cpu", *mps]
    if wanted is not None and wanted not in here:
        raise ResourceError(f"there is no {wanted} here", "device", f"choose {', '.join(here)}")
    chosen = wanted or here[0]
    return f"cuda:{number}" if chosen == "cuda" and number is not None else chosen


def writing_skeleton(folder: Path, task: ModelTask, trust_remote_code: bool = False) -> nn.Module:
    """`skeleton`, with the settings of writing (which tokens end a text) that lie beside the weights."""
    from transformers import GenerationConfig

    model: Any = skeleton(folder, task, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return cast(nn.Module, model)


@dataclass(frozen=True)
class LoadedModel:
    """model   in evaluation mode, as transformers leaves it
    fresh   parameters that the folder lacks and that were initialised here (a classification head)
    folder  where it came from
    """

    model: nn.Module
    fresh: list[str]
    folder: Path


def skeleton(
    folder: Path,
    task: ModelTask,
    num_labels: int | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> nn.Module:
    """The module graph on the meta device: names, classes, shapes and ties, no weights and no memory.

    attention  as of `load_model`, but for one that needs a package: there transformers chooses, too
    Raises ModelError for a config that transformers cannot build.
    """
    with _explained(folder), bounded(open_weights(folder)), torch.device("meta"):
        config = _config(folder, num_labels, trust_remote_code)
        asked = {"attn_implementation": attention} if attention in OF_TORCH else {}
        model: nn.Module = _auto_class(task).from_config(config, trust_remote_code=trust_remote_code, **asked)
        model.tie_weights()  # type: ignore[operator]
    return model


def load_model(
    folder: Path,
    task: ModelTask,
    dtype: torch.dtype | str,
    device: str | torch.device = "cpu",
    num_labels: int | None = None,
    attention: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> LoadedModel:
    """The model with its weights rounded to `dtype` ("bf16", "fp16", "fp32" or a torch dtype).

    quantization  nf4, fp4 or int8: linear layers except heads are quantised by bitsandbytes while loading,
                  and compute in `dtype`

    A head that the folder lacks, or holds for another number of labels, is initialised from `seed` alone.
    Raises ModelError (not loadable, or a weight inside the pretrained part is missing), ResourceError (out
    of memory, or a package that the attention implementation needs).
    """
    check_folder(folder, trust_remote_code)
    refuse_bare_index(folder)
    torch_dtype = TORCH_DTYPES[dtype] if isinstance(dtype, str) else dtype
    narrow_products.prepare(device, torch_dtype)
    packed: dict[str, Any] = {}
    if quantization is not None:
        heads = default_exclude(skeleton(folder, task, num_labels, trust_remote_code))
        packed = {
            "quantization_config": _quantization(quantization, torch_dtype, heads),
            "device_map": {"": device},
        }
    streams = torch.random.fork_rng(devices=[])
    with _explained(folder), bounded(open_weights(folder)), _silent_transformers(), streams:
        torch.default_generator.manual_seed(seed)
        model, info = _auto_class(task).from_pretrained(
            folder,
            config=_config(folder, num_labels, trust_remote_code),
            dtype=torch_dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **packed,
        )
        missing = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
        fresh = [name for name, _ in model.named_parameters() if name in missing]
        _refuse_missing(model, fresh, task, folder)
        keep_layout(model)
        collector.as_usual()  # all that is large has been imported by now
        return LoadedModel(model if packed else model.to(device), fresh, folder)


def load_headless(folder: Path, dtype: str, trust_remote_code: bool = False) -> nn.Module:
    """The model up to its last hidden states, without a head, its weights rounded to `dtype`; on the CPU.

    Raises ModelError (not loadable), ResourceError (out of memory).
    """
    from transformers import AutoModel

    check_folder(folder, trust_remote_code)
    with _explained(folder), bounded(open_weights(folder)), _silent_transformers():
        model: nn.Module = AutoModel.from_pretrained(
            folder,
            dtype=TORCH_DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    return model


def load_tokenizer(folder: Path, trust_remote_code: bool = False, model: Path | None = None) -> Any:
    """The folder's tokenizer (a PreTrainedTokenizerBase), its end token settled with the model's configs.

    model  the folder of these configs, where it is another one
    Raises ModelError when there is none, or one that cannot name its own special tokens or read a text.
    """
    try:
        with _silent_transformers():
            tokenizer = read_tokenizer(folder, trust_remote_code)
            settle(tokenizer, model or folder)
            _ = tokenizer.special_tokens_map, tokenizer.all_special_ids, tokenizer.pad_token_id
            tokenizer("a", verbose=False)
            return tokenizer
    except UserError:
        raise
    except ImportError as error:
        _refuse_at_limit(error, folder)
        raise ResourceError(f"the tokenizer needs a package: {_first_line(error)}", str(folder)) from error
    except RecursionError as error:  # transformers looks for the unknown token's number by itself
        raise ModelError(
            "the tokenizer's unknown token is none of its tokens",
            str(folder),
            "mend unk_token (and bos_token, eos_token) in its tokenizer_config.json",
        ) from error
    except Exception as error:  # the folder's content is foreign: anything may come out of it
        _refuse_at_limit(error, folder)
        if not any(file.is_file() for name in TOKENIZER_FILES for file in folder.glob(name)):
            raise ModelError(
                "has no tokenizer",
                str(folder),
                "copy tokenizer.json and tokenizer_config.json of the model there",
            ) from error
        if is_code(folder) and not trust_remote_code:
            raise ModelError(
                "its tokenizer is Python code of its own (auto_map in tokenizer_config.json), not run",
                str(folder),
                TRUST if model is None else "copy its base's tokenizer files there",
            ) from error
        raise ModelError(
            f"no tokenizer can be loaded: {_first_line(error)}", str(folder), "copy its tokenizer files there"
        ) from error


def model_task(folder: Path, work: Work, trust_remote_code: bool = False) -> ModelTask:
    """The class of model that does this work in a checked folder.

    Raises ModelError, naming the model's type and why, where none can.
    """

    def find() -> ModelTask:
        return task_of(read_auto_config(folder, trust_remote_code), work, str(folder))

    if "auto_map" in read_config(folder):  # its own code may say otherwise
        return find()
    return known("kinds", [folder / "config.json"], work, find, str, as_task)


def read_auto_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The folder's config as transformers reads it. Raises ModelError for one that it cannot read."""
    with _explained(folder), _silent_transformers():
        return _config(folder, None, trust_remote_code)


def default_exclude(model: nn.Module) -> list[str]:
    """The linear layers that `all-linear` leaves out: the output embeddings and everything outside the
    pretrained body (classification heads).
    """
    output, inside = model.get_output_embeddings(), body_of(model)  # type: ignore[operator]
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and (module is output or not inside(name))
    ]


def body_of(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module or parameter is of the pretrained body, by name.

    It lies under the model's prefix. Where nothing does (CLIP's and SigLIP's classifiers keep a vision tower
    under its own name), all is body but the linear layers at the top.
    """
    body = f"{getattr(model, 'base_model_prefix', '')}."
    heads = {name for name, module in model.named_children() if is_linear(module)}
    if any(name.startswith(body) for name, _ in model.named_modules()):
        return lambda name: name.startswith(body)
    return lambda name: name.partition(".")[0] not in heads


def packed_layers(model: nn.Module) -> list[str]:
    """The layers that loading a quantised base puts into 4 or 8 bits: all linear ones but heads."""
    heads = set(default_exclude(model))
    return [name for name, module in model.named_modules() if is_linear(module) and name not in heads]


def is_pooler(name: str) -> bool:
    """Whether a module or parameter belongs to an encoder's pooler: pretrained in some folders, absent (and
    then fresh) in others.
    """
    return "pooler" in name.split(".")


# ---------------------------------------------------------------------------------------------------


def _auto_class(task: ModelTask) -> Any:
    import transformers

    return getattr(transformers, CLASSES[task][0])


def _quantization(kind: str, compute_dtype: torch.dtype, heads: list[str]) -> Any:
    """bitsandbytes' settings; output heads stay as they are (a fresh one trains whole)."""
    quiet_bitsandbytes()
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ResourceError(
            f"model.quantization={kind} needs bitsandbytes", fix="pip install 'neuroada-cli[quantized]'"
        ) from None
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=heads,
    )


def _config(folder: Path, num_labels: int | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    if num_labels is not None:
        config.num_labels = num_labels
    return config


def _refuse_missing(model: Any, fresh: list[str], task: ModelTask, folder: Path) -> None:
    """Only a task head (and the pooler that feeds it) may be fresh; anything else is a damaged model."""
    inside = body_of(model)
    for name in fresh:
        if task not in CLASSIFIERS or (inside(name) and not is_pooler(name)):
            raise ModelError(
                f"{name} is missing from the weights, or has another shape than config.json says",
                str(folder),
                MEND,
            )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Whatever transformers raises on a foreign folder, as one line."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        _refuse_at_limit(error, folder)
        raise ResourceError(f"a package is missing: {_first_line(error)}", str(folder)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError("the model does not fit into memory", str(folder)) from error
    except Exception as error:  # anything may come out of a foreign folder
        if "DefaultCPUAllocator" in str(error):
            raise ResourceError("the model does not fit into memory", str(folder)) from error
        _refuse_at_limit(error, folder)
        raise ModelError(f"cannot be loaded: {_first_line(error)}", str(folder)) from error


def _refuse_at_limit(error: Exception, folder: Path) -> None:
    """Raises ResourceError where it is no fault of the folder's: no more files can be opened."""
    remedy = limit_reached(error)
    if remedy is not None:
        raise ResourceError(f"cannot be loaded: {_first_line(error)}", str(folder), remedy) from error


def _first_line(error: Exception) -> str:
    """The first line, with those behind it as long as it only announces them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    for line in lines[1:]:
        if not first.endswith(":"):
            break
        first = f"{first} {line}"
    return first[:300]


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """No bars and no warnings of transformers: what a user must know is said by our own messages."""
    import huggingface_hub.utils
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    downloads = not huggingface_hub.utils.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # turns the download bars off as well
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if downloads:
            huggingface_hub.utils.enable_progress_bars()
