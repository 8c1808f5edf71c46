"""A folder's tokenizer by the class that transformers chose for it before.

AutoTokenizer reads the model's config through that model's own classes, which bring in torch's compiler and
its distribution: seconds of processor time to learn the name of one class. Once it is known, that class reads
the folder at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuroada_cli.files import read_json
from neuroada_cli.hub.known import known

BYTES = '"ByteLevel"'  # in a tokenizer.json, of texts that are read byte by byte
# The files that a tokenizer may be made from.
KINDS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe")
# Of a model or an adapter, but not of its tokenizer; config.json is read by its keys.
OTHERS = {"config.json", "adapter_config.json", "generation_config.json", "manifest.json"}
# What a merge changes in a config, so that the merged model's tokenizer is known from its base's.
APART = {
    "dtype", "torch_dtype", "architectures", "transformers_version", "quantization_config",
    "id2label", "label2id", "problem_type",
}  # fmt: skip
LARGEST = 100 << 20  # bytes of such a file; what is larger holds something else


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """What AutoTokenizer makes of the folder, but for bytes (see `_as_stored`); raises whatever it raises."""

    def ask() -> Any:
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        return _as_stored(made, folder)

    if brings_code(folder):
        return ask()
    about = _config(folder)
    return known("tokenizers", _told_by(folder), about, ask, lambda made: _record(made, folder), _by(folder))


def _by(folder: Path) -> Any:
    def read(record: Any) -> Any:
        import transformers

        return getattr(transformers, record["class"]).from_pretrained(folder, local_files_only=True)

    return read


def without_calls(tokenizer: Any) -> Any:
    """The tokenizer without what its last call left in it.

    A call with `truncation` or `padding` stays set in the library's tokenizer, and in the tokenizer.json that
    is saved afterwards: readers without transformers, which sets both anew in each call, would cut all texts.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def _record(made: Any, folder: Path) -> dict[str, str] | None:
    """The class, where it alone gives the same tokenizer; None where AutoTokenizer does more than that."""
    record = {"class": type(made).__name__}
    try:
        again = _by(folder)(record)
    except Exception:  # a class that needs more than the folder says: what it raises is its own affair
        return None
    return record if type(again) is type(made) and _content(again) == _content(made) else None


def _content(tokenizer: Any) -> tuple[Any, ...]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    apart = ("name_or_path", "tokenizer_object")  # where it lies, and what is compared as text
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in apart}
    return (
        None if backend is None else backend.to_str(),
        tokenizer.get_vocab(),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
        repr(sorted(settings.items(), key=lambda item: item[0])),
    )


def is_code(folder: Path) -> bool:
    """Whether a folder says that its tokenizer is made by Python code beside it."""
    return "auto_map" in _object(folder / "tokenizer_config.json")


def brings_code(folder: Path) -> bool:
    """Whether a model's folder asks for Python code of its own: what that does is known to nobody."""
    return any("auto_map" in _object(folder / name) for name in ("config.json", "tokenizer_config.json"))


def _config(folder: Path) -> dict[str, Any]:
    """What the choice may depend on in the model's config."""
    return {key: value for key, value in _object(folder / "config.json").items() if key not in APART}


def _object(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none, or another value, which transformers explains."""
    found = read_json(file) if file.is_file() else None
    return found if isinstance(found, dict) else {}


def read_for(folder: Path) -> list[Path]:
    """The files that loading a folder's tokenizer, its end tokens settled, may depend on."""
    return [folder / "config.json", folder / "generation_config.json", *_told_by(folder)]


def _told_by(folder: Path) -> list[Path]:
    """The files that the choice may depend on: one that is added or changed asks anew."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in KINDS
        and file.name not in OTHERS
        and not file.name.endswith(".index.json")
        and file.stat().st_size <= LARGEST
    )


def _as_stored(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer that reads bytes where tokenizer.json says so.

    Up to transformers 5.21 a folder that names LlamaTokenizer gets one that splits at spaces and loses them,
    whatever its tokenizer.json holds; later versions do as is done here.
    """
    file, made = folder / "tokenizer.json", getattr(tokenizer, "backend_tokenizer", None)
    if made is None or not file.is_file() or BYTES in made.to_str():
        return tokenizer
    if BYTES not in file.read_text(encoding="utf-8"):
        return tokenizer
    from transformers import TokenizersBackend

    return TokenizersBackend.from_pretrained(folder, local_files_only=True)
