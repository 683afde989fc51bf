"""The hacking board on the page: small plots of each RL stage's signals, with the limits that the run was given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pit.config import BoardConfig, Limit, from_dict
from pit.report import geometry, words
from pit.report.geometry import CurvePlot
from pit.report.metrics import Curve
from pit.rl.board import WATCHES, is_beyond

PREFIX = "board/"

PLOTS = (
    ("Answers equal to their reference", ("rollout/copy_rate",)),
    ("Similarity to the reference", ("board/similarity",)),
    ("Answers nearly equal to it", ("board/similar_share",)),
    ("Length against reward, among siblings", ("board/length_reward_within",)),
    ("Length against reward, across prompts", ("board/length_reward_across",)),
    ("Repeated n-grams, share", ("board/repeated_ngrams",)),
    ("Distinct n-grams, share", ("board/distinct_ngrams",)),
    ("Entropy, nats an answer", ("objective/entropy",)),
    ("Reward: 5, 50 and 95 % below", ("board/reward_p05", "board/reward_p50", "board/reward_p95")),
    ("KL speed, nats a step", ("board/kl_speed_nats",)),
    ("Answers cut off", ("completions/clipped_ratio",)),
    ("Gold, mean", ("board/gold",)),
    ("Gold gained over the reference", ("board/gold_gain",)),
    ("Siblings that reward and gold rank alike", ("board/gold_agreement",)),
    ("Sampler against trainer, mean nats", ("rollout/logp_gap_nats_mean",)),
    ("Sampler against trainer, most nats", ("rollout/logp_gap_nats_max",)),
)
"""Title and metrics of each plot; where there is a limit it is about the first of them."""


@dataclass(frozen=True)
class Signal:
    """A plot with its limit: heights in per cent, where they lie on the axis, and a note that says it in words."""

    plot: CurvePlot
    limits: tuple[float, ...]
    note: str
    tone: Literal["worse", "unclear"]


@dataclass(frozen=True)
class StageBoard:
    """The signals of one stage."""

    name: str
    signals: tuple[Signal, ...]


def boards(config: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Curve]], ran: list[str]) -> list[StageBoard]:
    """The boards of the stages that have one, in the order in which they ran.

    config: of the run, as results.json has it; one without a board has no limits.
    """
    limits = from_dict(BoardConfig, config["board"]) if "board" in config else None
    made = []
    for name in [n for n in ran if n in metrics] + sorted(set(metrics) - set(ran)):
        curves = metrics[name]
        if any(metric.startswith(PREFIX) for metric in curves):
            found = [_signal(title, group, curves, limits) for title, group in PLOTS]
            made.append(StageBoard(name, tuple(filter(None, found))))
    return made


def _signal(
    title: str, group: tuple[str, ...], curves: Mapping[str, Curve], limits: BoardConfig | None
) -> Signal | None:
    plot = geometry.curve_plot(title, [(metric, curves[metric]) for metric in group if metric in curves])
    if plot is None:
        return None
    watch = next((watch for watch in WATCHES if watch.metric == group[0]), None)
    limit: Limit = getattr(limits, watch.limit) if watch is not None and limits is not None else Limit()
    if watch is None or limit.limit is None:
        return Signal(plot, (), "", "unclear")
    steps = sum(is_beyond(watch, limit, value) for value in curves[group[0]].value)
    both = (limit.limit, -limit.limit) if watch.side == "either" else (limit.limit,)
    shown = tuple(plot.y.at(each) for each in both if plot.y.low <= each <= plot.y.high)
    sides = {"above": "at most", "below": "at least", "either": "within \N{PLUS-MINUS SIGN}"}
    note = f"{sides[watch.side]} {words.plain(limit.limit)}, else {limit.action}"
    if steps:
        note += f"; beyond at {words.count(steps)} of {words.count(len(curves[group[0]].step))} looks"
    return Signal(plot, shown, note, "worse" if steps else "unclear")
