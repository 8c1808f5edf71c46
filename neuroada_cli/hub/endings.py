"""Which tokens end a text: the tokenizer's end token beside those that the model's configs name.

A model stops where its configs say, so what is learnt as an end has to be one of theirs. Tokenizer and
configs come from different hands, and differ in more folders than one would think: an empty or unknown end
token in early LLaMA copies, a chat model's turn end in one of them only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuroada_cli.errors import ModelError, unreadable
from neuroada_cli.files import strict_json
from neuroada_cli.files.folders import CONFIG
from neuroada_cli.hub.resolve import MAX_CONFIG_BYTES, read_config

LONGEST = 40  # characters of what is no number that are shown
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Endings:
    """ids      tokens at which a model stops: the tokenizer's own and those that the configs name
    remark   what is to be said of them before training; None: tokenizer and configs agree
    problem  why no text can be ended; None: it can
    """

    ids: frozenset[int]
    remark: str | None = None
    problem: str | None = None


def endings(tokenizer: Any) -> Endings:
    """What `settle` found; of a tokenizer that came from no model folder, its own end token."""
    known = getattr(tokenizer, "endings", None)
    if isinstance(known, Endings):
        return known
    own = tokenizer.eos_token_id
    return Endings(frozenset() if own is None else frozenset({int(own)}))


def settle(tokenizer: Any, folder: Path) -> None:
    """Compare the tokenizer's end token with those that the folder's configs name, and keep what was found.

    A tokenizer whose end token is none of its tokens, or none of those named, gets the first of these
    instead: generation would not stop at any other. Raises ModelError for configs that cannot be read.
    """
    listed = _listed_ends(folder)
    named = {file: numbers for file, values in listed.items() if (numbers := _numbers(values))}
    found = _settled(tokenizer, named)
    if odd := {file: others for file, values in listed.items() if (others := _no_numbers(values))}:
        said = " and ".join(f"{file} names {', '.join(map(repr, values))}" for file, values in odd.items())
        said += " as eos_token_id, where a token's number belongs; that is passed over"
        found = replace(found, remark="; ".join(filter(None, (said, found.remark))))
    tokenizer.endings = found


def _settled(tokenizer: Any, named: dict[str, list[int]]) -> Endings:
    own, token = tokenizer.eos_token_id, tokenizer.eos_token
    proper = own is not None and tokenizer.convert_ids_to_tokens(own) == str(token)
    ids = [number for numbers in named.values() for number in numbers]
    if proper and (not ids or own in ids):
        return Endings(frozenset({int(own), *ids}), _of_few(named, int(own), token))
    if own is None and not ids:
        return Endings(frozenset())
    held = f"{token!r} (token {own})" if own is not None else "none"
    said = " and ".join(f"{file} names {', '.join(map(str, numbers))}" for file, numbers in named.items())
    usable = next((number for number in ids if _is_token(tokenizer, number)), None)
    if usable is None:
        others = f"{said}, {_why_none(tokenizer, set(ids))}" if ids else "and no config names another"
        why = f"the tokenizer's end token is {held}, {others}"
        return Endings(frozenset(ids), problem=why)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(usable)
    remark = (
        f"the tokenizer's end token is {held}, but {said}: answers end in {tokenizer.eos_token!r} "
        f"({usable}), where the model stops"
    )
    return Endings(frozenset({usable, *ids}), remark)


def _why_none(tokenizer: Any, ids: set[int]) -> str:
    """Of numbers that are all no usable token."""
    unknown = tokenizer.unk_token_id
    if unknown not in ids:
        return "which the tokenizer has not"
    return "its unknown token" if len(ids) == 1 else f"of which it has {unknown} alone, its unknown token"


def _of_few(named: dict[str, list[int]], own: int, token: str) -> str | None:
    """What is to be said where only one of the configs names the tokenizer's end token."""
    other = next((file for file, numbers in named.items() if own not in numbers), None)
    if other is None:
        return None
    return (
        f"the tokenizer's end token is {token!r} (token {own}), but {other} names "
        f"{', '.join(map(str, named[other]))}: answers end in {token!r}, and what reads {other} alone does "
        "not stop there"
    )


def _listed_ends(folder: Path) -> dict[str, list[Any]]:
    """File -> what it names as end tokens; generation's first, since that is where a model stops."""
    found = {}
    generation = folder / GENERATION
    if generation.is_file():
        found[GENERATION] = _listed(_read(generation))
    if (folder / CONFIG).is_file():
        config = read_config(folder)
        inner = config.get("text_config")
        found[CONFIG] = _listed(config) or _listed(inner if isinstance(inner, dict) else {})
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError("is too large for a config", str(file))
        found = strict_json.parse(file.read_bytes())
    except OSError as error:
        raise unreadable(error, file) from None
    except ValueError as error:
        raise ModelError(f"not valid JSON: {error}", str(file)) from None
    return found if isinstance(found, dict) else {}


def _listed(config: dict[str, Any]) -> list[Any]:
    """eos_token_id: one number, a list of them, or nothing; others write the token's text there."""
    named = config.get("eos_token_id")
    return [value for value in (named if isinstance(named, list) else [named]) if value is not None]


def _numbers(values: list[Any]) -> list[int]:
    return [value for value in values if type(value) is int]


def _no_numbers(values: list[Any]) -> list[str]:
    return [str(value)[:LONGEST] for value in values if type(value) is not int]


def _is_token(tokenizer: Any, number: int) -> bool:
    """Whether the vocabulary holds a token of that number that is not the unknown one."""
    if not 0 <= number < len(tokenizer) or number == tokenizer.unk_token_id:
        return False
    token = tokenizer.convert_ids_to_tokens(number)
    return isinstance(token, str) and bool(token)
