"""Model folders: finding them, checking them, reading their tensors, loading them.

    resolve_model     path, packaged model or hub id  ->  a local folder
    open_base         its files and module graph, opened once
    open_weights      a folder's tensors by name, one in memory at a time
    fingerprint       what makes this base this base
    module_graph      its modules and tensors by name, to be walked: from the cache where it was seen before
    skeleton          the same with its code, without weights
    load_model        the model with its weights

This package is the only importer of transformers' loaders.
"""

from neuroada_cli.files.safetensors_header import TensorInfo
from neuroada_cli.files.shards import INDEX
from neuroada_cli.hub.base import Base, open_base
from neuroada_cli.hub.endings import Endings, endings
from neuroada_cli.hub.fingerprint import FORMAT as FINGERPRINT_FORMAT
from neuroada_cli.hub.fingerprint import HASHES, fingerprint, hash_of, what_differs
from neuroada_cli.hub.graph import module_graph
from neuroada_cli.hub.ignored import ignored_of_model, ignored_of_tokenizer
from neuroada_cli.hub.in_use import InUse
from neuroada_cli.hub.kinds import CLASSIFIERS, ModelTask, Work
from neuroada_cli.hub.loading import (
    TORCH_DTYPES,
    LoadedModel,
    choose_device,
    default_exclude,
    is_pooler,
    load_headless,
    load_model,
    load_tokenizer,
    model_task,
    packed_layers,
    skeleton,
    writing_skeleton,
)
from neuroada_cli.hub.padding import reads_padding
from neuroada_cli.hub.parts import left_out, parts_of
from neuroada_cli.hub.reader import Reader, decoder_start, load_reader
from neuroada_cli.hub.resolve import is_hub_id, local_folder, read_config, resolve_model
from neuroada_cli.hub.sharing import adapter_of_hub, upload
from neuroada_cli.hub.weights import (
    Weights,
    holds_weights,
    open_weights,
    shard_name,
)

__all__ = [
    "CLASSIFIERS",
    "FINGERPRINT_FORMAT",
    "HASHES",
    "INDEX",
    "TORCH_DTYPES",
    "Base",
    "Endings",
    "InUse",
    "LoadedModel",
    "ModelTask",
    "Reader",
    "TensorInfo",
    "Weights",
    "Work",
    "adapter_of_hub",
    "choose_device",
    "decoder_start",
    "default_exclude",
    "endings",
    "fingerprint",
    "hash_of",
    "holds_weights",
    "ignored_of_model",
    "ignored_of_tokenizer",
    "is_hub_id",
    "is_pooler",
    "left_out",
    "load_headless",
    "load_model",
    "load_reader",
    "load_tokenizer",
    "local_folder",
    "model_task",
    "module_graph",
    "open_base",
    "open_weights",
    "packed_layers",
    "parts_of",
    "read_config",
    "reads_padding",
    "resolve_model",
    "shard_name",
    "skeleton",
    "upload",
    "what_differs",
    "writing_skeleton",
]
