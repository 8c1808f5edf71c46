"""The table of docs/versions.md is of the versions that pyproject.toml allows, and nothing failed in it."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path

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
    held = {Requirement(line).name for line in newest}
    assert held >= {"pytest", "hypothesis"}
    assert not held & ends.asked_for().keys()


def test_what_runs_here_lies_between_the_ends() -> None:
    here = {each.name.lower(): each.version for each in metadata.distributions() if each.name}
    found = {name: here[name.lower()] for name in ends.asked_for() if name.lower() in here}
    assert {"torch", "transformers", "peft", "datasets", "bitsandbytes"} <= found.keys()
    for name, version in found.items():
        assert ends.asked_for()[name].specifier.contains(version, prereleases=True), name


def test_every_test_file_is_in_a_room() -> None:
    files = {str(file.relative_to(ends.ROOT)) for file in (ends.ROOT / "tests").rglob("test_*.py")}
    told = [place for places in ends.rooms().values() for place in places]
    assert all(any(file == place or file.startswith(f"{place}/") for place in told) for file in files)


def test_counting(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        "<testsuites><testsuite><testcase classname='a' name='one'/>"
        "<testcase classname='a' name='two'><failure message='m'/></testcase>"
        "<testcase classname='a' name='three'><error message='m'/></testcase>"
        "<testcase classname='a' name='three'><failure message='m'/></testcase></testsuite></testsuites>"
    )
    (tmp_path / "b.xml").write_text(
        "<testsuites><testsuite><testcase classname='b' name='one'><skipped message='no GPU'/></testcase>"
        "<testcase classname='b' name='two'/></testsuite></testsuites>"
    )
    assert ends.counts([tmp_path / "a.xml", tmp_path / "b.xml"]) == {
        "passed": 2,
        "skipped": {"no GPU": 1},
        "failed": ["a::three", "a::two"],
    }


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
    assert all(each["passed"] and not each["failed"] for each in found.values())
    for each in found.values():  # a folder that was added since is in the next one
        assert len(each["rooms"]) >= len(ends.rooms()) - 2
