"""Every wrong wiring is caught by the test that is meant for it, and the documents show the table."""

import importlib
import re
from pathlib import Path

import pytest
from joint_mutants import MUTANTS
from world import forgotten

PAGE = Path(__file__).parents[2] / "docs" / "studies" / "wiring-mutants.md"


def test_of(name):
    """Return the test of a name, a module's and a function's."""
    module, function = name.split(".")
    return getattr(importlib.import_module(module), function)


test_of.__test__ = False


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=f"{mutant.joint}: {mutant.what}") for mutant in MUTANTS])
def test_a_mutant_is_caught_by_its_test(mutant):
    # Any failure will do: where the code itself refuses what is wrong, the test is as red.
    with forgotten(), mutant.patch(), pytest.raises((Exception, pytest.fail.Exception)):
        test_of(mutant.caught_by)()


def test_there_are_enough_mutants_of_every_kind():
    assert len(MUTANTS) >= 42
    assert len({(mutant.joint, mutant.what) for mutant in MUTANTS}) == len(MUTANTS)


def test_the_documents_show_the_table():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([a-z_.0-9]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(mutant.joint, mutant.what, mutant.caught_by) for mutant in MUTANTS]
