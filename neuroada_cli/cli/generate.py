"""`neuroada generate` and `neuroada chat` on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroada_cli.cli.options import BaseOption, DeviceOption, Dtype, TrustOption, look_at_base, look_at_model
from neuroada_cli.errors import RecipeError
from neuroada_cli.machine import kernels

if TYPE_CHECKING:
    from neuroada_cli.adapter.beside import Loading
    from neuroada_cli.commands.generate import Wishes

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A run, adapter, merged or model folder, or a hub id.")
]
Compare = Annotated[bool, typer.Option("--compare", help="The base answers, too, beside what was tuned.")]
Form = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="How questions are put: chat, alpaca, prompt-completion, text; default: as trained.",
    ),
]
System = Annotated[str, typer.Option("--system", help="What stands before all questions.")]
New = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of one answer.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0.01, help="Draw tokens; default: the most likely one.")
]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.01, max=1.0, help="With a temperature: of the likeliest, so much.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of what a temperature draws; default: 0.")]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Load the weights as this.")]


def generate(
    target: Target,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to ask; without one: stdin.")
    ] = None,
    compare: Compare = False,
    form: Form = None,
    system: System = "",
    max_new_tokens: New = 256,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    seed: Seed = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object a prompt, for programs.")] = False,
    base: BaseOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Ask a model in words; the answer is shown while it is written. Prompts are put as in training.

    \b
    neuroada generate runs/mine "Name three rivers."
    neuroada generate runs/mine --compare "Name three rivers."
    neuroada generate smollm2-135m < question.txt
    """
    look_at_model(target)
    look_at_base(target, base)
    wishes = _wishes(form, system, max_new_tokens, temperature, top_p, seed)
    asked = prompts or _piped()
    from neuroada_cli.commands import generate as command

    how = _loading(base, device, dtype, trust_remote_code)
    command.run(_target(target), asked, wishes, how, compare, as_json)


def chat(
    target: Target,
    compare: Compare = False,
    form: Form = None,
    system: System = "",
    max_new_tokens: New = 256,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    seed: Seed = None,
    base: BaseOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the talk.

    \b
    neuroada chat runs/mine
    neuroada chat runs/mine --compare --temperature 0.7
    """
    look_at_model(target)
    look_at_base(target, base)
    wishes = _wishes(form, system, max_new_tokens, temperature, top_p, seed)
    from neuroada_cli.commands import generate as command

    how = _loading(base, device, dtype, trust_remote_code)
    command.chat(_target(target), _read, wishes, how, compare)


def _wishes(
    form: str | None, system: str, new: int, temperature: float | None, top_p: float, seed: int | None
) -> Wishes:
    for option, given in (("--top-p", top_p < 1), ("--seed", seed is not None)):
        if given and temperature is None:
            raise RecipeError("draws nothing without a temperature", option, "add --temperature 0.7")
    from neuroada_cli.commands.generate import Wishes
    from neuroada_cli.tasks.asking import FORMS

    if form is not None and form not in FORMS:
        raise RecipeError(f"{form} is no format of rows", "--format", f"choose {', '.join(FORMS)}")
    return Wishes(form, system, new, temperature, top_p, seed or 0)


def _loading(base: str | None, device: str | None, dtype: str | None, trusted: bool) -> Loading:
    if trusted:
        kernels.let_in()
    from neuroada_cli.adapter.beside import Loading

    return Loading(dtype, device, base, trust_remote_code=trusted)


def _target(name: str) -> str:
    """A bundled recipe by its name stands for its file."""
    from neuroada_cli.recipe.load import bundled_recipes

    return str(bundled_recipes().get(name, name)) if not Path(name).exists() else name


def _piped() -> list[str]:
    """All of stdin, as one prompt; nothing from a keyboard."""
    return [sys.stdin.read().strip("\n")] if not sys.stdin.isatty() else []


def _read() -> str:
    """The next line; from a keyboard with a mark, and with the editing that `readline` brings."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    return input("\n> ")
