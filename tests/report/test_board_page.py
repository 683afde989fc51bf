"""The hacking board on the page: which plots there are, where limits lie, what is said of those that were crossed."""

import dataclasses
import re

from pit.config import BoardConfig, Limit, to_dict
from pit.report import page
from pit.report.board import PLOTS, boards
from pit.report.metrics import Curve
from pit.stages.board import WATCHES

CURVES = {
    "loss": Curve((1, 2), (1.0, 0.5)),
    "rollout/copy_rate": Curve((1, 2, 3, 4), (0.0, 0.4, 0.9, 0.95)),
    "board/length_reward_within": Curve((1, 2, 3, 4), (-1.0, 0.0, 0.2, 1.0)),
    "objective/entropy": Curve((1, 4), (3.0, 1.0)),
    "board/reward_p05": Curve((1, 2), (-1.0, 0.0)),
    "board/reward_p95": Curve((1, 2), (1.0, 2.0)),
}


def shown(config):
    (board,) = boards(config, {"rl-first": CURVES, "sft-policy": {"loss": CURVES["loss"]}}, ["sft-policy", "rl-first"])
    assert board.name == "rl-first"
    return {signal.plot.title: signal for signal in board.signals}


def test_limits_are_drawn_and_crossings_counted():
    limits = BoardConfig(copy_rate=Limit(0.8, "stop"), length_within=Limit(0.5), entropy_nats=Limit(0.1))
    signals = shown({"board": to_dict(limits)})
    copied = signals["Answers equal to their reference"]
    assert copied.note == "at most 0.80, else stop; beyond at 2 of 4 looks"
    assert copied.tone == "worse"
    assert copied.limits == (copied.plot.y.at(0.8),)
    length = signals["Length against reward, among siblings"]
    assert length.note == "within \N{PLUS-MINUS SIGN} 0.50, else warn; beyond at 2 of 4 looks"
    assert length.limits == (75.0, 25.0)
    entropy = signals["Entropy, nats an answer"]
    # The limit lies below the axis, which is that of the values.
    assert (entropy.limits, entropy.note, entropy.tone) == ((), "at least 0.10, else warn", "unclear")
    reward = signals["Reward: 5, 50 and 95 % below"]
    assert [line.name for line in reward.plot.lines] == ["board/reward_p05", "board/reward_p95"]
    assert len(signals) == 4


def test_a_run_without_a_board_has_no_limits():
    assert all(signal.note == "" for signal in shown({}).values())


def test_every_limit_has_a_plot():
    assert {watch.metric for watch in WATCHES} <= {group[0] for _, group in PLOTS}


def test_the_page_has_the_board_and_keeps_its_signals_out_of_the_rest(full_results):
    results = dataclasses.replace(full_results, config={"board": to_dict(BoardConfig())})
    html = page.render_html(results, {"rl_policy": CURVES})
    assert '<a href="#board">Hacking board</a>' in html
    section = re.search(r'<section id="board">.*?</section>', html, re.S)[0]
    assert "beyond at 2 of 4 looks" in section
    assert "95 %" in section
    assert "length_reward" not in html
    assert 'id="board"' not in page.render_html(results, {"rl_policy": {"loss": CURVES["loss"]}})
