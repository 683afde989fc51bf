"""Every wrong variant is caught by the invariant that is meant for it, and the right ones are not."""

import itertools
import re
from pathlib import Path

import cases
import pytest
from degenerate import right
from mutants import MUTANTS

from pit.testing.invariants import ALL, LEARNED
from pit.testing.report import Status
from pit.testing.run import Request, run_check

BY_NAME = {each.name: each for each in ALL}
TIES = ("length_bias", "calibration")
"""Figures whose right value is 0; the others have a floor, or are 0 or below where something is lost."""


def caught(result):
    """Whether a result says that something is wrong."""
    if result.kind == "exact":
        return result.status == Status.VIOLATED
    if result.name in TIES:
        return result.interval.low > 0.05
    return result.interval.low <= result.floor if result.floor is not None else result.interval.high < 0


def result_of(scorer, name, examples=40):
    (result,) = run_check(scorer, cases.rows(), Request("mutant", "data", examples), invariants=[BY_NAME[name]]).results
    return result


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(each, id=f"{each.part}: {each.what}", marks=[pytest.mark.slow] if each.slow else [])
        for each in MUTANTS
    ],
)
def test_a_mutant_is_caught_by_its_invariant(mutant):
    with mutant.patch():
        result = result_of(mutant.make(), mutant.caught_by)
    assert caught(result), (result.status, result.detail, result.interval)


@pytest.mark.parametrize("name", sorted({each.caught_by for each in MUTANTS if each.part == "degenerate"}))
def test_a_good_scorer_is_not_caught(name):
    def quality(x, y):
        words = y.split()
        return 6 * right(x, y) - sum(one == two for one, two in itertools.pairwise(words))

    assert not caught(result_of(cases.difference(quality), name))


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 25
    assert len({(each.part, each.what) for each in MUTANTS}) == len(MUTANTS)
    assert {each.name for each in LEARNED} & {each.caught_by for each in MUTANTS}


def test_the_documents_show_the_tables():
    text = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([a-z_]+)` \|$", text, re.MULTILINE)
    assert rows == [(each.part, each.what, each.caught_by) for each in MUTANTS]
    described = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert described == [each.name for each in ALL]
    for each in ALL:
        assert each.statement.replace("|", r"\|") in text, each.name
