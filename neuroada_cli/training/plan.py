"""How large a run is: what trains, for how many steps, in how much memory. No weight is read for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from neuroada_cli import hub, memory
from neuroada_cli.data.encoding import EncodeReport
from neuroada_cli.errors import RecipeError, UserError
from neuroada_cli.hub.known import code_of, known
from neuroada_cli.methods import MethodFacts, Sizes, facts_of
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.file import Selection
from neuroada_cli.show.numbers import counted, share
from neuroada_cli.training.rows import PreparedRows
from neuroada_cli.training.settings import dtype_of, loop_settings


@dataclass(frozen=True)
class Plan:
    """trainable counts numbers (a fresh head is known only once the model is loaded).

    facts     of the method
    sizes     what its numbers follow from; sizes.total are the parameters of the model
    stored_k  layer -> connections kept per neuron: a layer's rows are as long as its longest. None where that
              is known only once weights were read, or nothing is trained by connections
    up_to     trainable is the most it can be: tiles at the edges of a weight are smaller, and which ones
              train is known only once weights were read
    """

    facts: MethodFacts
    sizes: Sizes
    trainable: int
    steps: int
    stored_k: Mapping[str, int] | None = None
    up_to: bool = False

    @property
    def total(self) -> int:
        return self.sizes.total

    def trains(self, verb: str = " train") -> str:
        """What trains of it all, as it is told."""
        told = f"{self.trainable:,} of {self.total:,} parameters{verb} ({share(self.trainable, self.total)})"
        return f"up to {told}" if self.up_to else told

    def walks(self, batch_size: int, rows: int, one: str = "step") -> str:
        """How many steps of how many of an epoch's rows: its last step has those that are left."""
        told = f"{counted(self.steps, one)} of {counted(min(batch_size, rows), 'row')}"
        rest = rows % batch_size
        if not rest or rows < batch_size or self.steps <= rows // batch_size:
            return told
        return f"{told}, the last of an epoch of {rest}"


def make_plan(
    recipe: Recipe, base: hub.Base, choice: Choice, given: Selection | None, rows: PreparedRows
) -> Plan:
    """The plan of a run. Raises RecipeError for a method that finds nothing to train in this model."""
    facts = facts_of(recipe.train.method)
    width = getattr(base.graph.config.get_text_config(), "hidden_size", 0)  # type: ignore[union-attr,operator]
    sizes = Sizes(
        choice.shapes,
        chosen=given.connections if given is not None else choice.connections,
        total=base.parameters,
        width=width,
        rank=recipe.peer.rank if recipe.peer else Sizes.rank,
    )
    try:
        trainable = facts.count(sizes) if facts.count is not None else _counted(facts, base, choice)
    except ValueError as error:
        where = f"train.method={recipe.train.method}"
        raise RecipeError(f"{base.folder} {error}", where, "choose another method") from None
    steps = loop_settings(recipe).total_steps(len(rows.data.train))
    stored_k, up_to = None, False
    if facts.chosen:
        stored_k = given.stored_k if given is not None else choice.stored_k
        up_to = given is None and choice.fewest < choice.connections
    return Plan(facts, sizes, trainable, steps, stored_k, up_to)


def _counted(facts: MethodFacts, base: hub.Base, choice: Choice) -> int:
    """How many numbers the method trains of a copy of the model that has no weights."""
    model = memory.copy_structure(base.graph, torch.empty_like)
    indices = {
        name: torch.empty(rows, 1, dtype=torch.int32, device="meta")
        for name, (rows, _) in choice.shapes.items()
    }
    method = facts.build()
    method.attach(model, indices)
    return sum(parameter.numel() for parameter in method.parameters(model))


def largest_step(recipe: Recipe, rows: PreparedRows, processes: int = 1) -> tuple[int, int]:
    """(rows, tokens of each) of the forward pass that takes the most memory."""
    return _largest(recipe, rows.train_report, processes)


