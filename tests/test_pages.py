"""The pages of docs/ that are written by a command are what that command writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

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


def test_every_page_has_its_place_in_the_site() -> None:
    """`make docs` builds the site with warnings as errors; what is missing from it shows here already."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w/]+\.md", str(site["nav"])))
    assert named == {file.name for file in (ROOT / "docs").glob("*.md")}


def test_links_lead_somewhere() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_finding_stands_in_the_table_and_what_the_table_names_is_there() -> None:
    text = (ROOT / "docs" / "stack.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:findings|tests)/[^`]+)`", text))
    assert {f"findings/{file.name}" for file in (ROOT / "findings").glob("*.sh")} <= named
    assert all((ROOT / name).is_file() for name in named)
