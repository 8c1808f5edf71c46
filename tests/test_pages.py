"""The pages of docs/ that are written by a command are what that command writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "docs" / "pages"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_every_page_is_up_to_date() -> None:
    found = check(ROOT)
    assert found.returncode == 0, found.stderr


def test_a_page_that_was_changed_by_hand_is_named(tmp_path: Path) -> None:
    for name in ("docs", "benchmarks"):
        (tmp_path / name).mkdir()
        for entry in (ROOT / name).iterdir():
            (tmp_path / name / entry.name).symlink_to(entry)
    pages = tmp_path / "docs" / "pages"
    pages.unlink()
    pages.mkdir()
    for entry in (ROOT / "docs" / "pages").glob("*.py"):
        (pages / entry.name).write_bytes(entry.read_bytes())  # a link would lead back to the real pages
    page = tmp_path / "docs" / "recipe.md"
    text = page.read_text(encoding="utf-8")
    page.unlink()
    page.write_text(text.replace("`optim.lr`", "`optim.rate`"), encoding="utf-8")
    found = check(tmp_path)
    assert found.returncode == 1
    assert "docs/recipe.md" in found.stderr
