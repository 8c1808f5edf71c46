"""Where each setting of a recipe comes from: its file with the line, or an option; else defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from neuroada_cli.recipe import strict_yaml
from neuroada_cli.recipe.keys import all_keys
from neuroada_cli.recipe.load import find_recipe, read_override

Origins = dict[str, str]


def origins(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), options: Mapping[str, object] | None = None
) -> Origins:
    """Key -> "my.yaml:7" or "--set", for the keys that are given. Of lists and mappings the whole counts.

    overrides  as `load_recipe` takes them;  options  key -> value of options that set it (None: not given)
    Raises RecipeError for what `load_recipe` refuses, too.
    """
    where = str(path)
    _, lines = strict_yaml.parse(strict_yaml.read(find_recipe(path), where), where)
    set_by = [read_override(override)[0] for override in overrides]
    found = {}
    for key in all_keys():
        parts = tuple(key.split("."))
        if parts in lines:
            found[key] = f"{where}:{lines[parts]}"
        if any(name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in set_by):
            found[key] = "command line"
    return found | {key: "command line" for key, value in (options or {}).items() if value is not None}
