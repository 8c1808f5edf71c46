"""What of a model's folder goes along with its weights: whatever transformers reads to load its tokenizer,
processors and code, asked of transformers; the other data files at its top level; and its licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neuroada_cli.errors import ModelError, ResourceError, UserError
from neuroada_cli.files import strict_json
from neuroada_cli.files.shards import INDEX
from neuroada_cli.hub.known import known
from neuroada_cli.hub.loading import load_tokenizer
from neuroada_cli.hub.resolve import MAX_CONFIG_BYTES
from neuroada_cli.hub.tokenizer_class import brings_code, read_for
from neuroada_cli.hub.weights import ANY_WEIGHTS, open_weights

CONFIGS = re.compile(r"(\w+_)?config\.json|processor_config\.json")
WRITTEN = {"config.json", "recipe.yaml", "manifest.json", "README.md"}  # by whoever writes the folder
DATA = re.compile(  # Mistral's own library writes versions behind: tokenizer.model.v3
    r".+\.(json|txt|model|jinja|tiktoken|spm|codes|bpe|vocab|tokenizer)|tokenizer\.model\.v[\w.]+"
)
MODULES = "modules.json"
LICENCES = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)[\w.-]*")
# of a training, of other tools, or written anew beside the weights
NOT_DATA = re.compile(
    r"config\.json|README\.md|.+\.index\.json|adapter_.*|trainer_state\.json|.*results\.json|manifest\.json"
    r"|merge_report\.json|training_args\..*|optimizer\..*|\..*"
)


@dataclass(frozen=True)
class LookedFor:
    """What transformers looks for in a model's folder.

    names      of files, those that the class of its tokenizer is made of among them
    templates  the name of the folder of further chat templates
    reads      whether there is a tokenizer that can be loaded
    """

    names: frozenset[str]
    templates: str
    reads: bool


def looked_for(folder: Path, trust_remote_code: bool = False) -> LookedFor:
    """Asked of transformers, and of what it makes of the folder's tokenizer; or known from before."""

    def ask() -> LookedFor:
        tokenizer = loadable_tokenizer(folder, trust_remote_code)
        return LookedFor(frozenset(_known(tokenizer)), _template_folder(), tokenizer is not None)

    try:
        alone = brings_code(folder)
    except UserError:  # a config that cannot be read: there is no tokenizer then
        alone = True
    if alone:
        return ask()
    return known("companions", read_for(folder), None, ask, _as_record, _as_looked_for)


def loadable_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """None: the folder has none that can be loaded."""
    try:
        return load_tokenizer(folder, trust_remote_code)
    except (ModelError, ResourceError):
        return None


def _as_record(found: LookedFor) -> dict[str, Any]:
    return {"names": sorted(found.names), "templates": found.templates, "reads": found.reads}


def _as_looked_for(record: Any) -> LookedFor:
    return LookedFor(frozenset(map(str, record["names"])), str(record["templates"]), bool(record["reads"]))


def companions(folder: Path, sought: LookedFor) -> tuple[list[str], list[str]]:
    """(the files that go along, what stays behind: other files and folders), as names relative to the folder.

    sought  `looked_for` in it
    """
    # transformers looks for an adapter's config, too, and would load its base in place of these weights
    wanted = {name for name in sought.names if not NOT_DATA.fullmatch(name)} | _named(folder)
    for file in folder.iterdir():
        data = DATA.fullmatch(file.name) and not NOT_DATA.fullmatch(file.name)
        if (data and not ANY_WEIGHTS.fullmatch(file.name)) or LICENCES.fullmatch(file.name):
            wanted.add(file.name)
    templates = folder / sought.templates
    if templates.is_dir():
        wanted |= {f"{templates.name}/{file.name}" for file in templates.iterdir()}
    modules = _module_files(folder)
    if all(_is_inside(folder, name) for name in modules):
        wanted |= modules
    else:  # some hold weights, which belong to the base: a list of them would lead nowhere
        wanted.discard(MODULES)
    wanted -= WRITTEN
    carried = sorted(name for name in wanted if _is_inside(folder, name))
    beside = {PurePosixPath(name).parts[0] for name in carried} | WRITTEN | _weight_files(folder)
    there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    left = [name for name in there if name not in beside]
    return carried, left


def _module_files(folder: Path) -> set[str]:
    """The files of the folders that sentence-transformers' list of modules names."""
    listed = _read(folder / MODULES)
    places = (
        [each.get("path") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    )
    found: set[str] = set()
    for place in places:
        if isinstance(place, str) and re.fullmatch(r"[\w-]+", place) and (folder / place).is_dir():
            found |= {f"{place}/{file.name}" for file in (folder / place).iterdir()}
    return found


def _weight_files(folder: Path) -> set[str]:
    """The files whose place the merged weights take."""
    try:
        return {file.name for file in open_weights(folder).files} | {INDEX}
    except ModelError:
        return set()


def _known(tokenizer: Any) -> set[str]:
    """Names that transformers looks for: its constants, and the files of the tokenizer's class."""
    import transformers.utils as names
    from transformers import tokenization_utils_base as of_tokenizers

    found = {
        value
        for module in (names, of_tokenizers)
        for name, value in vars(module).items()
        if name.endswith(("_NAME", "_FILE")) and isinstance(value, str) and "WEIGHTS" not in name
    }
    for each in type(tokenizer).__mro__:
        files = getattr(each, "vocab_files_names", None)
        found |= set(files.values()) if isinstance(files, dict) else set()
    return found


def _template_folder() -> str:
    from transformers.utils import CHAT_TEMPLATE_DIR

    return str(CHAT_TEMPLATE_DIR)


def _named(folder: Path) -> set[str]:
    """Files that the folder's configs name, code with all that it imports from beside it."""
    found: set[str] = set()
    for file in folder.iterdir():
        if not CONFIGS.fullmatch(file.name) or not file.is_file():
            continue
        for text in _texts(_read(file)):
            if _is_inside(folder, text):
                found.add(text)
            module = f"{text.rpartition('--')[2].split('.')[0]}.py"
            if "." in text and (folder / module).is_file() and _is_inside(folder, module):
                from transformers.dynamic_module_utils import get_relative_import_files

                others = get_relative_import_files(str(folder / module))
                found |= {module, *(Path(other).name for other in others)}
    return found


def _read(file: Path) -> Any:
    try:
        return strict_json.parse(file.read_bytes()) if file.stat().st_size <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError):
        return None  # what loads it says what is wrong with it


def _texts(value: Any) -> Iterator[str]:
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    elif isinstance(value, str):
        yield value
    for each in inner:
        yield from _texts(each)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name is that of a file below the folder, in at most one folder of it, and of no weights."""
    path = PurePosixPath(name)
    if not name or len(name) > 200 or path.is_absolute() or ".." in path.parts or len(path.parts) > 2:
        return False
    try:
        return (folder / path).is_file() and not ANY_WEIGHTS.fullmatch(path.name)
    except (OSError, ValueError):
        return False
