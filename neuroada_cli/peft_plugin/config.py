"""The configuration of NeuroAda in PEFT, and how it is stored: as `neuroada train` stores it.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType

from neuroada_cli import files, hub
from neuroada_cli.adapter.config import as_config, method_of, plain_task
from neuroada_cli.adapter.folder import IN_PEFT, INDICES, PREFIX, TENSORS, VALUES
from neuroada_cli.errors import ModelError, UserError
from neuroada_cli.files.folders import ADAPTER_CONFIG
from neuroada_cli.files.safetensors_header import read_header
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.criteria import CRITERIA, DATA_CRITERIA, LIFT_RANK
from neuroada_cli.selection.file import FORMAT

CARD = "README.md"
HOW_TO_LOAD = f"""
## How to load it
{IN_PEFT}
or `neuroada merge THIS_FOLDER OUT` writes a plain checkpoint.
"""


@dataclass
class NeuroAdaConfig(PeftConfig):
    """K trainable connections per output neuron (arXiv:2510.18940).

    target_modules  as everywhere in PEFT; "all-linear" leaves the output head out
    exclude_modules, layers_to_transform, layers_pattern, modules_to_save  likewise
    k               connections per output neuron
    criterion       which are chosen: magnitude (the paper's), lift, reverse, random
    lift_rank       of the approximation that `lift` looks at;  seed  of `random`
    selection       a file of `neuroada select`, instead of k and criterion: also for criteria that look at
                    training rows (gradient, snip, activation)
    The rest describes a stored adapter: format, fingerprint of its base, tied modules, settings.
    Raises ValueError for values that cannot be, and for an adapter of another method or with trained biases.
    """

    target_modules: list[str] | set[str] | str | None = field(default="all-linear")
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    k: int = field(default=1)
    criterion: str = field(default="magnitude")
    lift_rank: int = field(default=LIFT_RANK)
    seed: int = field(default=42)
    selection: str | None = field(default=None)
    format: int | None = field(default=None)
    fingerprint: dict[str, Any] | None = field(default=None)
    tied: dict[str, list[str]] | None = field(default=None)
    settings: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["NEUROADA"]
        self.base_folder: Path | None = None  # of a new adapter's base, whose fingerprint is stored
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if self.target_modules is None:
            self.target_modules = "all-linear"
        if self.stored:
            self._check_stored()
        else:
            self._check_new()

    @property
    def stored(self) -> bool:
        """Whether it came with an adapter, whose places are in its file."""
        return self.format is not None

    def _check_new(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise ValueError(f"k={self.k!r}: choose a whole number from 1 on")
        if self.selection is None and self.criterion not in CRITERIA:
            known = ", ".join(CRITERIA)
            fix = "write a file with `neuroada select` and name it with selection=" * (
                self.criterion in DATA_CRITERIA
            )
            raise ValueError(f"criterion={self.criterion!r}: {fix or f'choose {known}'}")

    def _check_stored(self) -> None:
        if type(self.format) is not int or self.format > FORMAT:
            raise ValueError(f"the adapter has format {self.format}, this version reads up to {FORMAT}")
        if type(self.k) is not int or self.k < 1:
            raise ValueError(f"the adapter's k is {self.k!r}")
        method = method_of(self.settings or {})
        if method not in METHODS or not METHODS[method].chosen:
            raise ValueError(f"the adapter was trained by {method}, which is no NeuroAda: merge it instead")
        if self.tied:
            name = next(iter(self.tied))
            raise ValueError(
                f"the adapter holds {name}, whose weight other modules use too; `neuroada merge` folds it in"
            )
        both = sorted(set(self.modules_to_save or ()) & set(self.target_modules or ()))
        if both:
            raise ValueError(
                f"the adapter trained {both[0]}'s bias too, which PEFT has no place for: merge it instead"
            )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As `neuroada train` writes it, so that the command line reads what PEFT has saved.

        Called by PEFT after the tensors were written; what they hold is taken from their file's header.
        """
        folder = Path(save_directory)
        if not (folder / TENSORS).is_file():  # a config without an adapter
            folder.mkdir(parents=True, exist_ok=True)
            plain = {n: sorted(v) if isinstance(v, set) else v for n, v in self.to_dict().items()}
            files.write_json(folder / ADAPTER_CONFIG, plain)
            return
        mapping = kwargs.pop("auto_mapping_dict", None)
        infos, _ = read_header(folder / TENSORS)
        names = {name.removeprefix(PREFIX): info.shape for name, info in infos.items()}
        targets = {
            name.removesuffix(INDICES): shape for name, shape in names.items() if name.endswith(INDICES)
        }
        config = as_config(
            task_type=None
            if self.task_type is None
            else str(getattr(self.task_type, "value", self.task_type)),
            base=self.base_model_name_or_path,
            revision=self.revision,
            targets=targets,
            number=self.format or FORMAT,
            k=max((shape[1] for shape in targets.values()), default=self.k),
            criterion=self.criterion,
            fingerprint=self._fingerprint(),
            tied=self.tied or {},
            whole=[name for name in names if not name.endswith((INDICES, VALUES))],
            settings=self.settings or {},
        )
        if config["task_type"] is None and mapping:
            config["task_type"] = plain_task(str(mapping.get("base_model_class")))
        config |= {"auto_mapping": mapping, "peft_version": self.peft_version}
        files.write_json(folder / ADAPTER_CONFIG, config)
        _say_how_to_load(folder / CARD)

    def _fingerprint(self) -> dict[str, Any]:
        """Of the base's files, taken once; empty where there are none (a model made in memory)."""
        if self.fingerprint is None and self.base_folder is not None:
            try:
                self.fingerprint = hub.fingerprint(self.base_folder)
            except (ModelError, UserError):
                self.base_folder = None
        return self.fingerprint or {}


def _say_how_to_load(card: Path) -> None:
    """PEFT alone answers with a bare KeyError, so its model card has to say more than PEFT does."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if "neuroada_cli.peft_plugin" not in text:
        files.write_text(card, text + HOW_TO_LOAD)
