"""`neuroada convert`: a model folder whose weights are only pickles, once more with safetensors.

Pickles are opened nowhere else, and here by a process that can neither reach a network nor start a program
nor change a file (`hub.unpickle`). Values, types and names stay what they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from torch import Tensor

from neuroada_cli import files, hub
from neuroada_cli.errors import ModelError, OutputError
from neuroada_cli.foreign_text import shown
from neuroada_cli.hub.pickled import Shard, pickled_files, reading
from neuroada_cli.merging.folder import copy_companions, room_beside_weights
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import size

CARD = "README.md"


@dataclass(frozen=True)
class ConvertResult:
    """out is the written folder; tensors and nbytes are its weights'; seconds the whole conversion took."""

    out: Path
    tensors: int
    nbytes: int
    seconds: float


def run(
    source: str | Path, out: str | Path | None = None, overwrite: bool = False, quiet: bool = False
) -> ConvertResult:
    """Write the model in the folder `source` into `out` (default: SOURCE-safetensors), as safetensors.

    Raises ModelError (no model, no pickles, pickles that hold anything but weights), OutputError (out exists,
    or would lie in the source), ResourceError (disk, or no way to shut a process off from the network).
    """
    started = time.perf_counter()
    folder = Path(source)
    paths = _pickles(folder)
    target = (
        Path(out) if out is not None else folder.resolve().with_name(f"{folder.resolve().name}-safetensors")
    )
    _refuse_overlap(target, folder)
    tensors = nbytes = 0
    weight_map: dict[str, str] = {}
    with files.Lock.on(target):
        size = sum(path.stat().st_size for path in paths)
        files.require_space(target, size + room_beside_weights(folder))
        with files.atomic_folder(target, overwrite=overwrite) as temporary, _bar(size, quiet) as bar:
            with reading(folder) as shards:
                for number, shard in enumerate(shards, start=1):
                    name = hub.shard_name(number, len(paths))
                    files.stream_tensors(
                        temporary / name, shard.plan, _counted(shard, bar), metadata={"format": "pt"}
                    )
                    weight_map |= {tensor: name for tensor, _, _ in shard.plan}
                    tensors, nbytes = tensors + len(shard.plan), nbytes + shard.nbytes
            if len(paths) > 1:
                index = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(weight_map.items()))}
                files.write_json(temporary / hub.INDEX, index)
            _copy_the_rest(folder, temporary)
            hub.open_weights(temporary)
    result = ConvertResult(target, tensors, nbytes, time.perf_counter() - started)
    if not quiet:
        _show(result)
    return result


def _pickles(folder: Path) -> list[Path]:
    """The files to convert. Raises ModelError for a folder that is no model, or has no need of it."""
    if not folder.is_dir():
        fix = "check the path"
        if hub.is_hub_id(str(folder)):
            fix = f"download it first: hf download {folder} --local-dir FOLDER"
        raise ModelError("no such folder", str(folder), fix)
    hub.read_config(folder)
    paths = pickled_files(folder)
    try:
        hub.open_weights(folder)
    except ModelError:
        if not paths or any(folder.glob("*.safetensors")):
            raise  # it says what is wrong with the folder
        return paths
    raise ModelError("holds safetensors already: there is nothing to convert", str(folder), "use it as it is")


def _refuse_overlap(out: Path, folder: Path) -> None:
    """Neither into the source nor over it, nor over a folder that holds it."""
    here, source = out.resolve(), folder.resolve()
    if here == source or source in here.parents:
        raise OutputError("lies inside the model", str(out), "name a folder elsewhere")
    if here in source.parents:
        raise OutputError("holds the model", str(out), "name a folder elsewhere")


def _copy_the_rest(folder: Path, target: Path) -> None:
    """Config, tokenizer, licence and model card, byte for byte."""
    files.copy_file(folder / "config.json", target / "config.json")
    copy_companions(folder, target)
    if (folder / CARD).is_file():
        files.copy_file(folder / CARD, target / CARD)


def _counted(shard: Shard, bar: Progress) -> Iterator[Tensor]:
    for (_, dtype, shape), tensor in zip(shard.plan, shard.tensors, strict=True):
        yield tensor
        bar.advance(bar.task_ids[0], math.prod(shape) * dtype.itemsize)


def _bar(total: int, quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    bar.add_task("converting", total=total)
    return bar


def _show(result: ConvertResult) -> None:
    console = Console()
    say(
        console,
        f"{result.tensors:,} tensors, {size(result.nbytes)} in {result.seconds:.1f} s; every value as it was",
    )
    say(console, f"model folder: {shown(result.out)}")
