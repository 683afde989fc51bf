"""Best-of-N, ties, styles and rulers against values worked out by hand, and properties of the credit."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.testing.adapters import Difference, QualityFunction
from pit.testing.invariants import ALL, Case
from pit.testing.invariants.choices import RULERS, credit, share_difference
from pit.testing.questions import Question
from pit.testing.run import Request, check_statistical
from pit.testing.scorers import prompt_text
from pit.types import Message

BY_NAME = {invariant.name: invariant for invariant in ALL}


def asked(number):
    return (Message("user", f"What is {number} and one?"),)


def question(number, good, bad, subset="", styled=False):
    return Question(asked(number), tuple(good), tuple(bad), subset, styled)


def measured(name, rows, quality):
    """Return the result of a figure for a quality of a prompt's text and an answer."""
    function = QualityFunction(lambda xs, ys: np.array([quality(x, y) for x, y in zip(xs, ys, strict=True)], "f4"))
    return check_statistical(BY_NAME[name], Difference(function), rows, Request("m", "d"))


def table(result):
    return {label: interval.value for label, interval in result.table}


ranks = st.integers(-2, 2)


@given(st.lists(ranks, min_size=1, max_size=3), st.lists(ranks, min_size=1, max_size=3))
def test_credit_is_the_chance_that_a_random_order_of_ties_is_right(good, bad):
    """Every order that the scores permit is counted, and those with all good answers first are right."""
    answers = [(score, index < len(good)) for index, score in enumerate([*good, *bad])]
    orders = [
        order
        for order in itertools.permutations(range(len(answers)))
        if all(answers[a][0] >= answers[b][0] for a, b in itertools.pairwise(order))
    ]
    right = sum(all(answers[index][1] for index in order[: len(good)]) for order in orders)
    leads = np.array([[float(g - b) for b in bad] for g in good])
    assert credit(leads) == pytest.approx(right / len(orders))


def test_best_of_n_needs_every_good_answer_above_every_bad_one():
    rows = [
        question(1, ["dddd"], ["a", "bb", "ccc"], "Math"),
        question(2, ["bb"], ["a", "ccc", "dddd"], "Math"),
        question(3, ["ccc", "dddd"], ["a"], "Focus"),
        question(4, ["ccc"], ["a"], "Pair"),
    ]
    result = measured("best_of_n", rows, lambda x, y: len(y))
    assert result.interval[0] == pytest.approx(2 / 3)
    assert result.examples == 3
    assert table(result) == {"Math": 0.5, "Focus": 1.0}
    assert result.floor == pytest.approx((1 / 4 + 1 / 4 + 1 / 3) / 3)
    assert "'bb' over 'dddd'" in result.counterexample


def test_a_constant_scorer_is_at_the_floor():
    rows = [question(i, ["a"], ["b", "c", "d"]) for i in range(4)]
    result = measured("best_of_n", rows, lambda x, y: 1.0)
    assert result.interval.value == result.floor == 0.25


def test_good_answers_are_alike_where_they_lie_closer_than_the_bad_one():
    """Lengths 5, 6 against 1 are alike; 3, 9 against 2 are not; 9, 3 neither."""
    rows = [
        question(1, ["aaaaa", "aaaaaa"], ["a"]),
        question(2, ["aaa", "aaaaaaaaa"], ["aa"]),
        question(3, ["aaaaaaaaa", "aaa"], ["aa"]),
        question(4, ["aaa"], ["aa"]),
    ]
    result = measured("good_alike", rows, lambda x, y: len(y))
    assert (result.interval.value, result.examples) == (pytest.approx(1 / 3), 3)


def test_hard_styles_are_those_where_the_bad_answer_is_fancier():
    """A scorer by length is right where the good answer is fancier, and wrong where the bad one is."""
    rows = [question(i, ["a", "aaa", "aaaaa"], ["b", "bbb", "bbbbb"], "chat", True) for i in range(3)]
    result = measured("hard_styles", rows, lambda x, y: len(y))
    assert result.interval.value == 0
    assert table(result) == {"the same style": 0.5, "the good answer is fancier": 1.0, "chat": 0.0}
    assert measured("hard_styles", rows, lambda x, y: float(y[0] == "a")).interval.value == 1
    assert measured("best_of_n", rows, lambda x, y: len(y)).detail == "no case of the data is usable for it"


def test_rulers_rank_by_length_and_overlap():
    prompt = (Message("user", "Name a red fruit"),)
    assert {name: ruler(prompt, "A RED apple") for name, ruler in RULERS.items()} == {
        "longer": 11.0,
        "shorter": -11.0,
        "longer prompt overlap": 2.0,
    }


def test_a_scorer_is_compared_with_the_ruler_that_it_exceeds_least_surely():
    """In 30 of 40 questions the good answer is longer; a scorer by length is no better, one that knows is."""
    rows = [
        question(i, ["right"], ["no"] if i % 4 else ["wrong answer"], "even" if i % 2 else "odd") for i in range(40)
    ]
    by_length = measured("above_rulers", rows, lambda x, y: len(y))
    assert by_length.interval[:3] == (0, 0, 0)
    assert by_length.detail == "not distinguishable from 0; not shown to be better than 'longer'"
    shares = table(by_length)
    assert (shares["all: model"], shares["all: longer"], shares["all: shorter"]) == (0.75, 0.75, 0.25)
    assert shares["all: longer prompt overlap"] == 0.5
    assert (shares["even: longer"], shares["odd: longer"]) == (1.0, 0.5)
    assert shares["all: model - longer"] == 0
    knows = measured("above_rulers", rows, lambda x, y: float("right" in y))
    assert knows.interval.value == 0.25
    assert knows.detail == "above 0; better than every ruler"
    assert table(knows)["even: model - longer"] == 0


def test_a_few_questions_are_no_evidence_against_a_ruler():
    """Three of three wins over "longer" and "shorter" in turn leave an interval that holds 0."""
    rows = [question(i, ["right"], ["wrong answer"]) for i in range(3)]
    result = measured("above_rulers", rows, lambda x, y: float("right" in y))
    assert result.interval.value in (0.0, 0.5, 1.0)
    assert result.interval.low <= 0
    assert "not shown to be better than" in result.detail


@given(st.lists(st.tuples(st.sampled_from((0.0, 0.5, 1.0)), st.sampled_from((0.0, 0.5, 1.0))), min_size=1, max_size=30))
def test_a_difference_lies_in_its_interval_and_is_antisymmetric(pairs):
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    forward, backward = share_difference(first, second), share_difference(second, first)
    assert -1 <= forward.low <= forward.value <= forward.high <= 1
    assert (backward.value, backward.low, backward.high) == pytest.approx((-forward.value, -forward.high, -forward.low))


def test_a_difference_without_losses_is_wilsons():
    """Of six wins the interval of 2 p - 1 begins at 0.22, of three below 0."""
    assert share_difference(np.ones(6), np.zeros(6)).low == pytest.approx(2 * 6 / (6 + 1.959964**2) - 1)
    assert share_difference(np.ones(3), np.zeros(3)).low < 0 < share_difference(np.ones(6), np.zeros(6)).low


def test_pairs_of_a_question_share_its_first_answers():
    case = Case.of(question(1, ["a", "b"], ["c", "d"], "Math"), "other", 5)
    assert (case.better, case.worse, case.good, case.bad, case.subset) == ("a", "c", ("a", "b"), ("c", "d"), "Math")
    assert prompt_text(case.prompt) == "What is 1 and one?"
