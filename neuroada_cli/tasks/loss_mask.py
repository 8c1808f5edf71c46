"""What of a row the loss is on: decided here for training, and told from here wherever a mask is named."""

from __future__ import annotations

from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks.chat import Learn
from neuroada_cli.tasks.task import Protocol, Task

LABEL = "label"  # what the loss is on where a model gives no text
LAST = "last answer only"
BY_LEARN = {"all": "prompt and target", "assistant": "target only", "last": LAST}


def learn_of(section: DataSection | None, rules: Protocol) -> Learn:
    """What of a row of one's own is learnt: as the recipe says, else as the protocol has it."""
    if section is not None and section.learn is not None:
        return section.learn
    return "all" if rules.loss_on_prompt else "assistant"


def learns_prompt(section: DataSection | None, task: Task, rules: Protocol) -> bool:
    """Whether the tokens of a prompt are learnt, too."""
    if task.kind != "generation":
        return False
    return learn_of(section, rules) == "all" if task.name == "instruct" else rules.loss_on_prompt


def loss_mask_of(section: DataSection | None, task: Task, rules: Protocol) -> str:
    """The same in the words of result files: "target only" (of a conversation every turn of the assistant),
    "last answer only", "prompt and target", or "label".
    """
    if task.kind != "generation":
        return LABEL
    return BY_LEARN[learn_of(section, rules)] if task.name == "instruct" else rules.loss_mask
