"""From what the user named to a checked local folder: a path, a packaged model, or a hub id."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from neuroada_cli.errors import ModelError, ResourceError, unreadable
from neuroada_cli.machine.network import hub_answers

MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH = 16 << 20, 32
Found = TypeVar("Found", bound=Path | None)
OUTLINE = "outline.json"  # what tells a model's outline (`hub.outline`) from the model
TRUST = "set model.trust_remote_code to true if you trust it"
ANSWER_SECONDS = 10  # for the hub to say what a model consists of
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
# The top level's small files that a model needs; weights are added, pickles and code never are.
SMALL_FILES = re.compile(r"^([\w.-]+\.(json|model|txt|jinja)|README\.md)$")
WEIGHT_FILES = re.compile(r"^model(-\d+-of-\d+)?\.safetensors$")


def resolve_model(path_or_id: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The local folder of a model, its files checked before anything is loaded.

    path_or_id  a folder; the name of a packaged model (smollm2-135m); or a hub id, of which only config,
                safetensors, tokenizer and templates are downloaded (and Python files when trusted)
    revision    branch, tag or commit of a hub id
    Raises ModelError (missing, gated, unreachable, pickles only, truncated or contradictory files), and
    ResourceError for a full disk or a packaged model that is not installed.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        if (path / OUTLINE).is_file():
            raise ModelError(
                "holds the headers of a model's weights and no numbers, for dry runs",
                path_or_id,
                "name the model itself",
            )
        check_folder(path, trust_remote_code)
        return path
    from neuroada_cli.hub.packaged import PACKAGED

    if path_or_id in PACKAGED:
        folder = PACKAGED[path_or_id]()
    elif path.exists():
        raise ModelError("is a file, not a model folder", path_or_id, "name the folder that holds it")
    elif not HUB_ID.match(path_or_id):
        raise ModelError("no such model folder", path_or_id, "check the path")
    else:
        folder = _from_hub(path_or_id, revision, trust_remote_code)
    check_folder(folder, trust_remote_code)
    return folder


def check_folder(folder: Path, trust_remote_code: bool = False) -> None:
    """Everything that can be known without loading: config, pickles, shards against their index and sizes,
    counts of the config against what they hold, and code that would come with it.

    Raises ModelError.
    """
    from neuroada_cli.files.claims import refuse_impossible
    from neuroada_cli.hub.weights import open_weights

    config = read_config(folder)
    weights = open_weights(folder)
    refuse_impossible(config, weights.infos, folder)
    if "auto_map" in config and not trust_remote_code and not _is_native(config):
        raise ModelError(
            f"model type {config.get('model_type')} runs Python code that comes with the model",
            str(folder),
            TRUST,
        )
    kernel = _kernel(config)
    if kernel is not None and not trust_remote_code:
        raise ModelError(
            f"its config has attention computed by code from the hub ({kernel[:80]})",
            str(folder),
            f"take that out of config.json, or {TRUST}",
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            "holds an adapter_config.json beside the model, which transformers would put on it",
            str(folder),
            "remove one of the two",
        )


def local_folder(path_or_id: str, revision: str | None = None) -> Path | None:
    """A folder as it is, or a hub id's in the cache; None where nothing is here. Nobody is asked for it."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if not HUB_ID.match(path_or_id):
        return None
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(path_or_id, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError):
        return None


def is_hub_id(path_or_id: str) -> bool:
    """Whether it reads like `owner/name`, the only form that others can look up."""
    return "/" in path_or_id and HUB_ID.match(path_or_id) is not None and not Path(path_or_id).is_dir()


