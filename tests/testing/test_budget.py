"""The time of a check: what is scored once, in which order, what is left out where time runs out, and who says so."""

import itertools

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit.testing.adapters import Difference, GapFunction, QualityFunction
from pit.testing.budget import left_out, longest_text
from pit.testing.errors import DtypeError, InvariantError, ScorerCrashError, ShapeError
from pit.testing.invariants import ALL, Material, Statistical
from pit.testing.report import Result, Status
from pit.testing.run import Request, run_check, select
from pit.testing.scorers import Item, gaps
from pit.testing.scoring import ItemScores, score_cases
from pit.testing.search import Timed, find_counterexample
from pit.testing.strategies.text import LONGEST
from pit.types import Message

ASK = (Message("user", "Why?"),)
BY_NAME = {invariant.name: invariant for invariant in ALL}


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_each_text_of_a_quality_scorer_is_scored_once_and_short_ones_first():
    calls = []

    def quality(prompts, outputs):
        calls.append(outputs)
        return np.array([len(output) for output in outputs], np.float32)

    scorer = Difference(QualityFunction(quality))
    scores = ItemScores(scorer)
    items = [Item(ASK, *pair) for pair in itertools.product(("aaa", "b", "cc"), repeat=2)]
    scores.add(items)
    scores.add([*items, Item(ASK, "dddd", "b")])
    assert calls == [["b", "cc", "aaa"], ["dddd"]]
    assert [scores[item] for item in items] == gaps(scorer, items).tolist()
    assert scores[Item(ASK, "dddd", "b")] == 3.0


@pytest.mark.parametrize(
    ("quality", "error"),
    [
        (lambda x, y: np.zeros(1, np.float32), ShapeError),
        (lambda x, y: np.zeros(len(y)), DtypeError),
        (lambda x, y: y.no_such_method, ScorerCrashError),
    ],
)
def test_what_a_quality_scorer_returns_is_checked(quality, error):
    with pytest.raises(error, match=r"^quality\(\) "):
        ItemScores(Difference(QualityFunction(quality))).add([Item(ASK, "a", "b")])


@pytest.mark.parametrize(("ends", "rows"), [(1e9, 40), (100.0, 10), (0.0, 2)])
def test_rows_are_scored_while_there_is_time_for_the_next(ends, rows):
    clock, lines = Clock(), []

    def gap(prompts, outputs, references):
        clock.now += 5.0 * len(outputs)
        return np.zeros(len(outputs), np.float32)

    items = [[Item(ASK, f"{row} {k}", "") for k in range(2)] for row in range(40)]
    scores = ItemScores(GapFunction(gap))
    assert score_cases(scores, items, ends, lines.append, clock) == rows
    assert clock.now == 10 * rows
    assert scores[items[rows - 1][1]] == 0.0
    assert lines[0] == f"row 1 of 40, at most {min(390, max(0, ends - 10)):.0f} s left"


def test_quick_scorers_get_many_rows_at_once():
    sizes = []

    def gap(prompts, outputs, references):
        sizes.append(len(outputs))
        return np.zeros(len(outputs), np.float32)

    items = [[Item(ASK, f"{row} {k}", "") for k in range(60)] for row in range(20)]
    assert score_cases(ItemScores(GapFunction(gap)), items, 1e9, lambda line: None, Clock()) == 20
    assert sizes[:4] == [60, 120, 240, 240]


def searched(test, ends):
    """Return the result of a search that tries an example per second, and how many it tried."""
    clock = Clock()

    def check(scorer, example):
        clock.now += 1.0
        test(example)

    invariant = BY_NAME["well_formed"]
    object.__setattr__(timed := Timed(invariant, ends, clock), "_check", check)
    timed.examples, timed.always = (lambda material: st.integers(0, 10**6)), (lambda: (7, 8))
    result = find_counterexample(timed, Material(None, ()), examples=50, seed=0)
    return result, timed


