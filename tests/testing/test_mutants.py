"""Every mutant is caught by the invariant that is meant for it; a good scorer is not caught by those of the data."""

import itertools
import re
from pathlib import Path

import cases
import pytest
from degenerate import correct
from mutants import MUTANTS

from pit.testing.invariants import ALL, Exact, Material
from pit.testing.run import Request, check_statistical
from pit.testing.search import find_counterexample

BY_NAME = {invariant.name: invariant for invariant in ALL}
BIASES = ("length_bias", "calibration", "order_bias")
"""Figures whose ideal value is 0; the others have a floor, or are negative where accuracy is lost."""


def is_caught(scorer, name):
    """Return whether an invariant reports a fault of a scorer."""
    invariant = BY_NAME[name]
    if isinstance(invariant, Exact):
        material = Material(scorer, cases.rows())
        return find_counterexample(invariant, material, examples=40, seed=0, shrink=False) is not None
    result = check_statistical(invariant, scorer, cases.rows(), Request("mutant", "data"))
    assert result.interval is not None, result.detail
    if name == "reads_the_end":
        return result.interval.high < 1
    if name in BIASES:
        return result.interval.low > 0.05
    return result.interval.low <= result.floor if result.floor is not None else result.interval.high < 0


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=f"{mutant.part}: {mutant.fault}", marks=[pytest.mark.slow] if mutant.slow else [])
        for mutant in MUTANTS
    ],
)
def test_a_mutant_is_caught_by_its_invariant(mutant):
    with mutant.patch():
        assert is_caught(mutant.make(), mutant.caught_by)


@pytest.mark.parametrize("name", sorted({mutant.caught_by for mutant in MUTANTS if mutant.part == "degenerate"}))
def test_a_good_scorer_is_not_caught(name):
    def quality(x, y):
        words = y.split()
        return 6 * correct(x, y) - sum(first == second for first, second in itertools.pairwise(words))

    assert not is_caught(cases.difference(quality), name)


def test_mutants_are_distinct_and_cover_every_part():
    assert len({(mutant.part, mutant.fault) for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.part for mutant in MUTANTS} == {
        "packer",
        "model",
        "loss",
        "scorer",
        "served",
        "sampler",
        "degenerate",
    }
    assert {BY_NAME[mutant.caught_by].kind for mutant in MUTANTS} >= {"exact", "invariance", "bias", "learned"}


def escaped(text):
    """Return a text as a cell of a Markdown table."""
    return text.replace("|", r"\|")


def test_the_documents_show_the_tables():
    text = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([a-z_]+)` \|$", text, re.MULTILINE)
    assert rows == [(mutant.part, mutant.fault, mutant.caught_by) for mutant in MUTANTS]
    described = re.findall(r"^\| `([a-z_]+)` \|", text.partition("## Invariants")[2], re.MULTILINE)
    assert described == [invariant.name for invariant in ALL]
    for invariant in ALL:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{invariant.name}` |"))
        assert f" {escaped(invariant.statement)} |" in row
        if isinstance(invariant, Exact):
            needs = ", ".join(sorted(f"`{method.value}`" for method in invariant.needs))
            assert row.endswith(f"| {needs} | {escaped(invariant.tolerance)} |")
        else:
            floor = "" if invariant.floor is None else f"{invariant.floor:g}"
            assert row.endswith(f"| {floor} |")
