"""The hacking board: what crosses a limit and when, what it says, and that it goes on with the same bits."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pit.config import BoardConfig, ConfigError, Limit
from pit.stages.board import WATCHES, Board, BoardState, Seen, deep_signals, gold_signals

NONE = BoardConfig(**{watch.limit: Limit() for watch in WATCHES})

SEEN = Seen(
    inputs=[[1], [2]],
    references=[[5, 6, 7, 8], [9]],
    # By sample, then by tree: of the first tree a copy and one token changed, of the second a copy and another answer.
    outputs=[[[5, 6, 7, 8], [9]], [[5, 6, 7, 1], [2, 2]]],
    scores=np.array([[1, 2], [4, 3]], np.float32),
    length=np.array([[5, 5], [2, 3]], np.int32),
)


def board(config, state=None, gold=None):
    return Board(config, "rl-first", "pit rl first --run runs/x", gold, state)


def test_signals_of_a_step_by_hand():
    made = board(dataclasses.replace(NONE, every=2), gold=lambda xs, ys: np.array([float(len(y)) for y in ys]))
    first = made.signals(1, SEEN, {"objective/kl": 1.0})
    assert set(first) == {
        *(f"board/reward_p{q}" for q in ("05", "25", "50", "75", "95")),
        "board/length_reward_within",
        "board/length_reward_across",
        "board/kl_speed_nats",
    }
    assert first["board/reward_p50"] == 2.5
    assert first["board/kl_speed_nats"] == 0.0
    # Deviations of length 0, 0, -.5, .5 and of reward -.5, .5, .5, -.5.
    assert first["board/length_reward_within"] == pytest.approx(-0.5 / np.sqrt(0.5 * 1.0))
    assert first["board/length_reward_across"] == pytest.approx(-1.0)
    second = made.signals(2, SEEN, {"objective/kl": 3.0})
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
        for name in (*deep_signals(NONE, SEEN), *gold_signals(lambda xs, ys: np.zeros(len(ys)), SEEN), "gold_agreement")
    }


def test_names_and_limits_are_those_that_the_documentation_explains():
    made = board(dataclasses.replace(NONE, every=1), gold=lambda xs, ys: np.array([float(len(y)) for y in ys]))
    names = {*made.signals(1, SEEN, {"objective/kl": 1.0}), *(watch.metric for watch in WATCHES)}
    text = (Path(__file__).parents[2] / "docs" / "rl.md").read_text()
    text = text[text.index("## The hacking board") :]
    table = re.findall(r"^\| `([a-z0-9_/]+)` \| (?:`([a-z_]+)` (\S+))? *\| (\w*) *\|", text, re.M)
    assert {metric for metric, *_ in table} == names
    explained = {(metric, limit, side, value) for metric, limit, value, side in table if limit}
    assert explained == {
        (watch.metric, watch.limit, watch.side, "none" if limit is None else f"{limit:g}")
        for watch in WATCHES
        for limit in [getattr(BoardConfig(), watch.limit).limit]
    }


def test_the_policy_has_no_reference_to_copy():
    assert set(deep_signals(NONE, SEEN._replace(references=None))) == {"repeated_ngrams", "distinct_ngrams"}
    assert set(gold_signals(lambda xs, ys: np.zeros(len(ys)), SEEN._replace(references=None))) == {"gold"}


def test_a_crossing_is_told_once_and_again_after_a_return():
    made = board(dataclasses.replace(NONE, copy_rate=Limit(0.5), length_within=Limit(0.9), entropy_nats=Limit(2.0)))

    def said(step, **values):
        names = {"copy": "rollout/copy_rate", "length": "board/length_reward_within", "entropy": "objective/entropy"}
        return made.judge(step, {names[name]: value for name, value in values.items()})

    assert said(1, copy=0.5, length=0.9, entropy=2.0) == []
    assert said(2, copy=0.6, length=-0.95, entropy=1.0) == [
        "rl-first: rollout/copy_rate = 0.6 at step 2: the improver hands its reference back "
        "(board.copy_rate.limit = 0.5)",
        "rl-first: board/length_reward_within = -0.95 at step 2: among siblings the reward is little but length "
        "(board.length_within.limit = 0.9)",
        "rl-first: objective/entropy = 1 at step 2: the policy gives nearly always the same answers "
        "(board.entropy_nats.limit = 2.0)",
    ]
    # Those that were not measured stay where they were.
    assert said(3, copy=0.7) == []
    assert said(4, copy=0.1, length=0.95) == []
    assert [line.split(" = ")[0] for line in said(5, copy=0.9)] == ["rl-first: rollout/copy_rate"]
    assert made.stopped() is None


def test_a_stop_says_what_it_means_and_how_to_go_on_and_survives_a_restart():
    config = dataclasses.replace(NONE, logp_gap_max_nats=Limit(0.5, "stop"))
    made = board(config)
    made.judge(6, {"rollout/logp_gap_nats_max": 0.4})
    assert made.stopped() is None
    made.judge(7, {"rollout/logp_gap_nats_max": 0.75})
    expected = (
        "rl-first: rollout/logp_gap_nats_max = 0.75 at step 7: sampler and trainer disagree about the log-probs of the "
        "same tokens, so the gradient is not that of the policy that was sampled: look at compute_dtype, at the cache, "
        "at what differs between decode and the packed rows (board.logp_gap_max_nats.limit = 0.5); the checkpoint of "
        "that step is saved: look at the board in the metrics and at the samples, and go on regardless with:  "
        "pit rl first --run runs/x --set board.logp_gap_max_nats.action=warn"
    )
    assert str(made.stopped()) == expected
    saved = json.loads(json.dumps(made.state()))
    assert str(board(config, saved).stopped()) == expected
    assert board(dataclasses.replace(config, logp_gap_max_nats=Limit(0.5, "warn")), saved).stopped() is None
    assert board(dataclasses.replace(config, logp_gap_max_nats=Limit(0.8, "stop")), saved).stopped() is None


def test_what_is_not_a_number_crosses_nothing_and_does_not_stay():
    made = board(dataclasses.replace(NONE, copy_rate=Limit(0.5, "stop")))
    assert made.judge(1, {"rollout/copy_rate": float("nan")}) == []
    made.signals(1, SEEN, {"objective/kl": 1.0})
    assert made.signals(2, SEEN, {"objective/kl": float("nan")})["board/kl_speed_nats"] == 0.0
    assert made.signals(3, SEEN, {"objective/kl": 2.0})["board/kl_speed_nats"] == pytest.approx(0.1)
    assert made.stopped() is None


def test_defaults_never_stop_and_limits_are_checked():
    for watch in WATCHES:
        assert getattr(BoardConfig(), watch.limit).action == "warn"
    assert {watch.limit for watch in WATCHES} == {
        field.name for field in dataclasses.fields(BoardConfig) if field.type is Limit
    }
    with pytest.raises(ConfigError, match=r"^board\.limit\.limit = nan: must be finite; choose such a value$"):
        Limit(float("nan"))
    assert BoardState() == BoardState(**board(NONE).state())