def _largest(recipe: Recipe, counts: EncodeReport, processes: int) -> tuple[int, int]:
    """The same of the rows that `counts` tells of, which are cut alike to train and to validate."""
    train = recipe.train
    micro = min(train.micro_batch_size or train.batch_size, -(-train.batch_size // processes))
    return min(micro, counts.rows), counts.longest


def predicted_memory(
    recipe: Recipe, plan: Plan, rows: PreparedRows, base: hub.Base, device: str, processes: int = 1
) -> memory.Breakdown | str:
    """Of the largest step of a process with the whole model, one of `processes` that share a step's rows,
    without reading a weight; or why it is not predicted.
    """
    quantization = recipe.model.quantization
    if quantization is not None and plan.facts.shards is None:
        return not_over_quantized(recipe)
    step = predicted_step(recipe, plan, rows, base, device, processes)
    if isinstance(step, str):
        return step
    if quantization is None:
        return step.breakdown()
    own = memory.of_process(
        base.skeleton, connections(recipe, plan), step, 1, False, dtype_of(recipe), packed(recipe, base)
    )
    return memory.Breakdown(own.weights, own.state, own.activations)


def packed(recipe: Recipe, base: hub.Base) -> dict[str, str]:
    """Layer -> how its weight is packed; nothing of a base that is not quantised."""
    kind = recipe.model.quantization
    return {} if kind is None else dict.fromkeys(hub.packed_layers(base.graph), kind)


def not_over_quantized(recipe: Recipe) -> str:
    """Why the memory of a peer's step over a quantised base is not predicted."""
    return f"nothing is known of {recipe.train.method} over {recipe.model.quantization} before it is loaded"


def connections(recipe: Recipe, plan: Plan) -> dict[str, int]:
    """Target -> how many of each neuron's connections are kept."""
    kept = kept_per_neuron(recipe, plan)
    return {name: kept if isinstance(kept, int) else kept[name] for name in plan.sizes.shapes}


def predicted_step(
    recipe: Recipe, plan: Plan, rows: PreparedRows, base: hub.Base, device: str, processes: int
) -> memory.StepBytes | str:
    """As `predicted_memory`, part by part, and of a base that is not quantised. Where validation rows are
    longer than the others, a look at them counts, too.
    """
    if not plan.facts.predictable:
        return f"the steps of {recipe.train.method} cannot be gone through without numbers"
    language = {*hub.parts_of(base.graph).get("language", ())}
    if base.task == "image-text-to-text" and language and not {*plan.sizes.shapes} <= language:
        # how many places pictures take is known from values, which nothing has there
        return "the pass over pictures cannot be gone through without numbers, and parts of it train"
    counts, held = rows.train_report, rows.validation_report
    step = _predicted(recipe, plan, rows, counts, base, device, processes)
    if isinstance(step, str) or held is None or not _longer(held, counts):
        return step
    look = _predicted(recipe, plan, rows, held, base, device, processes, learns=False)
    if isinstance(look, str):
        return look
    forward, *rest = step.parts  # a pass between two steps, when as much lives as before a step's own
    return replace(step, parts=(max(forward, look.peak), *rest))


def _longer(held: EncodeReport, counts: EncodeReport) -> bool:
    return held.longest > counts.longest or held.longest_answer > counts.longest_answer


def _predicted(
    recipe: Recipe,
    plan: Plan,
    rows: PreparedRows,
    counts: EncodeReport,
    base: hub.Base,
    device: str,
    processes: int,
    learns: bool = True,
) -> memory.StepBytes | str:
    """The largest step on rows that `counts` tells of, or, where nothing learns, the largest look at them."""
    micro, longest = _largest(recipe, counts, processes)
    packs = recipe.train.packing  # into one row, of which a mask tells what each token sees: [S, S] of all
    asked: dict[str, Any] = {
        "k": kept_per_neuron(recipe, plan),
        "batch": 1 if packs else micro,
        "sequence": micro * longest if packs else longest,
        "dtype": dtype_of(recipe),
        "learnt": round(micro * (longest + counts.longest_answer) * counts.targets / max(1, counts.tokens)),
        "gradient_checkpointing": recipe.train.gradient_checkpointing,
        "device": device.partition(":")[0],
        "also": _beside(micro, counts, rows),
        "learns": learns,
    }
    targets = list(plan.stored_k or plan.sizes.shapes)

    def predict() -> memory.StepBytes:
        return memory.predict_step(base.skeleton, targets, plan.facts.build(), padded=True, **asked)

    try:
        about = as_asked(recipe, base, plan)
        if about is None:
            return predict()
        also = {name: [*tensor.shape, str(tensor.dtype)] for name, tensor in asked["also"].items()}
        about += [targets, asked | {"dtype": recipe.model.dtype, "also": also}]
        return known("steps", [base.folder / "config.json"], about, predict, asdict, _step_bytes)
    except UserError:
        raise
    except Exception as error:  # the model's own code, which may look at numbers that are not there
        what = " ".join(str(error).split())[:120]
        return f"its forward pass needs numbers ({type(error).__name__}: {what})"


def as_asked(recipe: Recipe, base: hub.Base, plan: Plan) -> list[Any] | None:
    """What an answer about the steps of a run follows from beside its config, rows and settings: the model
    and the method, and our code of them. None where code decides that is not of this package.
    """
    made = plan.facts.make if isinstance(plan.facts.make, str) else plan.facts.make.__module__
    ours = made.startswith("neuroada_cli.") and plan.facts.package is None
    if not ours or "auto_map" in hub.read_config(base.folder):
        return None
    code = code_of("delta", "loop", "memory", "methods", "training")
    return [code, base.task, base.num_labels, base.apart, base.attention, recipe.train.method]


def _step_bytes(record: Any) -> memory.StepBytes:
    parts = tuple(int(part) for part in record["parts"])
    return memory.StepBytes(int(record["weights"]), int(record["gradients"]), int(record["left"]), parts)


def _beside(rows: int, counts: EncodeReport, prepared: PreparedRows) -> dict[str, torch.Tensor]:
    """What the largest forward pass is given beside its tokens, by shape."""
    longest, data = counts.longest_answer, prepared.data
    if data.features is not None and not counts.tokens:
        return data.features([max(data.train, key=len)] * rows)
    if not longest:
        return {}
    tokens_BS = torch.empty(rows, longest, dtype=torch.int64, device="meta")
    return {"decoder_input_ids": tokens_BS, "decoder_attention_mask": tokens_BS}


def kept_per_neuron(recipe: Recipe, plan: Plan) -> int | Mapping[str, int]:
    """Connections kept per neuron; where that is not known yet, their mean, below which it cannot be."""
    if plan.stored_k is not None:
        return plan.stored_k
    if not plan.facts.chosen:
        return recipe.select.k
    return max(1, round(plan.trainable / sum(rows for rows, _ in plan.sizes.shapes.values())))
