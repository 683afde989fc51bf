"""Joints of inference: what a candidate is compared with, by which form of the gap, and what is kept.

Every answer is one token with a worth. The reward model here says r(y, ref) = worth(y) - worth(ref) / 2, and 2 more
where y is ref: the symmetric gap is 3/4 of the difference of worths, and the centred one 2 less than that.
"""

import dataclasses

import numpy as np
import pytest
from world import World, path_of, run_of, trained_by

from pit.config import ImproveConfig
from pit.data.packing import Layout
from pit.data.tokens import Tokens
from pit.improve import Models, improve, strategy_of
from pit.rollout.sample import Sampler
from pit.rollout.score import LikelihoodScorer, ModelScorer, Scorer
from pit.seeds import Seed
from pit.stages import rl, sft
from pit.types import Closings

CLOSINGS = (1, 2, 3)
LAYOUT = Layout(closings=Closings.roles(*CLOSINGS), pad=0, row_length=60, rows=8, trees=8)
WORTH = {20: 0.0, 21: 1.0, 22: 2.0, 23: 3.0, 24: 1.2, 25: -1.0}
PROMPTS = [[10], [11], [12]]
FIRST = {10: 20, 11: 21, 12: 22}
"""y0 of each prompt."""

CANDIDATES = {10: [22, 21, 23], 11: [24, 20, 24], 12: [22, 25, 23]}
"""Candidates of each prompt, pass after pass."""


def raw(y, ref):
    """Return what the reward model says of an answer, as numbers of the tables above."""
    return WORTH[y] - WORTH[ref] / 2 + 2 * (y == ref)


class HandScorer(Scorer):
    """A reward model whose scores are `raw`."""

    def _scores(self, batch, contents):
        batch = batch.local
        result = np.zeros(batch.leaf.shape[:2], np.float32)
        for slot, leaf in np.argwhere(batch.leaf[:, :, 0] >= 0):
            row, end = batch.leaf[slot, leaf]
            _, (ref,), (y,) = path_of(batch, int(row), int(end), CLOSINGS)
            result[slot, leaf] = raw(y, ref)
        return result


class Spoken(Sampler):
    """A sampler whose models say what the tables above hold; `calls` keeps what it was asked for."""

    calls: list = []  # noqa: RUF012

    def answers(self, model, ids, inputs, references=None, *, strategy, seed):
        rows = Tokens.of(inputs).rows()
        given = None if references is None else Tokens.of(references).rows()
        self.calls.append((trained_by(model.params), list(ids), rows, given, seed))
        if given is None:
            return Tokens.of([[FIRST[x]] for (x,) in rows])
        number = sum(call[3] is not None and call[2] == rows for call in self.calls)
        return Tokens.of([[CANDIDATES[x][number - 1]] for (x,) in rows])


def models():
    """Return the policy, the improver and the reward model of a world, as they speak here."""
    world = World()
    with world.watched("load"):
        run = run_of()
        policy, improver = rl.POLICY.load(run), rl.IMPROVER_0.load(run)
    Spoken.calls.clear()
    return Models(policy, improver, HandScorer(policy, LAYOUT), Spoken(Closings.roles(*CLOSINGS), 5))


def paths(form="symmetric", threshold=0.0, **options):
    config = ImproveConfig(iterations=3, gap=form, threshold=threshold, batch=2)
    return list(improve(models(), PROMPTS, [7, 8, 9], config, seed=Seed((0,)), **options))


def by_hand(form, threshold):
    """Return y0, and per pass the candidate, its gap, whether it is accepted and the answer kept, of each prompt."""
    result = []
    for (x,) in PROMPTS:
        answer, steps = FIRST[x], []
        for candidate in CANDIDATES[x]:
            gap = 0.75 * (WORTH[candidate] - WORTH[answer]) - (2.0 if form == "centred" else 0.0)
            gap = 0.0 if candidate == answer else gap
            accepted = gap > threshold
            answer = candidate if accepted else answer
            steps.append((candidate, pytest.approx(gap, abs=1e-6), accepted, answer))
        result.append((FIRST[x], steps))
    return result


def rows_of(trajectories):
    return [(t.first[0], [(s.candidate[0], s.gap, s.accepted, s.answer[0]) for s in t.steps]) for t in trajectories]


def test_a_candidate_replaces_the_answer_before_it_if_its_gap_exceeds_the_threshold():
    expected = by_hand("symmetric", 0.2)
    assert rows_of(paths(threshold=0.2)) == expected
    # The cases that matter: better than y0 but worse than the answer; above 0 but not above the threshold; equal.
    assert [step[2] for step in expected[0][1]] == [True, False, True]
    assert [step[2] for step in expected[1][1]] == [False, False, False]
    assert [step[2] for step in expected[2][1]] == [False, False, True]


