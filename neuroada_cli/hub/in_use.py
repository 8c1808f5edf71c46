"""Whether a model's files are written to while the model in memory lies on them.

On the CPU, weights that are loaded in the type that they are stored in stay on the pages of their file until
somebody writes to them, and frozen ones are never written to: what is copied over the file in place is in the
model at once (findings/loaded-weights-follow-the-file.sh). A file that is replaced by renaming another over
it, or removed, leaves the model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from neuroada_cli.errors import ModelError
from neuroada_cli.hub.fingerprint import fingerprint, what_differs
from neuroada_cli.hub.weights import Weights

FIX = "put the right file back and start again; replace files by renaming (mv), not by copying over them"


class InUse:
    """The weight files of a folder as they were before a model was loaded from it.

    known  the base's fingerprint, by which a file that was only touched is told from one with other contents
    """

    def __init__(self, weights: Weights, known: Mapping[str, Any]) -> None:
        self.known = known
        self._folder = weights.folder
        self._dtypes = {weights.info(name).dtype for name in weights}
        self._seen = {file: _stamp(file) for file in weights.files}

    def refuse_written_to(self, model: nn.Module) -> None:
        """Raises ModelError where `model`, loaded from here, may hold what was written to a file since."""
        if not any(p.device.type == "cpu" and p.dtype in self._dtypes for p in model.parameters()):
            return  # copied or cast while it was loaded
        now = {file: _stamp(file) for file in self._seen}
        changed = [
            file
            for file, (inode, *before) in self._seen.items()
            if now[file][0] == inode and now[file][1:] != tuple(before)
        ]
        if not changed:
            return
        try:
            reason = what_differs(self.known, fingerprint(self._folder))
        except ModelError as error:
            reason = error.what
        if reason is not None:
            raise ModelError(
                f"was written to while the model in memory lay on it, which is another one now: {reason}",
                str(changed[0]),
                FIX,
            )
        self._seen = now


def _stamp(file: Path) -> tuple[int, ...]:
    """(inode, size, time of the last change) of a file; zeros for one that is gone."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns
