"""Curricula at their interface: preferences of strategies; prefetching and restarting change no draw."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.data import _core
from pit.data.curriculum import (
    Adaptive,
    CurriculumError,
    DrawLoader,
    Draws,
    EntryStats,
    Feedback,
    GapBand,
    Learnability,
    Staged,
    hand_over,
    ranks,
)

STRATEGIES = {"learnability": Learnability(), "gap band": GapBand(phases=5)}
EXAMPLES, COUNT, STEPS = 40, 8, 12


def adaptive(strategy="learnability", lag=1, **changes):
    settings = {
        "shares": (0, 2, 1, 0),
        "examples": EXAMPLES,
        "steps": STEPS,
        "lag": lag,
        "memory": 8,
        "difficulty": ranks(np.arange(EXAMPLES, dtype=np.float64)),
        "seed": 5,
        "config_hash": 1,
        "data_hash": 2,
    }
    return Adaptive(STRATEGIES[strategy], **{**settings, **changes})


def staged():
    return Staged(hand_over((0, 1, 0, 0), (0, 0, 0, 1), 3, 4), seed=5, examples=EXAMPLES)


MAKE = {
    "learnability": lambda: adaptive("learnability", lag=4),
    "gap band": lambda: adaptive("gap band", lag=4),
    "staged": staged,
}


def gaps_of(draws):
    """Return plausible gaps of three samples of each draw: a function of the draw, with noise."""
    noise = np.random.default_rng([draws.step, *draws.ids.tolist()]).normal(size=(len(draws.ids), 3))
    return (noise + (20 - draws.ids[:, None]) / 10).astype(np.float32)


def trained(loader, steps):
    """Return the draws of some steps, with feedback sent after each, as (step, ids, sources)."""
    result = []
    for _ in range(steps):
        draws = next(loader)
        loader.update(draws, gaps_of(draws))
        result.append((draws.step, draws.ids.tolist(), draws.sources.tolist()))
    return result


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("prefetch", [1, 3])
def test_prefetching_changes_no_draw(kind, prefetch):
    assert trained(DrawLoader(MAKE[kind](), COUNT, prefetch=prefetch), STEPS) == trained(
        DrawLoader(MAKE[kind](), COUNT), STEPS
    )


@pytest.mark.parametrize("kind", MAKE)
@given(stop=st.integers(0, STEPS), before=st.integers(0, 3), after=st.integers(0, 3), sent=st.booleans())
def test_stopping_at_any_step_changes_no_draw(kind, stop, before, after, sent):
    """This holds if the depth of prefetching changes, and if the last feedback was not sent before the stop."""
    whole = trained(DrawLoader(MAKE[kind](), COUNT), STEPS)
    first = DrawLoader(MAKE[kind](), COUNT, prefetch=before)
    head = trained(first, stop - 1 if stop and not sent else stop)
    late = next(first) if stop and not sent else None
    state = first.state()
    first.close()
    second = DrawLoader(MAKE[kind](), COUNT, prefetch=after)
    second.restore(state, stop)
    if late is not None:
        second.update(late, gaps_of(late))
        head.append((late.step, late.ids.tolist(), late.sources.tolist()))
    assert head + trained(second, STEPS - stop) == whole
    second.close()


def test_processes_share_the_draws_of_every_step():
    whole = DrawLoader(adaptive(), COUNT)
    parts = [DrawLoader(adaptive(), COUNT, process_index=i, process_count=4) for i in range(4)]
    for _ in range(4):
        draws = next(whole)
        copies = [next(part) for part in parts]
        shares = [part.share(copy) for part, copy in zip(parts, copies, strict=True)]
        assert np.concatenate([share.ids for share in shares]).tolist() == draws.ids.tolist()
        assert np.concatenate([share.sources for share in shares]).tolist() == draws.sources.tolist()
        for loader in [whole, *parts]:
            loader.update(draws, gaps_of(draws))


def test_feedback_reaches_the_draws_after_the_lag_and_no_earlier():
    def ids(lag, sign):
        loader = DrawLoader(adaptive(lag=lag), 64)
        out = []
        for _ in range(4):
            draws = next(loader)
            loader.update(draws, sign * np.ones((64, 2), np.float32) * (draws.ids[:, None] % 2 * 2 - 1))
            out.append(draws.ids.tolist())
        return out

    for lag in (1, 2, 3):
        won, lost = ids(lag, 1), ids(lag, -1)
        assert won[:lag] == lost[:lag]
        assert won[lag] != lost[lag]


def test_a_step_waits_for_feedback_and_closing_wakes_it():
    curriculum = adaptive()
    loader = DrawLoader(curriculum, COUNT)
    draws = next(loader)
    with pytest.raises(_core.CoreError, match="step 1 sees feedback up to step 0"):
        curriculum.draw(1, COUNT)
    results = []

    def wait(step):
        try:
            results.append(curriculum.draw(step, COUNT, wait=True).step)
        except CurriculumError as error:
            results.append(str(error))

    for step, wake in ((1, lambda: loader.update(draws, gaps_of(draws))), (2, curriculum.close)):
        waiting = threading.Thread(target=wait, args=(step,))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        wake()
        waiting.join(30)
    assert results[0] == 1
    assert results[1].startswith("the curriculum is closed")


def stats(trials, wins, gap, difficulty=0.5):
    size = np.broadcast(trials, wins, gap, difficulty).shape
    return EntryStats(
        np.broadcast_to(trials, size).astype(np.uint16),
        np.broadcast_to(wins, size).astype(np.uint16),
        np.broadcast_to(gap, size).astype(np.float32),
        np.broadcast_to(difficulty, size).astype(np.float32),
    )


def test_learnability_prefers_what_is_won_half_of_the_time():
    # 30 trials and a prior of two at 1/2: p = 1/32, 1/2, 31/32 and 4p(1-p) = 31/256, 1, 31/256; bonus .25 / sqrt(31).
    weights = Learnability(floor=0.0, explore=0.25).weights(stats(30, np.array([0, 15, 30]), 0.0), ())
    bonus = 0.25 / np.sqrt(31)
    np.testing.assert_allclose(weights, (np.array([31 / 256, 1, 31 / 256]) + bonus) / 1.25)


def test_learnability_explores_and_takes_difficulty_for_a_guess():
    strategy = Learnability(floor=0.1, explore=0.5)
    new, old = strategy.weights(stats(np.array([0, 30]), np.array([0, 15]), 0.0), ())
    assert new > old
    # Before feedback, medium examples are the most learnable; rank 0 is assumed to be always won, rank 1 never.
    easy, middling, hard = strategy.weights(stats(0, 0, 0.0, np.array([0.0, 0.5, 1.0])), ())
    np.testing.assert_allclose([easy, middling, hard], [0.6 / 1.5, 1.5 / 1.5, 0.6 / 1.5])


def test_gap_band_moves_from_gaps_won_to_gaps_lost():
    strategy = GapBand(start=1.0, end=0.0, width=0.5, floor=0.1)
    gaps = np.linspace(-2, 2, 101)
    everything = stats(5, 2, gaps)
    for progress, inside in ((0.0, gaps >= 1.0), (0.5, np.abs(gaps) <= 1.0 + 1e-9), (1.0, gaps <= -1.0 + 1e-9)):
        weights = strategy.weights(everything, strategy.notes(everything, progress))
        np.testing.assert_allclose(weights, np.where(inside, 1.0, 0.1))


def test_gap_band_takes_unseen_entries_by_difficulty_and_waits_for_gaps():
    strategy = GapBand(start=0.8, end=0.2, width=0.4, floor=0.05)
    few = stats(np.array([1, 0, 0]), 0, np.array([-9.0, 0, 0]), np.array([0.5, 0.1, 0.9]))
    notes = strategy.notes(few, 0.0)
    assert notes[2:] == (-np.inf, np.inf)
    np.testing.assert_allclose(strategy.weights(few, notes), [1.0, 1.0, 0.05])


def test_sources_are_drawn_by_their_shares():
    # 4,000 draws at 2 : 1, standard deviation 30; the bound is 5 of them.
    draws = next(DrawLoader(adaptive(difficulty=None), 4_000))
    assert abs(int((draws.sources == 1).sum()) - 2_667) < 150
    assert set(draws.sources.tolist()) == {1, 2}


@given(values=hnp.arrays(np.float64, st.integers(1, 30), elements=st.integers(-3, 3).map(float)))
def test_ranks_are_the_mean_places_of_equal_values(values):
    places = {v: np.mean([i for i, x in enumerate(sorted(values)) if x == v]) for v in values}
    expected = np.array([places[v] for v in values]) / max(len(values) - 1, 1)
    np.testing.assert_allclose(ranks(values), expected.astype(np.float32))


@given(
    before=st.tuples(*[st.integers(0, 5)] * 4).filter(any),
    after=st.tuples(*[st.integers(0, 5)] * 4).filter(any),
    first=st.integers(0, 5),
    steps=st.integers(0, 6),
)
def test_a_hand_over_mixes_shares_evenly(before, after, first, steps):
    stages = hand_over(before, after, first, steps)
    assert stages[0][0] == 0
    for step, weights in stages:
        new = min(max((step - first + 1) / max(steps, 1), 0.0), 1.0)
        expected = (1 - new) * np.array(before) / sum(before) + new * np.array(after) / sum(after)
        np.testing.assert_allclose(np.array(weights) / sum(weights), expected)
    assert stages[-1][0] == first + max(steps, 1) - 1


def test_impossible_settings_raise():
    with pytest.raises(CurriculumError, match=r"^prefetch = 4: must be at most lag - 1 = 3"):
        DrawLoader(adaptive(lag=4), COUNT, prefetch=4)
    with pytest.raises(CurriculumError, match=r"^count = 8: must be a multiple of the 3 processes"):
        DrawLoader(adaptive(), COUNT, process_count=3)
    with pytest.raises(CurriculumError, match=r"^shares = \(0, 0, 0, 0\): no source can be drawn"):
        adaptive(shares=(0, 0, 0, 0))
    with pytest.raises(CurriculumError, match=r"^difficulty has shape \(3,\); give one rank for each of 40 examples"):
        adaptive(difficulty=np.zeros(3, np.float32))
    with pytest.raises(CurriculumError, match=r"^step = 1: step 0 is next"):
        adaptive().draw(1, COUNT)
    loader = DrawLoader(adaptive(), COUNT)
    state = loader.state()
    next(loader)
    with pytest.raises(CurriculumError, match="the loader was read before it was restored"):
        loader.restore(state, 0)


def test_feedback_that_is_not_finite_is_refused():
    curriculum = adaptive()
    draws = curriculum.draw(0, COUNT)
    gaps = np.full((COUNT, 2), np.nan, np.float32)
    with pytest.raises(_core.CoreError, match="a gap must be finite"):
        curriculum.update(Feedback(draws, gaps))
    curriculum.update(Feedback(draws, np.zeros((COUNT, 2), np.float32)))
    with pytest.raises(_core.CoreError, match="feedback for step 0, but step 1 is expected"):
        curriculum.update(Feedback(Draws(0, draws.ids, draws.sources), np.zeros((COUNT, 2), np.float32)))


class Wild:
    """A user's strategy whose weights are out of range."""

    phases = 1

    def notes(self, stats, progress):
        return ()

    def weights(self, stats, notes):
        return stats.difficulty.astype(np.float64) * 3


def test_a_strategy_out_of_range_is_refused(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "wild", Wild())
    with pytest.raises(CurriculumError, match=r"weights from 0.0 to 3.0 must lie in \[0, 1\]"):
        adaptive("wild").draw(0, COUNT)