def test_the_threshold_is_that_of_the_config():
    accepted = {
        threshold: [[step.accepted for step in path.steps] for path in paths(threshold=threshold)]
        for threshold in (0.0, 0.75, 1.6, -9.0)
    }
    assert accepted[0.0] == [[True, False, True], [True, False, False], [False, False, True]]
    # 3/4 is no more than 3/4.
    assert accepted[0.75] == [[True, False, False], [False, False, False], [False, False, False]]
    assert accepted[1.6] == [[False, False, True], [False, False, False], [False, False, False]]
    assert accepted[-9.0] == [[True, True, True]] * 3


def test_the_gap_has_the_form_that_the_config_says():
    for form in ("symmetric", "centred"):
        assert rows_of(paths(form, -0.3)) == by_hand(form, -0.3)


def test_without_a_stop_rule_every_candidate_is_kept():
    for path in paths(stop_rule=False, threshold=99.0):
        assert [step.candidate[0] for step in path.steps] == CANDIDATES[path.prompt[0]]
        assert [step.answer for step in path.steps] == [step.candidate for step in path.steps]
        assert all(step.accepted for step in path.steps)
        assert [path.answer(k) for k in range(4)] == [path.first, *(step.answer for step in path.steps)]


def test_the_policy_answers_and_the_improver_refines_the_answer_that_was_kept():
    trajectories = paths()
    calls = Spoken.calls
    assert [call[0] for call in calls] == ["rl-policy", *["rl-improver-0"] * 3] * 2
    assert [call[1] for call in calls] == [[7, 8]] * 4 + [[9]] * 4
    assert [path.request for path in trajectories] == [7, 8, 9]
    for batch, rows in ((calls[:4], trajectories[:2]), (calls[4:], trajectories[2:])):
        for number, call in enumerate(batch[1:]):
            assert call[2] == [path.prompt for path in rows]
            assert call[3] == [path.answer(number) for path in rows]


def test_given_answers_are_y0():
    given = [[23], [20], [25]]
    trajectories = paths(answers=given)
    assert [path.first for path in trajectories] == given
    assert next(call[3] for call in Spoken.calls if call[3]) == given[:2]
    assert {call[0] for call in Spoken.calls} == {"rl-improver-0"}


def test_every_call_has_a_seed_of_its_own_and_batches_share_them():
    paths()
    seeds = [call[4] for call in Spoken.calls]
    assert len(set(seeds[:4])) == 4
    assert seeds[:4] == seeds[4:]


def test_the_models_of_an_improvement_are_the_last_of_the_run():
    for settings, improver, gap in (
        (("references=data",), "rl-improver-0", "reward-gap"),
        (("references=own", "refresh.prompts=8"), "rl-improver-2", "refresh-gap"),
    ):
        run = run_of(*settings)
        with World().watched("load"):
            loaded = Models.load(run, run.config.reward_gap.packing)
            by_likelihood = dataclasses.replace(run.config.improve, accept_by="likelihood")
            likely = Models.load(run, run.config.reward_gap.packing, sft.POLICY, config=by_likelihood)
        assert trained_by(loaded.policy.params) == "rl-policy"
        assert trained_by(loaded.improver.params) == improver
        assert (type(loaded.scorer), trained_by(loaded.scorer.model.params)) == (ModelScorer, gap)
        assert (type(likely.scorer), trained_by(likely.scorer.model.params)) == (LikelihoodScorer, "sft-improver")
        assert trained_by(likely.policy.params) == "sft-policy"


def test_gaps_of_several_outputs_are_worked_out_by_hand():
    """All forms, with two outputs and other references in one packed row."""
    xs, refs, ys = [[10], [11], [12]], [[20], [22], [23]], [[[21], [24], [25]], [[23], [22], [20]]]
    scorer = HandScorer(models().policy, LAYOUT)
    for form in ("raw", "centred", "symmetric"):
        gap = scorer.gap(xs, refs, ys, form)
        for n, column in enumerate(ys):
            for g, ((y,), (ref,)) in enumerate(zip(column, refs, strict=True)):
                expected = {
                    "raw": raw(y, ref),
                    "centred": 0.0 if y == ref else raw(y, ref) - (raw(y, y) + raw(ref, ref)) / 2,
                    "symmetric": (raw(y, ref) - raw(ref, y)) / 2,
                }[form]
                assert gap[g, n] == pytest.approx(expected, abs=1e-6), (form, g, n)


def test_answers_are_sampled_by_the_temperature_of_the_config():
    config = ImproveConfig(temperature=0.3)
    assert strategy_of(config) == strategy_of(dataclasses.replace(config, iterations=1))
    assert strategy_of(config).temperature == 0.3
