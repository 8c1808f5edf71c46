"""The faults of the catalogue can be put in, and the kinds that tests once missed have theirs."""

from __future__ import annotations

import json

import mutation
import pytest

ONCE_MISSED = (
    "attaching: a place holder on a chosen column",
    "attaching: extra deltas dropped by switch",
    "attaching: the mask of resting entries left out of a tied head's gradient",
    "files: a data hash that depends on the order of keys",
    "files: a dead process named as holder",
    "files: a locked file that is no longer the named one",
    "files: atomic_file renames before the data is on the disk",
    "files: pruning before the new link stands",
    "fingerprints: a key of the config that does not count",
    "merging: a missing pooler accepted",
    "merging: one of two stored copies of a tied weight replaced",
    "reading: a value at column -1 accepted",
    "reading: an end token added twice",
    "reported: a metric tie moves `best` and begins early stopping anew",
    "reported: a running mean of the loss that begins anew at --resume",
    "reported: no evaluation at the last step where eval_every does not divide the steps",
    "reported: optim.eps not passed on",
    "reported: the learning rate in the log and in own decay read from the wrong place",
    "selection: LIFT with rows of unequal length",
    "selection: a layer number taken from the expert's place in the name",
    "selection: layers outside the blocks under coverage: block",
    "selection: scores of the first row block used for every block",
    "selection: the tiled back-end takes the first block's columns for all",
    "taken: the last checkpoint in the best one's place",
)


@pytest.mark.slow  # so that whoever changes a line need not know of the catalogue; `make mutants` asks first
def test_every_fault_can_be_put_in() -> None:
    assert [f"{each.file}: {each.was}" for each in mutation.catalogue() if each.stale()] == []


def test_every_selection_of_tests_is_there() -> None:
    named = {test.partition("::")[0] for each in mutation.catalogue() for test in each.tests}
    assert [name for name in sorted(named) if not (mutation.ROOT / name).exists()] == []


def test_every_kind_that_was_once_missed_has_a_fault_that_is_caught() -> None:
    assert {each.kind for each in mutation.catalogue() if each.kind} == set(ONCE_MISSED)
    tried = {
        entry["about"]: entry for entry in json.loads(mutation.RESULTS.read_text(encoding="utf-8"))["tried"]
    }
    for each in mutation.catalogue():
        if each.kind:
            assert "::" in tried[each.about]["caught by"], each.about


def test_those_of_a_kind_get_their_turn_first_and_all_get_one() -> None:
    order = mutation.in_turn(mutation.catalogue())
    named = sum(bool(each.kind) for each in order)
    assert all(each.kind for each in order[:named])
    assert set(order) == set(mutation.catalogue())
