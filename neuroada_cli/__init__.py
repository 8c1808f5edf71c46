"""NeuroAda as a command-line tool: a few trainable weights per neuron, merged into a plain checkpoint.

    import neuroada_cli as neuroada

The names of `__all__` are the Python interface; each verb is the function that its command calls. They are
imported when they are first used, so that `import neuroada_cli` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, whose import takes longer than a signal may wait (`stopping`)
if TYPE_CHECKING:
    from typing import Any

    from neuroada_cli.adapter.load import Adapted
    from neuroada_cli.adapter.load import load as attach
    from neuroada_cli.commands.eval import run as evaluate
    from neuroada_cli.commands.merge import MergeResult
    from neuroada_cli.commands.merge import run as merge
    from neuroada_cli.commands.select import run as select
    from neuroada_cli.commands.train import run as train
    from neuroada_cli.errors import UserError
    from neuroada_cli.evaluation.results import EvalResult
    from neuroada_cli.recipe.load import load_recipe, recipe_from
    from neuroada_cli.recipe.schema import Recipe
    from neuroada_cli.training.fit import TrainResult

__version__ = "0.1.0"
__all__ = [
    "Adapted",
    "EvalResult",
    "MergeResult",
    "Recipe",
    "TrainResult",
    "UserError",
    "__version__",
    "attach",
    "evaluate",
    "load_recipe",
    "merge",
    "recipe_from",
    "select",
    "train",
]

_HOMES = {
    "Adapted": "adapter.load:Adapted",
    "EvalResult": "evaluation.results:EvalResult",
    "MergeResult": "commands.merge:MergeResult",
    "Recipe": "recipe.schema:Recipe",
    "TrainResult": "training.fit:TrainResult",
    "UserError": "errors:UserError",
    "attach": "adapter.load:load",
    "evaluate": "commands.eval:run",
    "load_recipe": "recipe.load:load_recipe",
    "merge": "commands.merge:run",
    "recipe_from": "recipe.load:recipe_from",
    "select": "commands.select:run",
    "train": "commands.train:run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
