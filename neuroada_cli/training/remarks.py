"""What is to be said of model and rows before training: whatever is not as a person would take it to be."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn

from neuroada_cli import hub
from neuroada_cli.data.encoding import EncodeReport
from neuroada_cli.delta.targets import ALL_LINEAR, parameter_name, target_of, targets_of
from neuroada_cli.hub.outline import is_outline, weights_of
from neuroada_cli.hub.stored import main_dtype, own_dtype, rounded_by
from neuroada_cli.loop.modes import CAPACITY
from neuroada_cli.methods.facts import facts_of
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.numbers import describe_dtype, size
from neuroada_cli.tasks.loss_mask import learns_prompt
from neuroada_cli.tasks.registry import get_protocol
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.samples import why_none
from neuroada_cli.training.settings import dtype_of

TIME_CONSTANTS = ("A_log", "D")  # as Mamba names them, by channel and state
SMALLEST_FALL = 2**-8  # of a bf16 number, that is never rounded away
EQUAL_PARTS = {"bf16": 2**8, "fp16": 2**11}  # one more is rounded away
SHARED_BOUND = "moe_eval_capacity_token_fraction"  # of NLLB-MoE alone, which bounds all rows together
LEAST = 0.01  # share of a model's parameters that is worth a line
KEPT_BY_CUTTING = "data.too_long: cut keeps what the model takes of them"
KEPT = "a larger data.max_length or data.too_long: cut keeps them"
FULL = "the model takes no more; data.too_long:"
SHORTER, DROPPED = (
    f"{FULL} cut takes it from their prompt, drop leaves them out",
    f"{FULL} drop leaves them out",
)
LONGER, SPACE = "raise data.max_length", "put the space between them before the answer"


def remarks(checked: Checked) -> Iterator[str]:
    """One line each."""
    trusted = checked.recipe.model.trust_remote_code
    yield from hub.ignored_of_model(checked.base.folder, trusted, checked.base.graph)
    if checked.reader.tokenizer is not None:
        yield from hub.ignored_of_tokenizer(checked.reader.tokenizer, trusted)
    if checked.task.kind == "generation":
        remark = hub.endings(checked.reader.tokenizer).remark
        if remark is not None:
            yield remark
    if checked.unused is not None:
        yield checked.unused
    yield from _of_weights(checked)
    if (experts := unpacked_experts(checked)) is not None:
        yield experts
    if (shared := shared_capacity(checked)) is not None:
        yield shared
    if (stuck := stuck_moment(checked.recipe)) is not None:
        yield stuck
    if (coarse := coarse_sums(checked)) is not None:
        yield coarse
    yield from left_out(checked)
    yield from checked.rows.notes
    if (why := why_none(checked)) is not None:
        yield f"eval.samples={checked.recipe.eval.samples} has no effect: {why}"
    rules = get_protocol(checked.recipe.data.protocol)
    if checked.recipe.train.share_prefix and learns_prompt(checked.recipe.data, checked.task, rules):
        why = "data.learn: all" if checked.recipe.data.learn == "all" else f"data.protocol={rules.name}"
        yield f"train.share_prefix has no effect: {why} learns the prompt, too"
    for counts, what in (
        (checked.rows.train_report, "rows"),
        (checked.rows.validation_report, "validation rows"),
    ):
        if counts is not None:
            yield from _of_rows(checked, counts, what)


def _of_weights(checked: Checked) -> Iterator[str]:
    """What training does to the base before it begins."""
    if is_outline(checked.base.folder):
        weights = size(weights_of(checked.base.folder))
        yield f"the weights are not on this machine: {weights} are fetched when they are needed"
        return
    held = checked.base.weights
    changed, total = rounded_by(held, dtype_of(checked.recipe))
    if not changed:
        return
    name, main = checked.recipe.model.dtype, describe_dtype(main_dtype(held))
    counts = f"{changed:,} of {total:,} numbers"
    if name == own_dtype(held):
        yield (
            f"the base is {main} for the most part, and training reads all of it so: {counts} are "
            "rounded for it; a merge keeps them"
        )
    else:
        yield (
            f"model.dtype={name} rounds the base, which is {main}: {counts} change, chosen or not; leave it "
            "out to keep them"
        )


def unpacked_experts(checked: Checked) -> str | None:
    """That a mixture is far larger than its 4 or 8 bits promise; None: no base in them, or no such experts.

    bitsandbytes packs linear layers, and transformers keeps all experts of a layer in one tensor
    (findings/experts-stay-out-of-4-bits.sh).
    """
    kind, dtype = checked.recipe.model.quantization, checked.recipe.model.dtype
    if kind is None:
        return None
    targets = targets_of(checked.base.graph)
    sizes = [t.weight.numel() for t in targets.values() if t.layout.experts is not None]
    if not sizes:
        return None
    share, held = sum(sizes) / checked.base.parameters, sum(sizes) * dtype_of(checked.recipe).itemsize
    return (
        f"{kind} packs linear layers only: the experts, {100 * share:.2g} % of the parameters, share a "
        f"tensor in each block and stay in {dtype}, {size(held)}"
    )


def shared_capacity(checked: Checked) -> str | None:
    """That the rows of a micro-batch compete for experts; None: what is computed of a row is its own.

    NLLB-MoE's experts take so many tokens of all rows together, padding among them, and pass over the rest.
    In evaluation the bound is a share of the tokens; Switch Transformers' bound is a row's.
    """
    config = checked.base.graph.config
    if not hasattr(config, SHARED_BOUND) or (bound := getattr(config, CAPACITY, None)) is None:
        return None
    return (
        f"each expert takes at most {bound} tokens of a micro-batch and passes over the others, so that loss "
        "and gradients depend on train.micro_batch_size and on the rows beside one; 1 leaves each to itself"
    )


def stuck_moment(recipe: Recipe) -> str | None:
    """That AdamW's second moment only rises, where it is kept in bf16; None: it falls as it should.

    One step without a gradient takes 1 - beta of it. Of a bf16 number less than 2**-8 may be rounded away,
    and less than 2**-9 always is, so that it stays (findings/adamw-in-bf16-never-forgets.sh).
    """
    facts, second = facts_of(recipe.train.method), recipe.optim.betas[1]
    narrow = recipe.model.dtype == "bf16" if facts.narrow else recipe.train.delta_dtype == "bf16"
    if not narrow or 1 - second >= SMALLEST_FALL:
        return None
    fix = "train.delta_dtype=fp32" if facts.delta_dtype else "model.dtype=fp32"
    return (
        f"AdamW's second moment is kept in bf16, where a beta of {second:g} is rounded away: it rises and "
        f"does not fall, so that steps stay small after a large gradient; {fix} or a second optim.betas of "
        f"up to {1 - SMALLEST_FALL:.3g} lets it"
    )


def coarse_sums(checked: Checked) -> str | None:
    """That gradients are added up in 16 bits; None: in fp32, as most are.

    On a CPU the backward passes of embeddings and of LayerNorm add place by place, in the type of the weights
    (findings/embedding-gradient-in-bf16.sh, findings/layernorm-gradient-in-bf16.sh).
    """
    name, facts = str(checked.recipe.model.dtype), checked.plan.facts
    if checked.device != "cpu" or name not in EQUAL_PARTS or not (facts.everything or facts.biases):
        return None
    own = ("weight", "bias") if facts.everything else ("bias",)
    found = {
        kind.__name__
        for module in checked.base.graph.modules()
        for kind in (nn.Embedding, nn.LayerNorm)
        if isinstance(module, kind) and any(isinstance(getattr(module, p, None), nn.Parameter) for p in own)
    }
    if not found:
        return None
    return (
        f"on a CPU the gradients of {' and '.join(sorted(found))} are added up in {name}, token by token, "
        f"where a sum of equal parts stops at {EQUAL_PARTS[name]:,} of them; model.dtype=fp32 adds them up "
        "in full"
    )


def left_out(checked: Checked) -> Iterator[str]:
    """What the recipe's targets do not mean although one may think so; also for the model card. Nothing where
    all parameters train.
    """
    facts, recipe = checked.plan.facts, checked.recipe
    if not (facts.chosen or facts.linear_only):
        return
    yield from left_aside(checked.base.graph)
    if ALL_LINEAR in recipe.select.targets and recipe.select.file is None:
        yield from not_language(checked.base.graph, checked.plan.sizes.shapes)


def not_language(graph: nn.Module, adapted: Collection[str]) -> Iterator[str]:
    """The parts of a model that looks at pictures of which no layer is adapted."""
    parts = hub.parts_of(graph)
    left = {part: names for part, names in parts.items() if part != "language" and not {*names} & {*adapted}}
    if "language" not in parts or not left:
        return
    weights = [target_of(graph, name).weight.numel() for names in left.values() for name in names]
    share = sum(weights) / max(1, sum(parameter.numel() for parameter in graph.parameters()))
    yield (
        f"all-linear leaves out the linear layers of {' and '.join(left)}, {100 * share:.2g} % of the "
        "parameters; name these parts in select.targets to train them"
    )


def left_aside(graph: nn.Module) -> Iterator[str]:
    """Matrices that no target can name, where they are more than a hundredth of the model: experts that a
    mixture keeps in a way of its own (DBRX).
    """
    known = {parameter_name(graph, name) for name in targets_of(graph)}
    sizes = {name: parameter.numel() for name, parameter in graph.named_parameters()}
    left = [
        name
        for name, parameter in graph.named_parameters()
        if parameter.ndim in (2, 3) and name not in known and _is_raw(graph, name, parameter)
    ]
    share = sum(sizes[name] for name in left) / max(1, sum(sizes.values()))
    if share > LEAST:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        yield (
            f"{100 * share:.2g} % of the parameters are matrices outside linear layers, in which nothing can "
            f"be chosen: {left[0]}{more}"
        )


def _is_raw(graph: nn.Module, parameter: str, tensor: torch.Tensor) -> bool:
    """Whether it is neither looked up (embeddings, also of places) nor a convolution's or a norm's, and
    multiplies what comes in: no one row, no bias of experts or heads, no time constants of a state space.
    """
    above, _, own = parameter.rpartition(".")
    owner = graph.get_submodule(above)
    kind = type(owner).__name__
    if own.endswith("bias") or own in TIME_CONSTANTS or sum(size > 1 for size in tensor.shape) < 2:
        return False
    return not isinstance(owner, nn.Embedding) and not any(
        word in text
        for text, word in ((kind, "Conv"), (kind, "Norm"), (parameter, "embed"), (parameter, "pos"))
    )


def _has_prompts(checked: Checked) -> bool:
    """Whether what is too much can be taken from a prompt: not of texts that get a class or are learnt as a
    whole, nor of rows with pictures in them, nor where the answer has a decoder of its own.
    """
    reader, plain = checked.reader, checked.task.kind == "generation" and not checked.task.pictures
    return plain and reader.decoder_start is None and checked.rows.form != "text"


def _of_rows(checked: Checked, counts: EncodeReport, what: str) -> Iterator[str]:
    limit, total = checked.rows.max_length, counts.rows + counts.dropped
    apart = (
        "the prompt's end and the answer's beginning share a token, which is not learnt (the rule of "
        f"protocol {checked.recipe.data.protocol})"
        if checked.rows.published
        else "the prompt's end and the answer's beginning would be one token, so they are tokenised apart"
    )
    full = limit == checked.base.positions  # the model takes no longer ones
    cutting = checked.recipe.data.too_long == "cut"
    longer = LONGER if not full else "" if cutting else SHORTER if _has_prompts(checked) else DROPPED
    learnt = "learnt" if checked.task.kind == "generation" else "read"
    known = (
        (counts.dropped, f"longer than {limit} tokens and left out", KEPT_BY_CUTTING if full else KEPT),
        (counts.shortened, f"without the beginning of their prompt, to fit into {limit} tokens", ""),
        (counts.truncated, f"cut at {limit} tokens, so that their end is never {learnt}", longer),
        (counts.seams, apart, "" if checked.rows.published else SPACE),
        (counts.ended, "an end token inside the answer, behind which nothing will be written", ""),
        (counts.unknown, "the unknown token is learnt, for characters that the tokenizer does not know", ""),
    )
    for count, line, fix in known:
        if count:
            yield f"{line}: {count:,} of {total:,} {what}{'; ' if fix else ''}{fix}"
