"""The hub and back: a folder's files as one commit, and an adapter by its id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from neuroada_cli.errors import ModelError, ResourceError
from neuroada_cli.files.folders import ADAPTER_CONFIG
from neuroada_cli.hub.resolve import ANSWER_SECONDS, SMALL_FILES, ask_hub, is_hub_id
from neuroada_cli.machine.network import hub_answers

# what is read of an adapter folder, beside the small files that any model folder has
OF_ADAPTERS = re.compile(r"^(adapter_model\.safetensors|recipe\.yaml|[\w.-]+\.(spm|tiktoken))$")
TEMPLATES = re.compile(r"^additional_chat_templates/[\w.-]+$")


def adapter_of_hub(hub_id: str, revision: str | None = None) -> Path | None:
    """The local snapshot of an adapter on the hub; None for a name that is no id, and for an id of a model.

    Raises ModelError and ResourceError as `resolve_model` does, where the hub answers and says so.
    """
    if not is_hub_id(hub_id):
        return None
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

    def cached() -> Path | None:
        found = try_to_load_from_cache(hub_id, ADAPTER_CONFIG, revision=revision)
        return Path(found).parent if isinstance(found, str) else None

    def download() -> Path | None:
        about = HfApi().model_info(hub_id, revision=revision, timeout=ANSWER_SECONDS)
        listed = [entry.rfilename for entry in about.siblings or []]
        if ADAPTER_CONFIG not in listed:
            return None
        wanted = [
            name
            for name in listed
            if any(known.match(name) for known in (SMALL_FILES, OF_ADAPTERS, TEMPLATES))
        ]
        place = snapshot_download(hub_id, revision=revision, allow_patterns=wanted)
        return Path(place)

    if constants.HF_HUB_OFFLINE or not hub_answers(constants.ENDPOINT):
        return cached()  # what is not there is told by whoever opens it
    return ask_hub(hub_id, download, f"{constants.ENDPOINT} did not answer")


def upload(
    hub_id: str,
    contents: Mapping[str, Path | bytes],
    message: str,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Put files into a model repository as one commit, making the repository where it is missing.

    contents  name there -> file here, or its bytes
    private   of a new repository; None: as its owner's account has it
    revision  a branch, made where it is missing; None: main
    Returns the address of the commit. Raises ModelError for an id, a key or a right that does not do,
    ResourceError for a hub that does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

    if not is_hub_id(hub_id):
        raise ModelError("is no hub id", hub_id, "write OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise ResourceError("HF_HUB_OFFLINE is set", hub_id, "unset it to push")
    if not hub_answers(constants.ENDPOINT):
        raise ResourceError(f"{constants.ENDPOINT} cannot be reached", hub_id, "try again")
    api = HfApi()
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in contents.items()
    ]
    try:
        api.create_repo(hub_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(hub_id, branch=revision, exist_ok=True)
        done = api.create_commit(hub_id, operations, commit_message=message, revision=revision)
    except (errors.LocalTokenNotFoundError, errors.HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            raise ModelError(
                "may not be written to with the key of this machine",
                hub_id,
                "`hf auth login` with a key that may write there",
            ) from None
        raise ModelError(f"the hub refused: {error}", hub_id, "try again") from None
    except errors.HTTPError as error:
        raise ResourceError(f"the hub failed: {error}", hub_id, "try again") from None
    return str(done.commit_url)
