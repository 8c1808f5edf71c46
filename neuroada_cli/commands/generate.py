"""`neuroada generate` and `neuroada chat`: a model is asked in words, its base beside it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from neuroada_cli import hub, stopping
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.beside import Loading, Side, sides
from neuroada_cli.data.inputs import prompts_for
from neuroada_cli.errors import DataError, ModelError, RecipeError
from neuroada_cli.evaluation.spoken import Spoken
from neuroada_cli.evaluation.streaming import Answer, OnText, answer
from neuroada_cli.foreign_text import shown
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import SAME_BASE
from neuroada_cli.show.notes import say, tell
from neuroada_cli.tasks.asking import Asking, asking
from neuroada_cli.tasks.task import Decoding

HELP = "/reset forgets the talk, /system TEXT sets a system message, /quit ends"


@dataclass(frozen=True)
class Wishes:
    """What a user may say of how answers are written.

    form         the format of rows in which a question is put; None: that of the training
    temperature  None: the most likely token each time
    """

    form: str | None = None
    system: str = ""
    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0

    @property
    def decoding(self) -> Decoding:
        return Decoding(temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True)
class Asked:
    """A question's answers, by side."""

    prompt: str
    answers: dict[str, Answer]


@dataclass(frozen=True)
class Models:
    """Who answers, and how each is asked."""

    reader: hub.Reader
    sides: list[Side]
    asking: Asking


