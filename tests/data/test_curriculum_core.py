"""The feedback table of the C++ core against its obvious twin: draws, counts, lag, states, errors."""

import re
from collections import Counter
from dataclasses import dataclass, field

import core_twins as twins
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data import _core

ENTRY = 3
"""Stream of the table's draws."""


@dataclass
class Twin:
    """The table, written down from its contract."""

    seed: int
    examples: int
    sources: list[int]
    lag: int
    memory: int
    step: int = 0
    drawn: int = 0
    applied: int = 0
    updates: list = field(default_factory=list)

    def __post_init__(self):
        self.stats = {e: (0, 0, np.float32(0)) for e in range(self.examples * len(self.sources))}
        self.weights = dict.fromkeys(self.stats, 0)

    def advance(self):
        changed = set()
        while self.applied < self.step - self.lag + 1:
            outcomes = sorted(self.updates[self.applied])
            for entry in {self.entry(example, source) for example, source, _, _ in outcomes}:
                trials, wins, _ = self.stats[entry]
                gaps = [gap for example, source, _, gap in outcomes if self.entry(example, source) == entry]
                for gap in gaps:
                    if trials >= self.memory:
                        trials, wins = trials // 2, wins // 2
                    trials, wins = trials + 1, wins + (gap > 0)
                self.stats[entry] = (trials, wins, np.float32(sum(map(float, gaps)) / len(gaps)))
                changed.add(entry)
            self.applied += 1
        return sorted(changed)

    def entry(self, example, source):
        return example * len(self.sources) + self.sources.index(source)

    def draw(self, count):
        total = sum(self.weights.values())
        draws = []
        for k in range(self.drawn, self.drawn + count):
            place = twins.uniform_below(self.seed, ENTRY, k, total)
            for entry, weight in self.weights.items():
                if place < weight:
                    example, rank = divmod(entry, len(self.sources))
                    draws.append((example, self.sources[rank]))
                    break
                place -= weight
        self.drawn += count
        self.step += 1
        return draws


def make(twin):
    return _core.FeedbackCurriculum(
        seed=twin.seed,
        examples=twin.examples,
        sources=twin.sources,
        lag=twin.lag,
        memory=twin.memory,
        config_hash=1,
        data_hash=2,
    )


def send(core, step, outcomes):
    example, source, sample, gap = zip(*outcomes, strict=True) if outcomes else ((), (), (), ())
    core.update(
        step,
        np.array(example, np.int64),
        np.array(source, np.uint8),
        np.array(sample, np.int32),
        np.array(gap, np.float32),
    )


def pairs(draws):
    return [(int(example), int(source)) for example, source in zip(*draws, strict=True)]


def assert_same(core, twin):
    trials, wins, gap = core.stats()
    assert [(int(t), int(w), g) for t, w, g in zip(trials, wins, gap, strict=True)] == list(twin.stats.values())
    assert core.total == sum(twin.weights.values())


@st.composite
def twins_of(draw):
    sources = sorted(draw(st.sets(st.integers(0, 3), min_size=1)))
    examples = draw(st.one_of(st.integers(1, 12), st.sampled_from([127, 128, 129, 1025])))
    return Twin(draw(st.integers(0, 2**64 - 1)), examples, sources, draw(st.integers(1, 3)), draw(st.integers(2, 9)))


GAPS = st.floats(-4, 4, width=32)


def outcomes_of(data, draws):
    """Return feedback for the draws of a step, shuffled; samples are numbered over the whole step."""
    samples = data.draw(st.integers(1, 3))
    numbered = [(*pair, k, data.draw(GAPS)) for k, pair in enumerate(p for p in draws for _ in range(samples))]
    return data.draw(st.permutations(numbered))


def reweigh(data, core, twin, changed):
    """Set new weights of the changed entries (at first, of all entries), some of them 0."""
    everything = core.total == 0
    entries = list(twin.weights) if everything else changed
    seed = data.draw(st.integers(0, 2**32 - 1))
    weights = np.random.default_rng(seed).integers(0, 4, len(entries)) ** 9
    if everything:
        weights[-1] = 2**32 - 1
        core.assign_weights(weights.astype(np.uint32))
    else:
        core.set_weights(np.array(entries, np.int64), weights.astype(np.uint32))
    twin.weights.update(zip(entries, map(int, weights), strict=True))


