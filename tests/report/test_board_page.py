"""The hacking board of the report: its plots, the positions of limits, the notes on crossed limits."""

import dataclasses
import re

from pit.config import BoardConfig, Limit, to_dict
from pit.report import page
from pit.report.board import PLOTS, boards
from pit.report.metrics import Curve
from pit.rl.board import WATCHES

CURVES = {
    "loss": Curve((1, 2), (1.0, 0.5)),
    "rollout/copy_rate": Curve((1, 2, 3, 4), (0.0, 0.4, 0.9, 0.95)),
    "board/length_reward_within": Curve((1, 2, 3, 4), (-1.0, 0.0, 0.2, 1.0)),
    "objective/entropy": Curve((1, 4), (3.0, 1.0)),
    "board/reward_p05": Curve((1, 2), (-1.0, 0.0)),
    "board/reward_p95": Curve((1, 2), (1.0, 2.0)),
}


def signals_of(config):
    (board,) = boards(config, {"any-name": CURVES, "sft-policy": {"loss": CURVES["loss"]}}, ["sft-policy"])
    assert board.name == "any-name"
    return {signal.plot.title: signal for signal in board.signals}


def test_limits_are_drawn_and_crossings_are_counted():
    limits = BoardConfig(copy_rate=Limit(0.8, "stop"), length_within=Limit(0.5), entropy_nats=Limit(0.1))
    signals = signals_of({"board": to_dict(limits)})
    copied = signals["Answers equal to the reference, share"]
    assert copied.note == "limit: at most 0.80, else stop; crossed at 2 of 4 steps logged"
    assert copied.tone == "worse"
    assert copied.limits == (copied.plot.y.position(0.8),)
    length = signals["Correlation of length and reward, in a tree"]
    assert length.note == "limit: within \N{PLUS-MINUS SIGN} 0.50, else warn; crossed at 2 of 4 steps logged"
    assert length.limits == (75.0, 25.0)
    entropy = signals["Entropy, nats per answer"]
    # The limit is below the axis, whose range is that of the values.
    assert (entropy.limits, entropy.note, entropy.tone) == ((), "limit: at least 0.10, else warn", "unclear")
    reward = signals["Reward: quantiles of 5, 50 and 95 %"]
    assert [line.name for line in reward.plot.lines] == ["board/reward_p05", "board/reward_p95"]
    assert len(signals) == 4


def test_a_run_without_a_board_has_no_limits():
    signals = signals_of({}).values()
    assert len(signals) == 4
    assert {(signal.note, signal.limits, signal.tone) for signal in signals} == {("", (), "unclear")}


def test_every_limit_has_a_plot():
    assert {watch.metric for watch in WATCHES} <= {group[0] for _, group in PLOTS}


def test_the_signals_are_in_the_section_of_the_board_alone(full_results):
    results = dataclasses.replace(full_results, config={"board": to_dict(BoardConfig())})
    html = page.render_html(results, {"rl-policy": CURVES})
    assert '<a href="#board">Hacking board</a>' in html
    section = re.search(r'<section id="board">.*?</section>', html, re.S)[0]
    assert "crossed at 2 of 4 steps logged" in section
    assert "95 %" in section
    assert "length_reward" not in html
    assert 'id="board"' not in page.render_html(results, {"rl-policy": {"loss": CURVES["loss"]}})