def run(
    target: str,
    prompts: Sequence[str],
    wishes: Wishes = Wishes(),
    how: Loading = Loading(),  # noqa: B008
    compare: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> list[Asked]:
    """Ask `target` (base, adapter, run or merged folder, hub id, or a recipe: its base) each of the prompts.

    compare  ask its base as well
    as_json  print an object a prompt instead of text
    Answers go to stdout, all else to stderr. Raises UserErrors before the model loads where possible.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise DataError("nothing to ask", fix="write the prompt behind the model, or pipe it in")
    console = Console(quiet=quiet or as_json)
    models = _load(target, wishes, how, compare, quiet)
    found = []
    for prompt in prompts:
        if len(prompts) > 1:
            say(console, f"[bold]{shown(prompt)}[/]")
        asked = Asked(prompt, _ask(models, wishes, {}, prompt, console))
        found.append(asked)
        if as_json and not quiet:
            told = {name: each.text for name, each in asked.answers.items()}
            print(json.dumps({"prompt": prompt, **told}, ensure_ascii=False), flush=True)
        _tell_cut(asked, wishes, quiet)
    return found


def chat(
    target: str,
    read: Callable[[], str],
    wishes: Wishes = Wishes(),
    how: Loading = Loading(),  # noqa: B008
    compare: bool = False,
    quiet: bool = False,
) -> list[Asked]:
    """Talk with `target`, each side in a conversation of its own, until `read` raises EOFError or says /quit.

    read  gives the next line that the user writes
    """
    console, talk = Console(quiet=quiet), list[Asked]()
    models = _load(target, wishes, how, compare, quiet)
    console.print(HELP, style="dim", highlight=False)
    if not models.asking.turns:
        console.print(
            f"asked {models.asking.how}: each question stands by itself", style="dim", highlight=False
        )
    before: dict[str, list[tuple[str, str]]] = {}
    while True:
        try:
            line = read().strip()
        except EOFError:
            return talk
        if line in ("/quit", "/exit", "/bye"):
            return talk
        if line == "/reset":
            before = {}
        elif line.partition(" ")[0] == "/system":
            wishes, before = replace(wishes, system=line.removeprefix("/system").strip()), {}
        elif line.startswith("/"):
            console.print(f"no such command; {HELP}", style="dim", highlight=False)
        elif line:
            try:
                asked = Asked(line, _ask(models, wishes, before, line, console))
            except DataError as error:  # the talk is longer than the model takes
                tell([f"{error.line()}; /reset begins anew"], quiet)
                continue
            talk.append(asked)
            _tell_cut(asked, wishes, quiet)
            for name, each in asked.answers.items():
                before.setdefault(name, []).append((line, each.text))


def _load(target: str, wishes: Wishes, how: Loading, compare: bool, quiet: bool) -> Models:
    recipe: Recipe | None = None
    if target.endswith((".yaml", ".yml")):
        recipe = load_recipe(target)
        tell(
            [f"{target} means its base, {recipe.model.path}; to ask what it trained, name {recipe.run_path}"],
            quiet,
        )
        target = recipe.model.path
    found = adapted.find_target(target)
    trained = adapted.recipe_of(found)
    if recipe is not None and compare:
        raise RecipeError("means its base, which has none beside it", "--compare", "name its run folder")
    source = recipe or trained
    model = source.model if source is not None else None
    how = replace(
        how,
        device=hub.choose_device(how.device or (source.device if source else None)),
        revision=model.revision if model else None,
        attention=model.attention if model else None,
        trust_remote_code=how.trust_remote_code or bool(recipe and recipe.model.trust_remote_code),
    )
    reader = adapted.reader_of(found, hub.Work(), how.revision, how.trust_remote_code, how.base)
    # what was trained brings its chat template with its tokenizer; a stranger's recipe opens no file
    own = source
    if trained is not None:
        own = trained.model_copy(update={"data": trained.data.model_copy(update={"chat_template": None})})
    way = asking(own, reader.tokenizer, wishes.form)
    if compare and found.adapter is None and trained is None and how.base is None:
        raise ModelError("has no base that is known", target, "name it with --base, or leave --compare out")
    with Console(stderr=True, quiet=quiet).status("loading the model"):
        loaded, models = sides(found, trained, how, compare)
    tell(hub.ignored_of_model(loaded.folder, how.trust_remote_code, loaded.model), quiet)
    tell(hub.ignored_of_tokenizer(reader.tokenizer, how.trust_remote_code), quiet)
    if remark := hub.endings(reader.tokenizer).remark:
        tell([remark], quiet)
    aside = Console(stderr=True, quiet=quiet)
    if loaded.adapter is not None:
        say(aside, SAME_BASE, style="dim")
    say(aside, f"asked {way.how}", style="dim", markup=False)
    return Models(reader, models, way)


def _ask(
    models: Models,
    wishes: Wishes,
    before: dict[str, list[tuple[str, str]]],
    question: str,
    console: Console,
) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    with _stoppable() as stop, Spoken(console, [side.name for side in models.sides]) as spoken:
        for side in models.sides:
            if not stop():
                turns = before.get(side.name, [])
                found[side.name] = _answer(
                    models, side, wishes, turns, question, partial(spoken.piece, side.name), stop
                )
    for side in models.sides:
        side.loaded.refuse_written_to()
    return found


def _answer(
    models: Models,
    side: Side,
    wishes: Wishes,
    before: Sequence[tuple[str, str]],
    question: str,
    on_text: OnText,
    stop: Callable[[], bool],
) -> Answer:
    try:
        example = models.asking.example(question, before, wishes.system)
    except ValueError as error:  # a chat template that takes no system message, say
        raise DataError(str(error), fix="leave --system out, or choose another --format") from None
    ids = prompts_for(models.reader, [example])[0].input_ids
    with side.on():
        return answer(
            side.model, models.reader.tokenizer, ids, wishes.max_new_tokens, on_text, wishes.decoding,
            wishes.seed, stop, models.asking.end,
        )  # fmt: skip


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C ends the answer that is being written; any other signal ends the command behind it."""
    with stopping.Noted() as noted:
        yield lambda: noted.requested is not None
    if noted.requested not in (None, signal.SIGINT):
        stopping.exit_signalled(int(noted.requested or 0))


def _tell_cut(asked: Asked, wishes: Wishes, quiet: bool) -> None:
    cut = [name for name, each in asked.answers.items() if not each.ended]
    if cut:
        whose = f" ({', '.join(cut)})" if len(asked.answers) > 1 else ""
        say(
            Console(stderr=True, quiet=quiet),
            f"not ended by the model{whose}: cut after "
            f"{max(asked.answers[name].tokens for name in cut)} tokens; --max-new-tokens gives it more",
            style="dim",
        )