def refuse_dangling(file: Path) -> None:
    """Raises ModelError for a link without its file, as folders copied out of the hub's cache have them."""
    if os.path.islink(file) and not os.path.exists(file):  # which take any name
        raise ModelError(
            f"{file.name} is a link to a file that is not there",
            str(file.parent),
            "copy the folder anew with its files (cp -rL), or name the original",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a mapping. Raises ModelError when it is missing or broken."""
    file = folder / "config.json"
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError("is too large for a config", str(file))
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any((folder / inside / "adapter_config.json").is_file() for inside in ("best", "last")):
            fix = "name its base model; train.start_from begins with what a run has learnt"
            raise ModelError("is a run, not a model", str(folder), fix) from None
        if (folder / "adapter_config.json").is_file():
            raise ModelError("is an adapter, not a model", str(folder), "name its base model") from None
        refuse_dangling(file)
        raise ModelError("has no config.json", str(folder), "name a Hugging Face model folder") from None
    except OSError as error:
        raise unreadable(error, file) from None
    except json.JSONDecodeError as error:
        raise ModelError(f"not valid JSON: {error.msg}", f"{file}:{error.lineno}") from None
    except (ValueError, RecursionError):
        raise ModelError("not valid JSON text", str(file)) from None
    if not isinstance(config, dict):
        raise ModelError("is not a JSON object", str(file))
    if _is_deep(config):
        raise ModelError("is nested too deeply for a config", str(file))
    return config


def _is_deep(value: Any, depth: int = 1) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > MAX_CONFIG_DEPTH or any(
        _is_deep(each, depth + 1) for each in inside if isinstance(each, dict | list)
    )


def _kernel(value: Any, key: str = "") -> str | None:
    """The repository that a config (also a nested part of it) has attention's code loaded from, or None."""
    names_code = "_implementation" in key  # its value may be a mapping, for the parts of the model
    if isinstance(value, dict):
        inner = [_kernel(inside, key if names_code else name) for name, inside in value.items()]
        return next(filter(None, inner), None)
    return value if names_code and isinstance(value, str) and "/" in value else None


def _is_native(config: dict[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


# ---------------------------------------------------------------------------------------------------
# The hub


def _from_hub(hub_id: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import constants, snapshot_download

    def cached() -> Path:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))

    def download() -> Path:
        files = wanted_files(hub_id, revision, trust_remote_code)
        place = snapshot_download(hub_id, revision=revision, allow_patterns=files)
        return Path(place)

    if constants.HF_HUB_OFFLINE:
        return ask_hub(hub_id, cached, "HF_HUB_OFFLINE is set")
    if not hub_answers(constants.ENDPOINT):
        return ask_hub(hub_id, cached, f"{constants.ENDPOINT} cannot be reached")
    return ask_hub(hub_id, download, f"{constants.ENDPOINT} did not answer")


def ask_hub(hub_id: str, ask: Callable[[], Found], unreachable: str) -> Found:
    """What the hub gives. Raises ModelError and ResourceError for each of the ways in which it does not."""
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError:
        raise ModelError(
            "is gated: its owner must grant access",
            hub_id,
            "accept its licence on the hub, then `hf auth login`",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            "has no such model.revision", hub_id, "name a branch, tag or commit it has"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            "is neither a folder here nor a model on the hub", hub_id, "check the name (or `hf auth login`)"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise ModelError(
            f"is neither a folder here nor in the cache, and {unreachable}", hub_id, "give a local folder"
        ) from None
    except errors.HFValidationError:
        raise ModelError("is neither a folder here nor a valid hub id", hub_id, "check the path") from None
    except errors.HTTPError as error:  # of whichever HTTP library the hub client uses
        raise ModelError(f"the hub failed: {error}", hub_id, "try again, or give a local folder") from None
    except OSError as error:
        raise ResourceError(
            f"cannot be stored: {error}", hub_id, "make room, or move the cache (HF_HOME)"
        ) from None


def wanted_files(hub_id: str, revision: str | None, trust_remote_code: bool) -> list[str]:
    from huggingface_hub import HfApi

    about = HfApi().model_info(hub_id, revision=revision, timeout=ANSWER_SECONDS)
    listed = [entry.rfilename for entry in about.siblings or []]
    weights = [name for name in listed if WEIGHT_FILES.match(name)]
    if not weights:
        raise ModelError(
            "has no safetensors weights (pickles can run code when opened, so they are refused)",
            hub_id,
            f"take a copy with model.safetensors, or: hf download {hub_id} --local-dir FOLDER, then neuroada "
            "convert FOLDER",
        )
    small = [name for name in listed if SMALL_FILES.match(name)]
    code = [name for name in listed if trust_remote_code and name.endswith(".py") and "/" not in name]
    return weights + small + code