@given(twin=twins_of(), data=st.data())
def test_table_agrees_with_its_twin_and_a_restored_one_with_both(twin, data):
    core = make(twin)
    for step in range(data.draw(st.integers(1, 6))):
        changed = core.advance().tolist()
        assert changed == twin.advance()
        reweigh(data, core, twin, changed)
        if sum(twin.weights.values()) == 0:
            return
        count = data.draw(st.integers(0, 5))
        draws = pairs(core.draw(count))
        assert draws == twin.draw(count)
        outcomes = outcomes_of(data, draws)
        send(core, step, outcomes)
        twin.updates.append(outcomes)
        assert_same(core, twin)
        resumed = make(twin)
        assert resumed.restore(core.state(core.step, [step, -0.5])) == [step, -0.5]
        assert resumed.state(core.step, []) == core.state(core.step, [])
        assert (resumed.step, resumed.update_step) == (core.step, core.update_step)
        resumed.assign_weights(np.array(list(twin.weights.values()), np.uint32))
        core = data.draw(st.sampled_from([core, resumed]))


@given(twin=twins_of(), ahead=st.integers(0, 3), data=st.data())
def test_a_state_leaves_out_later_draws_and_their_feedback(twin, ahead, data):
    """A table that drew ahead has the state of one that did not; feedback that no draw has used is in the state."""
    cores = [make(twin), make(twin)]
    uniform = np.ones(cores[0].entries, np.uint32)
    sent = []
    for step in range(6):
        for core in cores:
            core.advance()
            core.assign_weights(uniform)
            draws = pairs(core.draw(2))
        outcomes = [(*pair, k, data.draw(GAPS)) for k, pair in enumerate(draws)]
        sent.append(outcomes)
        for core in cores:
            send(core, step, outcomes)
    reached = cores[0].step
    state = cores[0].state(reached, [])
    for _ in range(min(ahead, twin.lag - 1)):
        cores[1].advance()
        cores[1].assign_weights(uniform)
        cores[1].draw(3)
    assert cores[1].state(reached, []) == state
    with pytest.raises(_core.CoreError, match="step of the state"):
        cores[1].state(reached + twin.lag, [])


def test_draws_are_in_proportion_to_weights():
    # 200,000 draws of 20 entries: chi-square with 19 degrees of freedom is below 43.8 with probability 0.999.
    core = make(Twin(9, 10, [1, 2], 1, 8))
    weights = np.arange(20, dtype=np.uint32) ** 3
    core.assign_weights(weights)
    core.advance()
    ids, sources = core.draw(200_000)
    count = np.bincount(ids * 2 + (sources == 2), minlength=20)
    expected = weights / weights.sum() * 200_000
    assert count[0] == 0
    assert ((count - expected)[1:] ** 2 / expected[1:]).sum() < 43.8


def test_large_weights_and_many_entries_add_up_exactly():
    entries = 70_001
    core = make(Twin(3, entries, [0], 1, 8))
    core.assign_weights(np.full(entries, 2**32 - 1, np.uint32))
    assert core.total == entries * (2**32 - 1)
    core.set_weights(np.arange(entries - 1, dtype=np.int64), np.zeros(entries - 1, np.uint32))
    assert core.total == 2**32 - 1
    core.advance()
    assert set(core.draw(100)[0].tolist()) == {entries - 1}


def table_after(steps=1, lag=1):
    core = make(Twin(1, 3, [1, 2], lag, 8))
    core.assign_weights(np.ones(6, np.uint32))
    for _ in range(steps):
        core.advance()
        core.draw(1)
    return core


