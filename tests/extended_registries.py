"""docs/extending.md's own criterion, task, protocol and method, registered as its examples register them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroada_cli.methods import METHODS
from neuroada_cli.selection.criteria import CRITERIA
from neuroada_cli.tasks.registry import TASKS
from neuroada_cli.tasks.task import PROTOCOLS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
REGISTRIES = (CRITERIA, TASKS, PROTOCOLS, METHODS)


@contextmanager
def extended() -> Iterator[None]:
    before = [dict(registry) for registry in REGISTRIES]  # type: ignore[call-overload]
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
    try:
        yield
    finally:
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.clear()  # type: ignore[attr-defined]
            registry.update(entries)  # type: ignore[attr-defined]
