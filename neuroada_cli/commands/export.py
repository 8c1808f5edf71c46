"""`neuroada export`: an adapter, or the model merged with it, as others read it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.find import open_found
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.export import stock_peft, vllm_patch
from neuroada_cli.export.engines import ENGINES, Order, refuse_classifier
from neuroada_cli.export.formats import format_of
from neuroada_cli.files.folders import is_model
from neuroada_cli.foreign_text import shown
from neuroada_cli.merging.job import Job, base_folder_of, num_labels, prepare, refuse_overlap
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.file import SAME_BASE, check_base
from neuroada_cli.show.notes import say

MERGED, MADE = "merged", "made"  # inside the temporary folder, gone when it takes its name
CARD = "README.md"


@dataclass(frozen=True)
class ExportResult:
    """out is the written folder; about says what is in it and use how it is used, in a line each."""

    out: Path
    about: str
    use: str
    seconds: float


def run(
    source: str | Path,
    out: str | Path,
    to: str,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> ExportResult:
    """Write the adapter in `source` (a run or adapter folder) to the folder `out` in the format `to`.

    to     a key of `export.formats.FORMATS`; formats of whole models take a plain model folder as well
    base   where the base lies now; default: where training found it
    dtype  "bf16", "fp16" or "fp32" of a whole model or of patches; default: as trained, for onnx fp32
    Raises RecipeError for what does not go together, ModelError, NumericsError, OutputError, ResourceError.
    """
    started = time.perf_counter()
    form, source, out = format_of(to), Path(source), Path(out)
    if dtype is not None and to.startswith("peft-"):
        raise RecipeError("values are stored in fp32 for PEFT", "--dtype", "leave it out")
    if form.merges:
        about, use = _whole(source, out, to, base, dtype, overwrite, trust_remote_code, quiet)
    elif to == "vllm-sparse":
        about, use = _patch(source, out, base, dtype, overwrite, trust_remote_code)
    else:
        kind = to.removeprefix("peft-")
        about, use = _stock(source, out, kind, base, overwrite, trust_remote_code)
    result = ExportResult(out, about, use.replace("OUT", str(out)), time.perf_counter() - started)
    if not quiet:
        console = Console()
        for line in (f"{result.about}, in {result.seconds:.1f} s", f"in {out}", f"use: {result.use}"):
            say(console, shown(line))
    return result


def _stock(
    source: Path, out: Path, kind: str, base: str | None, overwrite: bool, trust: bool
) -> tuple[str, str]:
    opened = open_found(source)
    adapter = adapters.read_adapter(opened)
    method = method_of(adapter.settings)
    if not METHODS[method].chosen:
        raise ModelError(
            f"was trained by {method}, not by chosen connections", str(opened.folder), "merge the adapter"
        )
    folder = base_folder_of(adapter, base, trust)
    refuse_overlap(out, opened.folder, folder)
    check_base(adapter.selection.fingerprint, folder)
    whole = hub.open_base(folder, adapter.task, num_labels(adapter), trust)
    with files.Lock.on(out), files.atomic_folder(out, overwrite=overwrite) as temporary:
        stored = stock_peft.write(temporary, adapter, whole, kind)
        use = "peft.PeftModel.from_pretrained(base, 'OUT'), with stock PEFT"
        files.write_text(temporary / CARD, _card(adapter.base, adapters.how_trained(adapter), use, "peft"))
    values = f"{stored.entries:,} values, {stored.padding:,} of them padding"
    return f"{stored.peft_type} of stock PEFT: {values}; {SAME_BASE}", use


def _patch(
    source: Path, out: Path, base: str | None, dtype: str | None, overwrite: bool, trust: bool
) -> tuple[str, str]:
    job = prepare(source, out, base, dtype, trust_remote_code=trust, rename=False)
    with files.Lock.on(out), files.atomic_folder(out, overwrite=overwrite) as temporary:
        changed = vllm_patch.write(temporary, job.merge)
        use = "apply_patch.apply(model, 'OUT/patch.safetensors'), in vLLM's worker (LLM.apply_model)"
        trained = adapters.how_trained(job.adapter)
        files.write_text(temporary / CARD, _card(job.adapter.base, trained, use, "vllm"))
    return f"{changed:,} changed weights as vLLM's sparse patches, with the base's to take them back", use


def _whole(
    source: Path,
    out: Path,
    to: str,
    base: str | None,
    dtype: str | None,
    overwrite: bool,
    trust: bool,
    quiet: bool,
) -> tuple[str, str]:
    plain = is_model(source)
    job = None if plain else prepare(source, out, base, dtype, trust_remote_code=trust)
    model = source if job is None else job.merge.base.folder
    if plain:
        hub.resolve_model(str(source), trust_remote_code=trust)
        refuse_overlap(out, source, source)
    refuse_classifier(to, _architectures(source, job))
    kind = dtype or (
        "fp32" if to == "onnx" else _dtype_of(model) if job is None else _short(job.merge.target)
    )
    with files.Lock.on(out):
        files.require_space(out, 2 * (job.nbytes if job else hub.open_weights(source).nbytes))
        with files.atomic_folder(out, overwrite=overwrite) as temporary:
            if job is not None:
                (temporary / MERGED).mkdir()
                job.write(temporary / MERGED)
                model = temporary / MERGED
            name = out.name or "model"
            with Console(stderr=True, quiet=quiet).status(f"converting to {to}"):
                use = ENGINES[to](Order(model, temporary / MADE, name, kind, trust))
            _settle(temporary)
            trained = "" if job is None else adapters.how_trained(job.adapter)
            named = str(source) if job is None else job.adapter.base
            files.write_text(temporary / CARD, _card(named, trained, use, to))
    return f"the whole model in {kind} for {to}", use


def _architectures(source: Path, job: Job | None) -> list[str]:
    """Of the whole model: a plain folder's as it says, a merged one's as the merge will write it."""
    if job is None:
        return [str(name) for name in hub.read_config(source).get("architectures") or ()]
    return [type(job.merge.base.graph).__name__]


def _settle(temporary: Path) -> None:
    """What the converter made becomes the folder's content; the merged model it was made of goes."""
    if (temporary / MERGED).is_dir():
        files.remove_folder(temporary / MERGED)
    for entry in (temporary / MADE).iterdir():
        entry.rename(temporary / entry.name)
    (temporary / MADE).rmdir()


def _short(dtype: object) -> str:
    return next(name for name, known in hub.TORCH_DTYPES.items() if known == dtype)


def _dtype_of(folder: Path) -> str:
    from neuroada_cli.hub.stored import main_dtype

    return _short(main_dtype(hub.open_weights(folder)))


def _card(base: str, trained: str, use: str, library: str) -> str:
    name = base if hub.is_hub_id(base) else Path(base).name
    matter = [f"library_name: {library}", *([f"base_model: {base}"] if hub.is_hub_id(base) else [])]
    head = "\n".join(["---", *matter, "tags:", "- neuroada", "---"])
    return (
        f"{head}\n\n# {name}, fine-tuned\n\n{trained}\n\n    {use.replace('OUT/', '').replace('OUT', '.')}\n"
    )