REFUSED_UPDATES = {
    "sent twice": (0, [(0, 1, 0, 1.0)], "feedback for step 0, but step 1 is expected and step 2 is drawn next"),
    "skipped": (2, [(0, 1, 0, 1.0)], "feedback for step 2, but step 1 is expected"),
    "not drawn": (2, [], "that step has not been drawn"),
    "not a number": (1, [(0, 1, 0, float("nan"))], "the gap of example 0, source 1, sample 0 is "),
    "infinite": (1, [(0, 1, 0, float("inf"))], "a gap must be finite"),
    "another source": (1, [(0, 3, 0, 1.0)], "feedback for example 0, source 3, sample 0, which cannot be drawn"),
    "no source": (1, [(0, 9, 0, 1.0)], "source 9, sample 0, which cannot be drawn"),
    "no example": (1, [(3, 1, 0, 1.0)], "there are 3 examples and 2 sources"),
    "twice": (1, [(2, 1, 4, 1.0), (2, 1, 4, 2.0)], "feedback for example 2, source 1, sample 4 is given twice"),
}


@pytest.mark.parametrize("case", REFUSED_UPDATES)
def test_impossible_feedback_raises_and_changes_nothing(case):
    core = table_after()
    send(core, 0, [])
    core.advance()
    core.draw(1)
    before = core.state(2, [])
    step, outcomes, message = REFUSED_UPDATES[case]
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        send(core, step, outcomes)
    assert core.state(2, []) == before


def test_a_step_whose_feedback_is_missing_is_not_drawn():
    core = table_after(steps=2, lag=2)
    with pytest.raises(_core.CoreError, match="step 2 sees feedback up to step 0, but that of step 0 has not arrived"):
        core.advance()
    with pytest.raises(_core.CoreError, match="step 2 has not been advanced to"):
        core.draw(1)


def test_nothing_can_be_drawn_without_weights():
    core = make(Twin(1, 3, [1], 1, 8))
    core.advance()
    with pytest.raises(_core.CoreError, match="all weights are 0"):
        core.draw(1)


REFUSED_SETTINGS = {
    "examples": ({"examples": 0}, "curriculum: examples=0 is outside [1, "),
    "sources": ({"sources": []}, "curriculum: sources=0 is outside [1, 4]"),
    "order": ({"sources": [2, 1]}, "curriculum: a source=1 is outside [3, 3]"),
    "lag": ({"lag": 0}, "curriculum: lag=0 is outside [1, 1048576]"),
    "memory": ({"memory": 1}, "curriculum: memory=1 is outside [2, 65535]"),
}


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_settings_out_of_range_are_refused(case):
    change, message = REFUSED_SETTINGS[case]
    settings = {"seed": 1, "examples": 3, "sources": [1, 2], "lag": 1, "memory": 8, "config_hash": 1, "data_hash": 2}
    with pytest.raises(_core.CoreError, match=re.escape(message)):
        _core.FeedbackCurriculum(**{**settings, **change})


def test_every_damaged_byte_of_a_state_is_refused():
    core = table_after(steps=2, lag=3)
    send(core, 0, [(2, 1, 0, 1.5), (0, 2, 0, -1.0)])
    state = core.state(2, [0.25])
    other = make(Twin(1, 3, [1, 2], 3, 8))
    for place in range(len(state)):
        damaged = bytearray(state)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(_core.CoreError, match=r"^curriculum: the "):
            other.restore(bytes(damaged))
        with pytest.raises(_core.CoreError, match=r"^curriculum: the "):
            other.restore(state[:place])
    assert (other.step, other.update_step) == (0, 0)
    for change in ({"seed": 2}, {"lag": 2}, {"memory": 9}, {"sources": [1, 3]}):
        with pytest.raises(_core.CoreError, match="was written with settings"):
            make(Twin(**{"seed": 1, "examples": 3, "sources": [1, 2], "lag": 3, "memory": 8, **change})).restore(state)


def test_both_draws_of_an_entry_count():
    core = make(Twin(1, 1, [1], 1, 8))
    core.assign_weights(np.ones(1, np.uint32))
    core.advance()
    assert Counter(core.draw(2)[0].tolist()) == {0: 2}
    send(core, 0, [(0, 1, 0, 1.0), (0, 1, 1, -3.0)])
    core.advance()
    trials, wins, gap = core.stats(np.zeros(1, np.int64))
    assert (trials[0], wins[0], gap[0]) == (2, 1, -1.0)
