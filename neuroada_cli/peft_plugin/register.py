"""The name NEUROADA among PEFT's types, and the classes behind it."""

from __future__ import annotations

from typing import Any

import peft
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from neuroada_cli.errors import ResourceError

NAME = "NEUROADA"
TESTED = (0, 21)  # PEFT's tuner interface is not public: another minor version may differ in anything


def register() -> None:
    """Once per process, however often it is called. Raises ResourceError for another version of PEFT."""
    _check_version()
    _add_type()
    if PeftType[NAME] in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    from neuroada_cli.peft_plugin.config import NeuroAdaConfig
    from neuroada_cli.peft_plugin.tuner import NeuroAdaModel

    register_peft_method(name=NAME.lower(), config_cls=NeuroAdaConfig, model_cls=NeuroAdaModel)


def _check_version() -> None:
    found = tuple(int(part) for part in peft.__version__.split(".")[:2])
    if found != TESTED:
        wanted = ".".join(map(str, TESTED))
        raise ResourceError(
            f"works with peft {wanted}, and {peft.__version__} is installed",
            "neuroada_cli.peft_plugin",
            f"pip install 'peft=={wanted}.*'",
        )


def _add_type() -> None:
    """A member of the enum, which `register_peft_method` asks for; enums have no public way to get one."""
    members: Any = PeftType
    if NAME in members.__members__:
        return
    member = str.__new__(PeftType, NAME)
    member._name_, member._value_ = NAME, NAME
    member._sort_order_ = len(members._member_names_)
    members._member_names_.append(NAME)
    members._member_map_[NAME] = member
    members._value2member_map_[NAME] = member
