"""What all sections of a recipe, and of a suite, have in common."""

from __future__ import annotations

import unicodedata
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A frozen group of settings; a key it does not have is an error, and so are numbers that are not finite
    and text with control characters (a NUL ends a path, an escape moves the cursor).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _shown_as_it_is(cls, value: Any, info: ValidationInfo) -> Any:
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        texts = [part for part in (parts if isinstance(parts, list) else [parts]) if isinstance(part, str)]
        allowed = "\n\t" if info.field_name == "description" else ""
        if any(unicodedata.category(c) in ("Cc", "Cs") and c not in allowed for text in texts for c in text):
            raise ValueError(f"{info.field_name} holds a control character; remove it")
        return value
