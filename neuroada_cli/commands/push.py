"""`neuroada push`: an adapter or a merged model on the hub, with its card and results, as one commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from neuroada_cli import files, hub
from neuroada_cli.adapter.find import open_found
from neuroada_cli.adapter.folder import TENSORS
from neuroada_cli.errors import ModelError
from neuroada_cli.export import hub_card
from neuroada_cli.files.folders import ADAPTER_CONFIG, is_model
from neuroada_cli.foreign_text import shown
from neuroada_cli.show.notes import say, tell

CARD, REPORT = "README.md", "merge_report.json"


@dataclass(frozen=True)
class PushResult:
    """address of the commit (empty for a dry run), the names that are in it, the card as pushed."""

    address: str
    names: list[str]
    card: str


def run(
    source: str | Path,
    hub_id: str,
    base: str | None = None,
    results: str | Path | None = None,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> PushResult:
    """Put the adapter of a run or adapter folder, or a merged folder, into the model repository `hub_id`.

    base     the base's hub id, where the adapter knows only a folder of this machine
    results  an `eval` folder; default: the one beside what is pushed
    private  of a new repository
    Only what our manifest names is pushed, checked against it; of a checkpoint not its training state. Scores
    of another model or adapter than this one are left out, and said so.
    Raises ModelError for a folder that is none of ours or an id that does not do, ResourceError.
    """
    folder, manifest = _opened(Path(source))
    names = [name for name in manifest if not name.startswith("state/")]
    contents: dict[str, Path | bytes] = {name: folder / name for name in names}
    is_adapter = ADAPTER_CONFIG in manifest
    known = _base(folder, is_adapter)
    base = base or (hub_card.base_id(known) if known else None)
    if is_adapter and base is not None and base != known:
        config = files.read_json(folder / ADAPTER_CONFIG) | {
            "base_model_name_or_path": base,
            "revision": None,
        }
        contents[ADAPTER_CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    found, strangers = _results(Path(source), folder, results, manifest)
    report = files.read_json(folder / REPORT) if (folder / REPORT).is_file() else None
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    relation = "adapter" if is_adapter else "finetune"
    told = hub_card.card(text, hub_id.rpartition("/")[2], base, relation, found, report)
    contents |= {files.MANIFEST: _manifest(manifest, names, contents), CARD: told.encode()}
    contents |= hub_card.eval_results(found)
    tell(_remarks(base, known, found, strangers), quiet)
    address = ""
    if not dry_run:
        what = "adapter" if is_adapter else "merged model"
        address = hub.upload(hub_id, contents, f"NeuroAda: {what}", private, revision)
    if not quiet:
        console = Console()
        done = f"pushed to {address}" if address else "dry run, nothing is pushed"
        console.print(shown(f"{len(contents)} files: {', '.join(sorted(contents))}"), highlight=False)
        say(console, shown(done))
    return PushResult(address, sorted(contents), told)


def _opened(source: Path) -> tuple[Path, dict[str, Any]]:
    """(folder, its manifest's files) of an adapter, or of a model that we merged."""
    if is_model(source):
        if not files.is_ours(source):
            raise ModelError("is a model that neuroada did not write", str(source), "push it with: hf upload")
        return source, files.verify_folder(source)["files"]
    opened = open_found(source)
    return opened.folder, opened.manifest["files"]


def _base(folder: Path, is_adapter: bool) -> str | None:
    if is_adapter:
        return str(files.read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"])
    return None  # a merged folder's card names its base already


def _results(
    source: Path, folder: Path, given: str | Path | None, manifest: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(task -> entry, tasks that were scored on something else)."""
    places = [
        source / "eval",
        source / "eval" / folder.name,
        folder / "eval",
        folder.parent / "eval" / folder.name,
    ]
    place = next((each for each in places if (each / "results.json").is_file()), None)
    if given is not None:
        place = Path(given)
    if place is None:
        return {}, []
    entries = files.read_json(place / "results.json")
    if not isinstance(entries, dict):
        raise ModelError("is not what eval wrote", str(place / "results.json"))
    mine = manifest[TENSORS]["sha256"] if TENSORS in manifest else None
    print_of = json.loads(json.dumps(hub.fingerprint(folder))) if mine is None else None

    def is_of_this(entry: Mapping[str, Any]) -> bool:
        if mine is not None:
            return bool(entry.get("adapter_sha256") == mine)
        return "adapter_sha256" not in entry and bool(entry.get("model") == print_of)

    return (
        {task: entry for task, entry in entries.items() if is_of_this(entry)},
        [task for task, entry in entries.items() if not is_of_this(entry)],
    )


def _manifest(manifest: Mapping[str, Any], names: list[str], contents: Mapping[str, Path | bytes]) -> bytes:
    """The folder's manifest for what is pushed of it."""
    entries = {}
    for name in names:
        content = contents[name]
        entries[name] = manifest[name]
        if isinstance(content, bytes):
            entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return files.manifest_text(entries).encode()


def _remarks(
    base: str | None, known: str | None, found: Mapping[str, Any], strangers: list[str]
) -> list[str]:
    lines = []
    if known is not None and base is None:
        lines.append(
            "the base is a folder of this machine, which nobody else has: name its hub id with --base"
        )
    if strangers:
        lines.append(f"left out, since they were scored on something else: {', '.join(strangers)}")
    if not found:
        lines.append("no scores to show: neuroada eval makes them")
    return lines