def test_a_search_ends_in_time_and_says_what_it_tried():
    result, timed = searched(lambda example: None, 10.5)
    assert (result, timed.tried, timed.cut) == (None, 11, True)
    assert searched(lambda example: None, 1e9)[1].cut is False
    assert searched(lambda example: None, -1.0)[1].tried == 1


def test_a_counterexample_outlives_the_time_of_its_search():
    def fails_above(example):
        if example > 100:
            raise InvariantError(f"{example} is too much")

    result, _ = searched(fails_above, 1e9)
    assert (result.example, result.message) == (101, "101 is too much")
    cut, timed = searched(fails_above, 4.5)
    assert cut.example > 101
    assert cut.message == f"{cut.example} is too much"
    assert timed.tried <= 6


def test_slow_scorers_get_shorter_texts(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("pit.testing.budget.time.perf_counter", clock)

    def gap(prompts, outputs, references):
        clock.now += len(outputs[0]) / 1000  # 256 characters take a quarter of a second.
        return np.zeros(len(outputs), np.float32)

    assert longest_text(GapFunction(gap), None) == LONGEST
    assert longest_text(object(), 300.0) == LONGEST
    assert [longest_text(GapFunction(gap), seconds) for seconds in (1e5, 410.0, 1.0)] == [LONGEST, 1024, 256]


@settings(max_examples=50)
@given(items=BY_NAME["well_formed"].examples(Material(None, (), 8)))
def test_texts_of_examples_are_as_long_as_the_material_says(items):
    texts = [text for item in items for text in (item.output, item.reference, *(said for _, said in item.prompt))]
    assert max(map(len, texts)) <= 8


def test_what_there_was_no_time_for_is_said():
    def result(examples, status=Status.HELD, kind="exact"):
        return Result("name", kind, "", "", status, examples=examples)

    assert left_out([result(30), result(2, Status.VIOLATED), result(3, Status.MEASURED, "bias")], 30, 4, 4) == []
    assert left_out([result(30), result(7), result(9)], 30, 12, 60) == [
        "2 of 3 exact invariants that hold had no time for all of 30 examples after the fixed ones; the fewest are 7",
        "figures are of 12 of 60 rows, for which there was time",
    ]


def test_a_check_without_time_measures_two_rows_and_a_long_text_and_names_them(monkeypatch):
    """Long texts come last, so that a slow model has figures of everything else before."""
    seen = []

    def quality(prompts, outputs):
        seen.extend(outputs)
        return np.array([len(output) for output in outputs], np.float32)

    request = Request("model", "data", 3, seconds=1e-9)
    chosen = select(["batch_size", "accuracy", "reads_the_end", "above_nothing"])
    rows = cases.rows(6)
    report = run_check(Difference(QualityFunction(quality)), rows, request, invariants=chosen)
    by_name = {each.name: each for each in report.results}
    assert {name: each.examples for name, each in by_name.items()} == {
        "batch_size": 0,
        "accuracy": 2,
        "reads_the_end": 1,
        "above_nothing": 2,
    }
    assert (report.rows, report.notes[-1]) == (2, "figures are of 2 of 6 rows, for which there was time")
    # The exact invariants come last; their first text is one whose time is taken.
    figures = seen[: next(place for place, text in enumerate(seen) if text.startswith("red red"))]
    assert max(map(len, seen)) == max(map(len, figures[-6:]))
    # A later check of as many rows has the same digest and figures, whatever its time.
    again = run_check(
        Difference(QualityFunction(quality)), rows, request._replace(seconds=None, measured=2), invariants=chosen
    )
    assert (again.digest, again.rows, len(again.notes)) == (report.digest, 2, 0)
    assert next(each for each in again.results if each.name == "above_nothing").interval == (
        by_name["above_nothing"].interval
    )
    assert all(isinstance(BY_NAME[name], Statistical) for name in ("accuracy", "reads_the_end"))
