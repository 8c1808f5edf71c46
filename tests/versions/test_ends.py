"""The table of docs/versions.md is of the versions that pyproject.toml allows, and nothing failed in it."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata

import ends
import pytest
from packaging.requirements import Requirement


def test_everything_asked_for_names_the_first_version_it_allows() -> None:
    asked = ends.asked_for()
    assert {"torch", "transformers", "peft", "typer", "safetensors", "accelerate"} <= asked.keys()
    assert all(ends.first_allowed(requirement) for requirement in asked.values())
    with pytest.raises(ValueError, match="names no first version"):
        ends.first_allowed(Requirement("torch<3"))


def test_the_lowest_end_is_held_to_first_versions_and_the_newest_to_none() -> None:
    lowest, newest = ends.constraints("lowest"), ends.constraints("newest")
    first = re.search(r'"transformers>=([\d.]+)"', (ends.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert first is not None
    assert f"transformers=={first[1]}" in lowest
    assert {line.partition("==")[0] for line in newest} >= {"pytest", "hypothesis"}
    assert not {line.partition("==")[0] for line in newest} & ends.asked_for().keys()


def test_what_runs_here_lies_between_the_ends() -> None:
    for name, requirement in ends.asked_for().items():
        assert requirement.specifier.contains(metadata.version(name), prereleases=True), name


@pytest.mark.skipif(ends.MAKING in os.environ, reason="the table is being made")
def test_the_table_is_of_both_ends_and_nothing_failed() -> None:
    found = json.loads(ends.RESULTS.read_text(encoding="utf-8"))
    assert found.keys() == set(ends.ENDS)
    asked = ends.asked_for()
    for name in asked.keys() & found["lowest"]["versions"].keys():  # what was added since is in the next one
        lowest, newest = (found[end]["versions"][name] for end in ends.ENDS)
        requirement = asked[name]
        assert Requirement(f"x=={ends.first_allowed(requirement)}").specifier.contains(lowest), (
            f"{name}: `make test-versions` ran with {lowest}; run it again"
        )
        assert requirement.specifier.contains(newest, prereleases=True), name
    assert all(each["passed"] > 1000 and not each["failed"] for each in found.values())
