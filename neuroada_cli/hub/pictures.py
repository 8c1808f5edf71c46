"""What a model's folder says of how pictures become its inputs, loaded through transformers.

Where torchvision is missing, transformers' image processors that work with Pillow do the same. Its processors
for pictures and texts also ask for one of videos, which only torchvision can make; no video comes here, so
they are put together without it.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import ModelError, ResourceError, UserError
from neuroada_cli.hub.loading import _first_line, _silent_transformers

MISSING = re.compile(r"Missing optional dependencies: ([\w, -]+\w)")  # as transformers says it
CONFIGS = ("preprocessor_config.json", "processor_config.json")


def load_image_processor(folder: Path, trust_remote_code: bool = False) -> Any:
    """The folder's image processor.

    Raises ModelError where there is none, ResourceError for a package that it needs.
    """
    # not from transformers itself: up to 5.17 that name asks for torchvision, whichever processor it is
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    if not any((folder / name).is_file() for name in CONFIGS):
        raise ModelError(
            f"has no {CONFIGS[0]}, so nobody can tell how it sees pictures", str(folder), "copy it there"
        )
    try:
        with _silent_transformers():
            return AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except UserError:
        raise
    except ImportError as error:
        raise ResourceError(
            f"the image processor needs a package: {_first_line(error)}", str(folder)
        ) from error
    except Exception as error:  # the folder's content is foreign: anything may come out of it
        if (found := MISSING.search(str(error))) is not None:
            raise ResourceError(
                f"the image processor needs a package that is not here: {found[1]}",
                str(folder),
                "install it",
            ) from error
        raise ModelError(
            f"no image processor can be loaded: {_first_line(error)}",
            str(folder),
            f"copy its {CONFIGS[0]} there",
        ) from error


def load_processor(folder: Path, tokenizer: Any, trust_remote_code: bool = False) -> Any:
    """The folder's processor of pictures and texts together, around a tokenizer that is loaded already, which
    gets the processor's chat template.

    Raises ModelError where there is none, ResourceError for a package that it needs.
    """
    from transformers import AutoProcessor

    try:
        with _silent_transformers():
            if find_spec("torchvision") is None:
                processor = _without_videos(folder, tokenizer)
            else:
                processor = AutoProcessor.from_pretrained(
                    folder, tokenizer=tokenizer, local_files_only=True, trust_remote_code=trust_remote_code
                )
            tokenizer.chat_template = processor.chat_template or tokenizer.chat_template
            return processor
    except UserError:
        raise
    except ImportError as error:
        raise ResourceError(f"the processor needs a package: {_first_line(error)}", str(folder)) from error
    except Exception as error:  # the folder's content is foreign: anything may come out of it
        raise ModelError(
            f"no processor of pictures can be loaded: {_first_line(error)}",
            str(folder),
            f"copy its {CONFIGS[1]} there",
        ) from error


def _without_videos(folder: Path, tokenizer: Any) -> Any:
    """A processor of its class from its parts, without the one for videos."""
    import transformers

    settings = _settings(folder)
    name = settings.pop("processor_class", None)
    found = getattr(transformers, str(name), None)
    if found is None:
        raise ModelError(
            f"names no processor that is known here ({name})", str(folder), f"copy its {CONFIGS[1]} there"
        )

    class Seeing(found):  # type: ignore[misc,valid-type]
        def check_argument_for_proper_class(self, argument: str, value: Any) -> Any:
            if argument != "video_processor":
                return super().check_argument_for_proper_class(argument, value)

    parts = {"image_processor": load_image_processor(folder), "tokenizer": tokenizer}
    if "video_processor" in found.get_attributes():
        parts["video_processor"] = None
    Seeing.__name__ = found.__name__  # transformers finds defaults by it
    return Seeing(**parts, **settings, chat_template=_template(folder) or tokenizer.chat_template)


def _settings(folder: Path) -> dict[str, Any]:
    """What the folder says of the processor itself; its parts have files of their own, or sections of it."""
    settings: dict[str, Any] = {}
    for name in CONFIGS:
        if (folder / name).is_file():
            found = files.read_json(folder / name)
            if not isinstance(found, dict):
                raise ModelError("is not a JSON object", str(folder / name))
            own = name == CONFIGS[1]
            settings |= found if own else {k: v for k, v in found.items() if k == "processor_class"}
    parts = (
        "image_processor",
        "video_processor",
        "tokenizer",
        "feature_extractor",
        "auto_map",
        "chat_template",
    )
    return {key: value for key, value in settings.items() if key not in parts}


def _template(folder: Path) -> str | None:
    """The processor's chat template, which lies in a file of its own."""
    file, old = folder / "chat_template.jinja", folder / "chat_template.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if old.is_file():
        return str(files.read_json(old).get("chat_template"))
    return None
