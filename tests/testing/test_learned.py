"""Figures against values worked out by hand from made-up scores."""

import cases
import numpy as np
import pytest

from pit.testing.errors import CheckError, InvariantError
from pit.testing.invariants import ALL, BEHAVIOURAL, BIASES, CHOICES, EXACT, LEARNED, SAMPLER, Case
from pit.testing.invariants.behavioural import first_half, repeat_end, replace_words
from pit.testing.run import cases_of, select
from pit.testing.scorers import Item
from pit.types import Message, Preference

BY_NAME = {invariant.name: invariant for invariant in ALL}
ASK = (Message("user", "why"),)


def case(better="one two three four", worse="five six", other="a b", number=0):
    return Case(ASK, better, worse, other, number)


def measured(name, scores, cases=None):
    scores = np.array(scores, np.float64)
    return BY_NAME[name].measure(cases or [case(number=i) for i in range(len(scores))], scores)


# Columns are r(w,l), r(w,w), r(l,l), r(l,w).
GOOD, TIED, BAD = (3, 1, 1, -1), (1, 1, 1, 1), (-2, 1, 0, 2)


@pytest.mark.parametrize(
    "name", ["order_wl_ww", "order_wl_ll", "order_wl_lw", "order_ww_lw", "order_ll_lw", "order", "accuracy"]
)
def test_an_order_counts_a_tie_half(name):
    """One case is right, one tied, one wrong; of two right and one tied, the share is 5/6."""
    assert measured(name, [GOOD, GOOD, TIED]).interval.value == pytest.approx(5 / 6)
    measurement = measured(name, [GOOD, TIED, BAD])
    assert measurement.interval.value == pytest.approx(0.5)
    assert np.sign(measurement.margins).tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("scores", "failing"),
    [
        ((1, 2, 0, -1), ["order_wl_ww"]),
        ((1, 0, 2, -1), ["order_wl_ll"]),
        ((1, 0, 1, 0.5), ["order_ww_lw"]),
        ((1, 1, 0, 0.5), ["order_ll_lw"]),
        ((1, 1, 1, 2), ["order_wl_lw", "order_ww_lw", "order_ll_lw"]),
    ],
)
def test_each_pair_has_a_separate_order(scores, failing):
    names = [invariant.name for invariant in LEARNED if invariant.name.startswith("order_")]
    assert [name for name in names if measured(name, [scores]).margins[0] < 0] == failing
    assert measured("order", [scores]).margins[0] < 0


def test_scores_are_alike_within_a_tenth_of_a_standard_deviation():
    """r(w,l) - r(l,w) is 4, -4, 4, -4: its standard deviation is 4, so identities are alike below .4."""
    scores = [(2, 0.39, 0, -2), (-2, 0.41, 0, 2), (2, 0, 0.39, -2), (-2, 0, 0, 2)]
    measurement = measured("identity_alike", scores)
    assert measurement.interval.value == 0.75
    np.testing.assert_allclose(measurement.margins, [0.01, -0.01, 0.01, 0.4])


def test_antisymmetry_adds_the_two_orders():
    """Spread 4 again; r(w,l) + r(l,w) - r(w,w) - r(l,l) is 0 and 1."""
    measurement = measured("antisymmetry", [(3, 0.5, 0.5, -2), (-2, 0, 0, 2), (2, 0, 0, -2), (-2, 1, -2, 2)])
    np.testing.assert_allclose(measurement.margins, 0.1 * np.std([5, -4, 4, -4]) - np.array([0, 0, 0, 1]))
    assert measurement.interval.value == 0.75


def test_a_cycle_counts_in_both_directions():
    """Links a > b, b > c, c > a, each score against its other order."""
    up, down, line = (1, 0, 1, 0, 1, 0), (0, 1, 0, 1, 0, 1), (1, 0, 1, 0, 0, 1)
    measurement = measured("transitivity", [up, down, line, line])
    assert measurement.interval.value == 0.5
    assert measurement.margins.tolist() == [-1, -1, 1, 1]


def test_growth_counts_steps():
    """Leads 1, 2, 3: two of two steps; 1, 3, 2: one of two; 1, 1, 0: half of one."""
    scores = [(1, 0, 2, 0, 3, 0), (1, 0, 3, 0, 2, 0), (1, 0, 1, 0, 0, 0)]
    measurement = measured("growth", scores)
    assert measurement.interval.value == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert measurement.margins.tolist() == [1, -1, -1]


def test_accuracy_has_a_table_by_gap_and_length():
    pairs = [
        case("longer text", "short"),
        case("short", "longer text"),
        case("same", "size"),
        case("longer text", "short"),
    ]
    measurement = measured("accuracy", [(4, 0, 0, 0), (3, 0, 0, 0), (0, 0, 0, 2), (0, 0, 0, 1)], pairs)
    assert measurement.interval.value == 0.5
    assert [(label, interval.value, interval.n) for label, interval in measurement.table] == [
        ("gap in quarter 1 of 4", 0.0, 1),
        ("gap in quarter 2 of 4", 0.0, 1),
        ("gap in quarter 3 of 4", 1.0, 1),
        ("gap in quarter 4 of 4", 1.0, 1),
        ("better is shorter", 1.0, 1),
        ("equal length", 0.0, 1),
        ("better is longer", 0.5, 2),
    ]


