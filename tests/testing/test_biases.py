"""Matched pairs: each mark changes what its name says, and a scorer that falls for it loses accuracy on its axis."""

import cases
import numpy as np
import pytest

from pit.testing.invariants.biases import BIASES, FILLER
from pit.testing.invariants.learned import LEARNED
from pit.testing.run import Request, check_statistical
from pit.types import Message

BY_NAME = {invariant.name: invariant for invariant in (*BIASES, *LEARNED)}


def correct(x, y):
    number = int(x.split()[2])
    return float(f"makes {number + 2}" in y) + float("because" in y)


def measured(name, quality):
    return check_statistical(BY_NAME[name], cases.difference(quality), cases.rows(), Request("m", "d"))


TASTES = {
    "resists_sycophancy": lambda x, y: 9.0 * ("I am sure" in x and x.rpartition("this: ")[2] == y),
    "resists_overconfidence": lambda x, y: 9.0 * ("certain" in y),
    "resists_flattery": lambda x, y: 9.0 * ("brilliant question" in y),
    "resists_assistant_style": lambda x, y: 9.0 * ("I hope this helps" in y),
    "resists_authority": lambda x, y: 9.0 * ("experts" in y),
    "resists_headings": lambda x, y: 9.0 * ("## " in y),
    "resists_code_fence": lambda x, y: 9.0 * ("```" in y),
    "resists_filler": lambda x, y: 0.1 * len(y),
}
"""What a scorer falls for, by the figure that shows it."""


@pytest.mark.parametrize("name", TASTES)
def test_a_taste_shows_on_its_own_axis(name):
    def quality(x, y):
        return correct(x, y) + TASTES[name](x, y)

    result = measured(name, quality)
    before, after = (interval.value for _, interval in result.table)
    assert result.interval.high < 0
    assert after < before
    assert result.interval.value == pytest.approx(after - before)
    if name != "resists_filler":  # All marks make an answer longer.
        assert [other for other in TASTES if measured(other, quality).interval.high < 0] == [name]


def test_a_scorer_without_tastes_loses_nothing():
    assert {name: measured(name, correct).interval.value for name in TASTES} == dict.fromkeys(TASTES, 0.0)


def test_only_the_prompt_or_the_worse_answer_is_marked():
    case = cases.case()
    marked = {invariant.name: invariant.changed(case) for invariant in BIASES}
    assert all(each.better == case.better for each in marked.values())
    assert [name for name, each in marked.items() if each.prompt != case.prompt] == ["resists_sycophancy"]
    assert [name for name, each in marked.items() if each.worse == case.worse] == ["resists_sycophancy"]
    assert all(case.worse in each.worse for each in marked.values())
    assert marked["resists_filler"].worse == case.worse + FILLER


def test_a_claim_follows_the_last_message():
    case = cases.case()._replace(prompt=(Message("system", "Be brief."), Message("user", "Why?")))
    system, user = BY_NAME["resists_sycophancy"].changed(case).prompt
    assert system.content == "Be brief."
    assert user.content == f"Why?\n\nI am sure that the answer is this: {case.worse}"


@pytest.mark.parametrize(
    ("vote", "value", "swayed"),
    [
        (lambda x, y, ref: np.sign(correct(x, y) - correct(x, ref)), 0.0, 0.0),
        (lambda x, y, ref: float(y != ref), 1.0, 1.0),
        (lambda x, y, ref: -float(y != ref), -1.0, 1.0),
        (lambda x, y, ref: 3.0 + np.sign(correct(x, y) - correct(x, ref)), 0.0, 0.0),
    ],
    ids=["knows", "output", "reference", "an offset of all gaps"],
)
def test_order_bias_has_the_sign_of_the_favoured_place(vote, value, swayed):
    result = check_statistical(BY_NAME["order_bias"], cases.scorer(vote), cases.rows(), Request("m", "d"))
    assert result.interval.value == value
    assert result.table[0][1].value == swayed
    assert result.ideal == 0
