"""Intervals against worked examples, simple reference implementations and the properties of a comparison."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.evaluate import stats

FEW = 50
"""Resamples in properties that hold for any number of them."""

scores = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[hnp.arrays(np.float64, n, elements=st.integers(-5, 5).map(float))] * 2)
)


def test_delta_counts_wins_losses_and_ties() -> None:
    d = stats.delta(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([0.0, 2.0, 4.0, 3.0, 4.0]), seed=0)
    # wins at 0, 3, 4; a loss at 2; a tie at 1: 100 * (3 - 1) / 5
    assert (d.win, d.lose, d.tie, d.n) == (3, 1, 1, 5)
    assert d.value == 40.0
    assert d.method == "paired bootstrap over prompts, 2000 resamples"


def test_the_tie_band_is_closed() -> None:
    d = stats.delta(np.array([1.0, 1.5, 0.0]), np.array([0.5, 0.5, 0.75]), tie=0.5)
    assert (d.win, d.lose, d.tie) == (1, 1, 1)


def test_a_tie_of_zero_never_swallows_a_difference() -> None:
    tiny = np.nextafter(0.0, 1.0)
    assert stats.delta(np.array([tiny]), np.array([0.0])).win == 1


def test_delta_interval_is_the_quantiles_of_the_resampled_deltas() -> None:
    rng = np.random.default_rng(3)
    candidate, baseline = rng.normal(size=(2, 30))
    twin_rng = np.random.default_rng(7)
    outcome = np.sign(candidate - baseline)
    deltas = [100 * outcome[index].mean() for index in twin_rng.integers(0, 30, size=(200, 30))]
    d = stats.delta(candidate, baseline, seed=7, resamples=200)
    np.testing.assert_allclose((d.low, d.high), np.quantile(deltas, [0.025, 0.975]), atol=1e-12)


def test_chunks_of_resamples_draw_what_one_chunk_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=101)
    whole = stats.mean_interval(values, seed=5, resamples=300)
    monkeypatch.setattr(stats, "_CHUNK", 1000)
    np.testing.assert_allclose(stats.mean_interval(values, seed=5, resamples=300), whole, rtol=1e-12)


@given(scores)
def test_delta_changes_sign_when_the_sides_swap(pair: tuple[np.ndarray, np.ndarray]) -> None:
    there = stats.delta(*pair, seed=1, resamples=FEW)
    back = stats.delta(pair[1], pair[0], seed=1, resamples=FEW)
    assert (there.win, there.lose, there.tie) == (back.lose, back.win, back.tie)
    np.testing.assert_allclose([there.value, there.low, there.high], [-back.value, -back.high, -back.low], atol=1e-9)


@given(scores)
def test_delta_ignores_a_monotone_change_of_scale(pair: tuple[np.ndarray, np.ndarray]) -> None:
    stretched = [np.exp(0.3 * side) + side**3 for side in pair]
    assert stats.delta(*stretched, resamples=FEW) == stats.delta(*pair, resamples=FEW)


@given(scores)
def test_delta_interval_covers_its_value_and_stays_in_range(pair: tuple[np.ndarray, np.ndarray]) -> None:
    d = stats.delta(*pair, resamples=FEW)
    assert -100 <= d.low <= d.value <= d.high <= 100
    assert d.win + d.lose + d.tie == d.n
    assert d.value == pytest.approx(100 * (d.win - d.lose) / d.n)


@given(scores)
def test_equal_answers_tie(pair: tuple[np.ndarray, np.ndarray]) -> None:
    d = stats.delta(pair[0], pair[0], resamples=FEW)
    assert (d.value, d.low, d.high, d.tie) == (0.0, 0.0, 0.0, d.n)


@pytest.mark.slow
def test_the_delta_interval_covers_the_truth_as_often_as_it_says() -> None:
    """1000 experiments of 200 prompts won 0.5, lost 0.3: 95 % of the intervals should hold the true 20 points."""
    rng = np.random.default_rng(2024)
    held = 0
    for seed in range(1000):
        outcome = rng.choice([1.0, -1.0, 0.0], size=200, p=[0.5, 0.3, 0.2])
        d = stats.delta(outcome, np.zeros(200), seed=seed, resamples=500)
        held += d.low <= 20.0 <= d.high
    # Four standard errors of a 95 % rate over 1000 experiments are 2.8 points.
    assert 0.922 <= held / 1000 <= 0.978


def test_wilson_against_the_published_example() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    interval = stats.accuracy_interval(81, 263)
    np.testing.assert_allclose(interval[:3], (81 / 263, 0.2553, 0.3662), atol=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_quadratic(counts: tuple[int, int]) -> None:
    correct, n = counts
    interval = stats.accuracy_interval(correct, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for end in (interval.low, interval.high):
        assert (end - correct / n) ** 2 == pytest.approx(stats.Z**2 * end * (1 - end) / n, abs=1e-9)


def test_mean_interval_is_close_to_the_normal_one_on_many_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4000)
    interval = stats.mean_interval(values)
    half = stats.Z * values.std() / np.sqrt(values.size)
    np.testing.assert_allclose(interval[:3], (values.mean(), values.mean() - half, values.mean() + half), atol=0.01)


def test_paired_mean_difference_uses_the_pairing() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0.0, 100.0, size=500)
    interval = stats.paired_mean_difference(common + 1.0, common)
    np.testing.assert_allclose(interval[:3], (1.0, 1.0, 1.0), atol=1e-9)


def test_length_baseline_prefers_the_longer_answer() -> None:
    interval = stats.length_baseline_accuracy(np.array([5, 3, 2, 9]), np.array([4, 4, 2, 1]))
    assert interval.value == pytest.approx(2.5 / 4)


def test_a_judge_no_better_than_length_has_no_verdict() -> None:
    length = stats.accuracy_interval(600, 1000)
    assert not stats.judge_verdict_allowed(stats.accuracy_interval(610, 1000), length)
    assert not stats.judge_verdict_allowed(stats.accuracy_interval(300, 1000), length)
    assert stats.judge_verdict_allowed(stats.accuracy_interval(700, 1000), length)


def test_a_judge_must_beat_the_shorter_answer_too() -> None:
    length = stats.accuracy_interval(400, 1000)
    assert not stats.judge_verdict_allowed(stats.accuracy_interval(590, 1000), length)
    assert stats.judge_verdict_allowed(stats.accuracy_interval(700, 1000), length)


def test_perplexity_weighs_tokens_and_its_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        tokens = rng.integers(1, 40, size=200)
        # A rate of log 5 nats per token, with noise that a text's tokens share.
        nll = tokens * (np.log(5.0) + rng.normal(0.0, 0.3, size=200))
        interval = stats.perplexity_interval(nll, tokens)
        assert interval.value == pytest.approx(np.exp(nll.sum() / tokens.sum()))
        covered += interval.low <= 5.0 <= interval.high
    # 95 % of 400, give or take three standard errors.
    assert 0.915 < covered / 400 < 0.985


@pytest.mark.parametrize("tokens", [[3], [3, 0]])
def test_perplexity_needs_two_texts_with_tokens(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="two texts or more"):
        stats.perplexity_interval(np.ones(len(tokens)), np.array(tokens))


def test_length_control_with_equal_lengths_is_the_plain_delta() -> None:
    rng = np.random.default_rng(0)
    candidate, baseline = rng.normal(0.2, 1.0, size=400), rng.normal(size=400)
    lengths = rng.integers(5, 50, size=400)
    plain = stats.delta(candidate, baseline, seed=3)
    controlled = stats.length_controlled_delta(candidate, baseline, lengths, lengths, seed=3)
    np.testing.assert_allclose(controlled[:3], plain[:3], atol=0.01)
    assert (controlled.win, controlled.lose, controlled.tie) == (plain.win, plain.lose, plain.tie)


def test_length_control_removes_a_win_that_is_due_to_length() -> None:
    rng = np.random.default_rng(1)
    n = 1500
    extra = rng.normal(10.0, 10.0, size=n)
    # The judge prefers length and nothing else: logit of a win = extra / 5.
    wins = rng.random(n) < 1.0 / (1.0 + np.exp(-extra / 5.0))
    plain = stats.delta(wins * 2.0 - 1.0, np.zeros(n))
    controlled = stats.length_controlled_delta(wins * 2.0 - 1.0, np.zeros(n), 50.0 + extra, np.full(n, 50.0))
    assert plain.low > 40.0
    assert controlled.low <= 0.0 <= controlled.high


def test_length_control_recovers_the_intercept_of_the_sample() -> None:
    rng = np.random.default_rng(5)
    n = 20000
    difference = rng.normal(3.0, 4.0, size=n)
    wins = rng.random(n) < 1.0 / (1.0 + np.exp(-(0.5 + 0.2 * difference)))
    d = stats.length_controlled_delta(wins * 1.0, np.full(n, 0.5), difference, np.zeros(n), resamples=100)
    assert d.value == pytest.approx(100 * np.tanh(0.25), abs=3 * (d.high - d.low) / 4)


def test_length_control_stays_finite_when_length_separates_the_outcomes() -> None:
    difference = np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    d = stats.length_controlled_delta(np.sign(difference), np.zeros(6), difference, np.zeros(6))
    assert np.all(np.isfinite(d[:3]))
    assert d.value == pytest.approx(0.0, abs=1e-9)


lengths = st.lists(
    st.tuples(st.integers(-2, 2), st.integers(1, 30), st.integers(1, 30)), min_size=2, max_size=30
).filter(lambda rows: len({a - b for _, a, b in rows}) > 1)


@given(lengths)
def test_length_control_is_antisymmetric_covers_its_value_and_solves_its_equations(
    rows: list[tuple[int, int, int]],
) -> None:
    score, first, second = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    zero = np.zeros_like(score)
    there = stats.length_controlled_delta(score, zero, first, second, resamples=10)
    back = stats.length_controlled_delta(zero, score, second, first, resamples=10)
    np.testing.assert_allclose(there[:3], (-back.value, -back.high, -back.low), atol=1e-4)
    assert -100 <= there.low <= there.value <= there.high <= 100
    z, share = (first - second) / np.std(first - second), (np.sign(score) + 1) / 2
    ((a, b),) = stats._fit_logistic(share[None], z[None], np.zeros((1, 2)))
    residual = 1 / (1 + np.exp(-(a + b * z))) - share
    np.testing.assert_allclose([residual.sum(), residual @ z], [-stats.RIDGE * a, -stats.RIDGE * b], atol=1e-4)
    assert there.value == pytest.approx(100 * np.tanh(a / 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: stats.delta(np.array([]), np.array([])),
            r"candidate has shape \(0,\); give a vector with at least one",
        ),
        (
            lambda: stats.delta(np.ones(2), np.ones(3)),
            "candidate has 2 values and baseline 3",
        ),
        (
            lambda: stats.delta(np.array([1.0, np.nan]), np.ones(2)),
            r"candidate\[1\] = nan: .*finite",
        ),
        (lambda: stats.delta(np.ones(2), np.ones(2), tie=-1.0), "tie = -1.0 must be"),
        (lambda: stats.delta(np.ones(2), np.ones(2), resamples=0), "resamples = 0 must be at least 1"),
        (lambda: stats.accuracy_interval(3, 2), "correct = 3 and n = 2 must satisfy"),
        (lambda: stats.accuracy_interval(0, 0), "correct = 0 and n = 0 must satisfy n >= 1"),
        (
            lambda: stats.length_controlled_delta(np.ones(2), np.zeros(2), np.array([3, 4]), np.array([1, 2])),
            "length_candidate - length_baseline = 2 for every prompt",
        ),
        (
            lambda: stats.length_controlled_delta(np.ones(2), np.zeros(2), np.ones(3), np.ones(3)),
            "length_candidate and length_baseline have 3 values for 2 scores",
        ),
        (lambda: stats.copy_rate(["a"], []), "outputs has 1 entries and references 0"),
        (lambda: stats.copy_rate(["a"], [[1]]), r"output 'a' and reference \[1\]"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def edit_distance(a: list[int], b: list[int]) -> int:
    """Return the Levenshtein distance by its recurrence: the slow reference."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, change)
    return table[-1][-1]