def test_length_bias_is_the_difference_from_the_data():
    """The longer answer is better in 1 of 4 and preferred in 3 of 4."""
    pairs = [case("long text", "ab")] + [case("ab", "long text")] * 3
    measurement = measured("length_bias", [(1, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 1), (1, 0, 0, 0)], pairs)
    assert measurement.interval.value == 0.5


def test_calibration_of_one_confidence():
    """Confidence sigmoid(1) = .731, right in half of the cases: off by .231."""
    measurement = measured("calibration", [(1, 0, 0, 0), (0, 0, 0, 1)])
    assert measurement.interval.value == pytest.approx(0.2310586)
    ((label, share),) = measurement.table
    assert (label, share.value, share.n) == ("confidence 0.73", 0.5, 2)


def test_an_invariance_is_a_difference_of_accuracies():
    """Columns: both orders before, both after. One ranking is lost, one won, one kept."""
    measurement = measured("survives_bold", [(1, 0, 0, 2), (0, 1, 1, 0), (1, 0, 1, 0), (1, 0, 0, 1)])
    assert measurement.interval.value == pytest.approx(0.5 - 0.75)
    assert [(label, interval.value) for label, interval in measurement.table] == [
        ("accuracy before", 0.75),
        ("accuracy after", 0.5),
    ]
    assert measurement.margins.tolist() == [-2, 1, 1, -1]


def test_directions_and_rivals_compare_leads():
    assert measured("half_is_worse", [(3, 0, 1, 0), (1, 0, 3, 0)]).margins.tolist() == [2, -2]
    assert measured("above_nothing", [(3, 1), (1, 3)]).margins.tolist() == [2, -2]


def test_the_items_of_a_case():
    pair = case()
    assert BY_NAME["accuracy"].items(pair) == (
        Item(ASK, pair.better, pair.worse),
        Item(ASK, pair.better, pair.better),
        Item(ASK, pair.worse, pair.worse),
        Item(ASK, pair.worse, pair.better),
    )
    assert BY_NAME["above_nothing"].items(pair) == (Item(ASK, pair.better, ""), Item(ASK, "", pair.better))
    assert BY_NAME["above_copy_of_prompt"].items(pair)[0].reference == "why"
    assert BY_NAME["survives_politeness"].items(pair)[2:] == (
        Item(ASK, pair.better, "five six Thank you for asking!"),
        Item(ASK, "five six Thank you for asking!", pair.better),
    )


def test_spoiled_answers():
    assert first_half("one two three four") == "one two"
    assert replace_words(case(), 0.5) == "one b three b"
    assert replace_words(case(), 0.0) == "one two three four"
    assert replace_words(case(), 1.0) == "a b a b"
    assert repeat_end("one two") == "one two two two two two two two"


def test_unusable_cases_are_left_out():
    assert not BY_NAME["survives_list_order"].usable(case())
    assert not BY_NAME["matched_length"].usable(case())
    assert BY_NAME["matched_length"].usable(case("four", "five"))
    assert not BY_NAME["length_bias"].usable(case("four", "five"))
    assert not BY_NAME["half_is_worse"].usable(case(better=""))
    assert not BY_NAME["growth"].usable(case(better="one"))


def test_one_case_is_checked_alone():
    good = cases.difference(lambda x, y: float(len(y)))
    BY_NAME["accuracy"].check(good, case())
    with pytest.raises(InvariantError, match=r"^accuracy: .* fails by 20$"):
        BY_NAME["accuracy"].check(good, case("ab", "twelve signs"))


def test_names_are_unique_and_select_by_name_or_kind():
    assert len(BY_NAME) == len(ALL) == sum(map(len, (EXACT, BEHAVIOURAL, BIASES, LEARNED, CHOICES, SAMPLER)))
    assert [invariant.name for invariant in select(["batch_size"])] == ["batch_size"]
    assert select(["learned"]) == (*LEARNED, *CHOICES)
    assert select([]) == ALL
    with pytest.raises(CheckError, match=r"^--invariant speed: .*exact, .*batch_size, "):
        select(["speed"])


@pytest.mark.parametrize("rows", [[], [Preference(ASK, "a", "b")], [Preference(ASK, "a", "b")] * 3])
def test_data_without_two_prompts_are_refused(rows):
    with pytest.raises(
        CheckError, match=rf"^pairs.jsonl: holds {len(rows)} pairs, must hold at least 2 with different"
    ):
        cases_of(rows, "pairs.jsonl")


def test_a_case_has_an_answer_to_another_prompt():
    other = (Message("user", "how"),)
    rows = [Preference(ASK, "a", "b"), Preference(ASK, "c", "d"), Preference(other, "e", "f")]
    assert [case.other for case in cases_of(rows)] == ["e", "e", "a"]
