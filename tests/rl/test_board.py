"""The hacking board: what crosses a limit and when, what it says, and that it resumes with the same bits."""

import dataclasses
import json

import numpy as np
import pytest

from pit.config import BoardConfig, FieldError, Limit
from pit.data.tokens import Tokens
from pit.rl.board import WATCHES, Board, BoardState, deep_signals, gold_signals
from pit.rl.records import Prompts, Rollout
from pit.rollout.sample import Samples
from pit.train.catalogue import METRICS

NONE = BoardConfig(**{watch.limit: Limit() for watch in WATCHES})

END = 3


def rollout(with_references=True):
    """Two samples of two trees: of the first tree a copy and one token changed, of the second a copy and another."""
    answers = [[[5, 6, 7, 8, END], [5, 6, 7, 1]], [[9, END], [2, 2, END]]]
    token, length = np.zeros((2, 2, 5), np.int32), np.zeros((2, 2), np.int32)
    for g, n in np.ndindex(2, 2):
        length[g, n] = len(answers[g][n])
        token[g, n, : length[g, n]] = answers[g][n]
    logp = np.zeros(token.shape, np.float32)
    finished = np.array([[True, False], [True, True]])
    references = Tokens.of([[5, 6, 7, 8], [9]]) if with_references else None
    prompts = Prompts(np.arange(2), Tokens.of([[1], [2]]), references)
    return Rollout(prompts, Samples(token, length, finished, logp, logp, 1.0))


SCORES = np.array([[1, 2], [4, 3]], np.float32)


def board(config, state=None, gold=None):
    return Board(config, "rl-improver-0", "pit rl-improver-0 --run runs/x", gold, state)


def length_of(inputs, answers):
    """Gold that counts tokens."""
    return np.array([float(len(answer)) for answer in answers])


def worthless(inputs, answers):
    """Gold that finds no answer good."""
    return np.zeros(len(answers))


def test_signals_of_a_step_by_hand():
    made = board(dataclasses.replace(NONE, every=2), gold=length_of)
    first = made.signals(1, rollout(), SCORES, {"objective/kl": 1.0})
    assert set(first) == {
        *(f"board/reward_p{q}" for q in ("05", "25", "50", "75", "95")),
        "board/length_reward_within",
        "board/length_reward_across",
        "board/kl_speed_nats",
    }
    assert first["board/reward_p50"] == 2.5
    assert first["board/kl_speed_nats"] == 0.0
    # Deviations of length .5, -.5, -.5, .5 and of reward -.5, .5, .5, -.5.
    assert first["board/length_reward_within"] == pytest.approx(-1.0)
    assert first["board/length_reward_across"] == pytest.approx(-1.0)
    second = made.signals(2, rollout(), SCORES, {"objective/kl": 3.0})
    assert second["board/kl_speed_nats"] == pytest.approx(0.1 * 2.0)
    # Similarities 1, 1, 3/4, 0.
    assert second["board/similarity"] == pytest.approx(2.75 / 4)
    assert second["board/similar_share"] == 0.5
    assert second["board/repeated_ngrams"] == 0.0
    # 567 twice, 678 and 671 once each.
    assert second["board/distinct_ngrams"] == pytest.approx(3 / 4)
    # By the gold, an answer's length: 4, 1, 4, 2 against 4, 1; only the second tree's differ, and there 3 < 4.
    assert second["board/gold"] == pytest.approx(11 / 4)
    assert second["board/gold_gain"] == pytest.approx(1 / 4)
    assert second["board/gold_agreement"] == 0.0
    assert set(second) - set(first) == {
        "board/" + name
        for name in (*deep_signals(NONE, rollout()), *gold_signals(worthless, rollout(), SCORES), "gold_agreement")
    }


def test_names_and_limits_are_those_that_the_catalogue_explains():
    made = board(dataclasses.replace(NONE, every=1), gold=length_of)
    names = {*made.signals(1, rollout(), SCORES, {"objective/kl": 1.0}), *(watch.metric for watch in WATCHES)}
    explained = {metric.name for metric in METRICS}
    assert names <= explained
    assert {name for name in explained if name.startswith("board/")} <= names
    limits = {field.name for field in dataclasses.fields(BoardConfig) if isinstance(getattr(NONE, field.name), Limit)}
    assert {watch.limit for watch in WATCHES} == limits