small = st.lists(st.integers(0, 3), max_size=12)


@given(st.lists(st.tuples(small, small), min_size=1, max_size=3))
def test_copy_rate_is_the_mean_of_the_textbook_similarities(pairs: list[tuple[list[int], list[int]]]) -> None:
    outputs, references = zip(*pairs, strict=True)
    similarities = [1 - edit_distance(a, b) / max(len(a), len(b), 1) for a, b in pairs]
    exact = sum(a == b for a, b in pairs) / len(pairs)
    expected = stats.CopyRate(exact, pytest.approx(sum(similarities) / len(pairs), abs=1e-12), len(pairs))
    assert stats.copy_rate(outputs, references) == expected
    as_text = [[" ".join(map(str, side)) for side in column] for column in (outputs, references)]
    assert stats.copy_rate(*as_text) == expected


def test_copy_rate_of_token_ids() -> None:
    # Equal; one token of four changed; nothing in common: similarities 1, 3/4, 0.
    rate = stats.copy_rate([[1, 2], [1, 2, 3, 9], [5]], [[1, 2], [1, 2, 3, 4], [6]])
    assert rate == stats.CopyRate(exact=pytest.approx(1 / 3), similarity=pytest.approx(1.75 / 3), n=3)


def test_copy_rate_of_text_compares_words_but_exactness_to_the_character() -> None:
    assert stats.copy_rate(["a  b"], ["a b"]) == stats.CopyRate(exact=0.0, similarity=1.0, n=1)
