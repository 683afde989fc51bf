"""Sampler against trainer: KL per setting and per step, and draws under filters."""

import cases
import numpy as np
import pytest

from pit.rollout.sample import Samples
from pit.rollout.strategy import FILTERS
from pit.testing.invariants import SAMPLER
from pit.testing.invariants.draws import DRAW_INVARIANTS, PLAIN, SETTINGS, DrawCall
from pit.testing.policy import DrawFormat
from pit.testing.report import Status
from pit.testing.run import Request, run_check
from pit.testing.search import format_example, load_example, save_example

(KL,) = SAMPLER
BY_NAME = {invariant.name: invariant for invariant in DRAW_INVARIANTS}


class Uniform:
    """A sampler of token 4 whose log-prob at each step differs from the trainer's by a number."""

    def __init__(self, apart, filters=False, drawn=0.0):
        self.format = DrawFormat((1,), eos=2, content=(4, 9), longest=3, capacity=3, prefixes=2, filters=filters)
        self.apart, self.drawn, self.seen = np.array(apart, np.float32), np.float32(drawn), []

    def draw(self, prompts, temperature, seed, *filters):
        self.seen.append((temperature, filters))
        shape = (len(prompts), 2, 3)
        logp = np.broadcast_to(np.float32(-1.0) - self.apart, shape).astype(np.float32)
        zeros = np.zeros(shape[:2])
        return Samples(
            np.full(shape, 4, np.int32), np.full(shape[:2], 3), zeros.astype(bool), logp, logp + self.drawn, 1.0
        )

    def logprob_rows(self, batch, temperature):
        return np.full(batch.token.shape, -1.0, np.float32)


def test_a_sampler_that_is_its_trainer_is_at_0():
    measurement = KL.measure(Uniform([0, 0, 0]), 0)
    assert measurement.interval[:3] == (0, 0, 0)
    assert measurement.note == "bit for bit the same in 192 tokens"
    assert [label for label, _ in measurement.table] == [
        "temperature 1",
        "temperature 0.5",
        "step 1",
        "step 2",
        "step 3",
    ]


def test_kl_is_shown_at_the_step_that_has_it():
    """With d = 0.1 at the second step alone, the estimator is exp(0.1) - 1.1 there."""
    measurement = KL.measure(Uniform([0, 0.1, 0]), 0)
    table = dict(measurement.table)
    assert [table[f"step {i}"].value for i in (1, 2, 3)] == pytest.approx([0, np.exp(0.1) - 1.1, 0], abs=1e-7)
    assert measurement.interval.value == pytest.approx((np.exp(0.1) - 1.1) / 3, abs=1e-7)
    assert "the same in 67 % of 192 tokens, and at most 0.1 nats apart" in measurement.note


def test_filters_are_asked_for_where_the_sampler_takes_them():
    with_filters, without = Uniform([0], filters=True), Uniform([0])
    labels = [label for label, _ in KL.measure(with_filters, 0).table]
    assert "temperature 1, top_k 3" in labels
    KL.measure(without, 0)
    assert set(without.seen) == {(temperature, ()) for temperature, _ in PLAIN}
    assert with_filters.seen[:: len(with_filters.seen) // len(SETTINGS)] == [
        (temperature, (dict(filters),)) for temperature, filters in SETTINGS
    ]
    assert {name for _, filters in SETTINGS for name, _ in filters} == set(FILTERS)


@pytest.mark.parametrize(
    ("call", "drawn", "holds"),
    [
        (DrawCall(((4,), (5,)), 1.0, 0), 0.0, True),
        (DrawCall(((4,), (5,)), 1.0, 0), 0.5, False),
        (DrawCall(((4,), (5,)), 1.0, 0, (("top_k", 3),)), 0.5, True),
        (DrawCall(((4,), (5,)), 1.0, 0, (("top_k", 3),)), -0.5, False),
        (DrawCall(((4,), (5,)), 0.0, 0), 1.0, True),
        (DrawCall(((4,), (5,)), 0.0, 0), 0.0, False),
    ],
)
def test_a_filter_can_only_add_to_the_probability_of_a_draw(call, drawn, holds):
    """The policy's log-prob is -1, and that of the draw -1 + drawn."""
    scorer = Uniform([0, 0, 0], filters=True, drawn=drawn)
    if holds:
        BY_NAME["drawn_logp"].check(scorer, call)
        return
    with pytest.raises(AssertionError, match=r"^log-prob of the (greedy )?draw of sample \[0, 0\]"):
        BY_NAME["drawn_logp"].check(scorer, call)


def test_a_call_with_filters_is_saved_and_printed(tmp_path):
    call = DrawCall(((4, 5), ()), 0.5, 7, (("top_p", 0.8),))
    save_example(tmp_path / "a.json", BY_NAME["drawn_logp"], call)
    assert load_example(tmp_path / "a.json") == ("drawn_logp", call)
    assert format_example(call).startswith("temperature 0.5, top_p 0.8, seed 7; content tokens:\n  prompt: [4, 5]")


@pytest.mark.slow
def test_pits_sampler_is_its_trainer_under_every_setting():
    report = run_check(cases.policy_model(), [], Request("m", "d"), invariants=SAMPLER)
    (result,) = report.results
    assert result.status == Status.MEASURED
    assert result.interval.high < 1e-9
    assert len([label for label, _ in result.table if label.startswith("temperature")]) == len(SETTINGS)


def test_a_reward_model_has_no_samples():
    report = run_check(cases.difference(lambda x, y: 0.0), [], Request("m", "d"), invariants=SAMPLER)
    assert report.results[0].detail == "needs draw()"
