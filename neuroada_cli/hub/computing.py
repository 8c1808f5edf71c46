"""What of a config decides which function the weights compute, and where two configs differ in it.

Everything does, but names, data types of storage, versions, paths, and what only says how a model reports or
how fast it works. A key that is given and one that is left at its default are the same where the value is
the same: the installed transformers says what the default is, and which two spellings mean one thing
(rope_theta, and rope_parameters since version 5).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

# At any depth, but inside the quantisation, where data types are what is computed in. Beside them every key
# that begins with an underscore (paths, commits, what was chosen while loading).
NAMES = {
    "architectures", "auto_map", "finetuning_task", "id2label", "label2id", "model_name", "name_or_path",
    "num_labels", "prefix", "problem_type", "task_specific_params", "tokenizer_class",
}  # fmt: skip
VERSIONS = {
    "commit_hash", "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version",
}  # fmt: skip
STORAGE = {"dtype", "torch_dtype"}
REPORTING = {
    "attn_implementation", "chunk_size_feed_forward", "output_attentions", "output_hidden_states",
    "output_router_logits", "output_scores", "return_dict", "return_dict_in_generate", "torchscript",
    "use_cache",
}  # fmt: skip
LEFT_OUT = NAMES | VERSIONS | STORAGE | REPORTING
AS_IT_IS = "quantization_config"
ABSENT = "not given"
MOST = 1 << 20  # a larger count in a stranger's config is not handed to a library

Difference = tuple[str, Any, Any]


def computing(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config belongs to a fingerprint, as plain JSON (an infinite number is written as text)."""
    return {key: _plain(value, key) for key, value in config.items() if _counts(key)}


def difference(theirs: Any, ours: Mapping[str, Any], defaults: bool = True) -> Difference | None:
    """(key, ours, theirs) of the first place where two configs compute something else; None: nowhere.

    theirs    from a file of a stranger: what reaches transformers agrees with `ours` or is small
    defaults  a key that only one of them gives is compared with the other's default
    """
    if not isinstance(theirs, Mapping):
        return "config", "a mapping", theirs
    found = list(_differences(theirs, ours))
    both = [each for each in found if ABSENT not in each[1:]]
    if both or not found:
        return both[0] if both else None
    if not defaults or any(_is_huge(value) for _, _, value in found):
        return found[0]
    full = _resolved(theirs), _resolved(ours)
    if full[0] is None or full[1] is None:
        return found[0]
    return next(_differences(full[0], full[1]), None)


def _counts(key: str) -> bool:
    return key not in LEFT_OUT and not key.startswith("_")


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if key == AS_IT_IS or _counts(str(k))}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: str = "") -> Iterator[Difference]:
    for key in sorted({*theirs, *ours}):
        there, here = theirs.get(key, ABSENT), ours.get(key, ABSENT)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here, f"{path}{key}.")
        elif there != here:
            yield f"{path}{key}", here, there


def _is_huge(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_is_huge(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return len(value) > MOST or any(_is_huge(each) for each in value)
    return isinstance(value, int) and abs(value) > MOST


def _resolved(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """With every default of the installed transformers; None for what it does not take."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from neuroada_cli.hub.loading import _silent_transformers

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    try:
        with _silent_transformers():
            full = CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(config))).to_dict()
    except Exception:  # whatever a library says of a foreign config: then it is compared as it was written
        return None
    found = computing(full)
    rope = found.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        rope.pop("type", None)  # its older name, which is kept beside it
    return found
