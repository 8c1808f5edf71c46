"""The pages of docs/ that are written from the program and from result files.

python docs/pages                  # write them all
python docs/pages reliability      # only docs/reliability.md
python docs/pages --check          # write nothing, exit 1 naming the pages that are not what they should be
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import command_pages
import comparison_page
import families_page
import mutants_page
import performance_page
import pictures
import reliability_page
import results_page
import scale_page
import versions_page

from neuroada_cli.commands.recipes import SCHEMA_FILE, schema_text
from neuroada_cli.suites.schema import Suite

DOCS = Path(__file__).parents[1]
# what editors check recipes and suites by
SCHEMAS = {
    DOCS.parent / "recipes" / SCHEMA_FILE: schema_text,
    DOCS.parent / "recipes" / "suites" / "suite.schema.json": lambda: schema_text(Suite),
}

PAGES: dict[str, Callable[[], str]] = {
    "cli": command_pages.cli_page,
    "comparison": comparison_page.page,
    "recipe": command_pages.recipe_page,
    "families": families_page.page,
    "mutants": mutants_page.page,
    "performance": performance_page.page,
    "reliability": reliability_page.page,
    "results": results_page.page,
    "scale": scale_page.page,
    "versions": versions_page.page,
}


def stale() -> list[str]:
    """The files that differ from what their maker gives."""
    files = {_file(name): make for name, make in PAGES.items()} | SCHEMAS
    found = [
        file for file, make in files.items() if file.exists() and file.read_text(encoding="utf-8") != make()
    ]
    return [str(file.relative_to(DOCS.parent)) for file in found]


def _file(name: str) -> Path:
    return DOCS / f"{name}.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *PAGES], help="which; default: all")
    parser.add_argument("--check", action="store_true", help="compare only")
    given = parser.parse_args()
    if given.check:
        if found := stale():
            sys.exit(f"not what `make docs` writes: {', '.join(found)}")
        return
    for name in given.names or PAGES:
        _file(name).write_text(PAGES[name](), encoding="utf-8")
    if not given.names:
        for file, make in SCHEMAS.items():
            file.write_text(make(), encoding="utf-8")
        pictures.draw_all()


if __name__ == "__main__":
    main()
