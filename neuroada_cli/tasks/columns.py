"""Which columns of a row of one's own mean what: our names, names that others give them, or a recipe's."""

from __future__ import annotations

from neuroada_cli.data.reading import Row
from neuroada_cli.errors import DataError
from neuroada_cli.tasks.conversation import is_chat
from neuroada_cli.tasks.notes import Notes

ASKED = ("instruction", "question", "query", "problem")
ANSWERED = ("output", "response", "answer", "completion", "solution")
CONTEXT = ("input", "context")


def recognise(row: Row, source: str, notes: Notes | None = None) -> tuple[str, dict[str, str]]:
    """(the format of rows like this one, our names -> theirs where they differ).

    Other names are taken only where there is one way to read them. Raises DataError naming the columns.
    """
    if is_chat(row):
        return "chat", {}
    if "prompt" in row and "completion" in row:
        return "prompt-completion", {}
    if "instruction" in row and "output" in row:
        return "alpaca", {}
    asked = [name for name in ASKED if name in row]
    answered = [name for name in ANSWERED if name in row]
    context = [name for name in CONTEXT if name in row]
    if "prompt" in row and not asked:
        form, names, asked = "prompt-completion", ("prompt", "completion"), ["prompt"]
    else:
        form, names = "alpaca", ("instruction", "output")
        if not asked and context == ["input"]:
            asked, context = ["input"], []
    if len(asked) == len(answered) == 1 and len(context) <= 1:
        columns = dict(zip(names, (asked[0], answered[0]), strict=True))
        if form == "alpaca" and context:
            columns["input"] = context[0]
        other = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
        if notes is not None and other:
            notes.read_as(other)
        return form, other
    if not asked and "prompt" not in row and "text" in row:
        return "text", {}
    raise DataError(
        "the first row has none of: messages, prompt and completion, instruction and output, or text (its "
        f"columns are {', '.join(key[:40] for key in row) or 'none'})",
        source,
        "set data.format, or say which is which: data.columns: {prompt: question, completion: answer}",
    )