def test_deep_metrics_are_those_that_every_step_does_not_log():
    made = board(dataclasses.replace(NONE, every=2), gold=length_of)
    plain, deep = (set(made.signals(step, rollout(), SCORES, {"objective/kl": 1.0})) for step in (1, 2))
    assert deep - plain == {metric.name for metric in METRICS if metric.deep}


def test_the_policy_has_no_reference_to_copy():
    samples = rollout(with_references=False)
    assert set(deep_signals(NONE, samples)) == {"repeated_ngrams", "distinct_ngrams"}
    assert set(gold_signals(worthless, samples, SCORES)) == {"gold"}


def test_a_crossing_is_told_once_and_again_after_a_return():
    made = board(dataclasses.replace(NONE, copy_rate=Limit(0.5), length_within=Limit(0.9), entropy_nats=Limit(2.0)))

    def said(step, **values):
        names = {"copy": "rollout/copy_rate", "length": "board/length_reward_within", "entropy": "objective/entropy"}
        return made.judge(step, {names[name]: value for name, value in values.items()})

    assert said(1, copy=0.5, length=0.9, entropy=2.0) == []
    assert said(2, copy=0.6, length=-0.95, entropy=1.0) == [
        "rl-improver-0: rollout/copy_rate = 0.6 at step 2: the improver hands its reference back "
        "(board.copy_rate.limit = 0.5)",
        "rl-improver-0: board/length_reward_within = -0.95 at step 2: among siblings the reward is little but length "
        "(board.length_within.limit = 0.9)",
        "rl-improver-0: objective/entropy = 1 at step 2: the policy gives nearly always the same answers "
        "(board.entropy_nats.limit = 2.0)",
    ]
    # Those that were not measured stay where they were.
    assert said(3, copy=0.7) == []
    assert said(4, copy=0.1, length=0.95) == []
    assert [line.split(" = ")[0] for line in said(5, copy=0.9)] == ["rl-improver-0: rollout/copy_rate"]
    assert made.stopped() is None


def test_a_stop_says_what_it_means_and_how_to_resume_and_survives_a_restart():
    config = dataclasses.replace(NONE, logp_gap_max_nats=Limit(0.5, "stop"))
    made = board(config)
    made.judge(6, {"rollout/logp_gap_nats_max": 0.4})
    assert made.stopped() is None
    made.judge(7, {"rollout/logp_gap_nats_max": 0.75})
    told = str(made.stopped())
    assert told.startswith("rl-improver-0: rollout/logp_gap_nats_max = 0.75 at step 7: sampler and trainer disagree")
    assert "(board.logp_gap_max_nats.limit = 0.5); the checkpoint of that step is saved" in told
    assert told.endswith("with:  pit rl-improver-0 --run runs/x --set board.logp_gap_max_nats.action=warn")
    saved = json.loads(json.dumps(made.state()))
    assert str(board(config, saved).stopped()) == told
    assert board(dataclasses.replace(config, logp_gap_max_nats=Limit(0.5, "warn")), saved).stopped() is None
    assert board(dataclasses.replace(config, logp_gap_max_nats=Limit(0.8, "stop")), saved).stopped() is None


def test_what_is_not_a_number_crosses_nothing_and_does_not_stay():
    made = board(dataclasses.replace(NONE, copy_rate=Limit(0.5, "stop")))
    assert made.judge(1, {"rollout/copy_rate": float("nan")}) == []
    made.signals(1, rollout(), SCORES, {"objective/kl": 1.0})
    assert made.signals(2, rollout(), SCORES, {"objective/kl": float("nan")})["board/kl_speed_nats"] == 0.0
    assert made.signals(3, rollout(), SCORES, {"objective/kl": 2.0})["board/kl_speed_nats"] == pytest.approx(0.1)
    assert made.stopped() is None


def test_defaults_never_stop_and_limits_are_checked():
    for watch in WATCHES:
        assert getattr(BoardConfig(), watch.limit).action == "warn"
    assert {watch.limit for watch in WATCHES} == {
        field.name for field in dataclasses.fields(BoardConfig) if field.type is Limit
    }
    with pytest.raises(FieldError) as caught:
        Limit(float("nan"))
    assert (caught.value.path, caught.value.rule) == ("limit", "must be finite")
    assert BoardState() == BoardState(**board(NONE).state())
