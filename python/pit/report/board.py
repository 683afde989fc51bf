"""The hacking board of the report: small plots of the signals of reward hacking in each RL stage, with their limits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pit.config import BoardConfig, Limit, from_dict
from pit.report import formatting, geometry
from pit.report.geometry import CurvePlot
from pit.report.metrics import Curve, StageMetrics, stage_order
from pit.rl.board import WATCHES, is_beyond

METRIC_PREFIX = "board/"
"""Prefix of the metrics that only the board shows."""

PLOTS = (
    ("Answers equal to the reference, share", ("rollout/copy_rate",)),
    ("Similarity to the reference", ("board/similarity",)),
    ("Answers nearly equal to the reference, share", ("board/similar_share",)),
    ("Correlation of length and reward, in a tree", ("board/length_reward_within",)),
    ("Correlation of length and reward, across trees", ("board/length_reward_across",)),
    ("Repeated n-grams, share", ("board/repeated_ngrams",)),
    ("Distinct n-grams, share", ("board/distinct_ngrams",)),
    ("Entropy, nats per answer", ("objective/entropy",)),
    ("Reward: quantiles of 5, 50 and 95 %", ("board/reward_p05", "board/reward_p50", "board/reward_p95")),
    ("Reward of the model", ("rewards/model",)),
    ("Reward of your function", ("rewards/function",)),
    ("Agreement of the model and your function, share", ("rewards/agreement",)),
    ("KL speed, nats per step", ("board/kl_speed_nats",)),
    ("Answers cut off, share", ("completions/clipped_ratio",)),
    ("Gold score, mean", ("board/gold",)),
    ("Gain in gold score over the reference", ("board/gold_gain",)),
    ("Agreement of reward and gold score, share", ("board/gold_agreement",)),
    ("Sampler-trainer log-prob gap, mean, nats", ("rollout/logp_gap_nats_mean",)),
    ("Sampler-trainer log-prob gap, largest, nats", ("rollout/logp_gap_nats_max",)),
)
"""Title and metrics of each plot; a limit applies to the first of the metrics."""


@dataclass(frozen=True)
class Signal:
    """Plot of a signal with its limit.

    limits: positions of the limits on the y axis, in per cent; empty if there is none in the range of the axis.
    note: the limit in words, and how often it was crossed; empty if there is none.
    tone: "worse" if the limit was crossed.
    """

    plot: CurvePlot
    limits: tuple[float, ...]
    note: str
    tone: Literal["worse", "unclear"]


@dataclass(frozen=True)
class StageBoard:
    """Signals of one stage."""

    name: str
    signals: tuple[Signal, ...]


def boards(config: Mapping[str, Any], metrics: StageMetrics, order: Iterable[str]) -> list[StageBoard]:
    """Return the boards of the stages that logged signals.

    config: configuration of the run, as in results.json; without a section `board` there are no limits.
    metrics: curves of all stages.
    order: names of stages in the order in which to show them; stages that it lacks follow by name.
    """
    limits = from_dict(BoardConfig, config["board"]) if "board" in config else None
    result = []
    for name in stage_order(metrics, order):
        curves = metrics[name]
        if any(metric.startswith(METRIC_PREFIX) for metric in curves):
            signals = [_signal(title, group, curves, limits) for title, group in PLOTS]
            result.append(StageBoard(name, tuple(filter(None, signals))))
    return result


def _signal(
    title: str, group: tuple[str, ...], curves: Mapping[str, Curve], limits: BoardConfig | None
) -> Signal | None:
    """Return the plot of a group of metrics with its limit; None if the stage logged none of them."""
    plot = geometry.curve_plot(title, [(metric, curves[metric]) for metric in group if metric in curves])
    if plot is None:
        return None
    watch = next((watch for watch in WATCHES if watch.metric == group[0]), None)
    limit: Limit = getattr(limits, watch.limit) if watch is not None and limits is not None else Limit()
    if watch is None or limit.limit is None:
        return Signal(plot, (), "", "unclear")
    crossings = sum(is_beyond(watch, limit, value) for value in curves[group[0]].value)
    ends = (limit.limit, -limit.limit) if watch.side == "either" else (limit.limit,)
    positions = tuple(plot.y.position(value) for value in ends if plot.y.low <= value <= plot.y.high)
    sides = {"above": "at most", "below": "at least", "either": "within \N{PLUS-MINUS SIGN}"}
    note = f"limit: {sides[watch.side]} {formatting.short_number(limit.limit)}, else {limit.action}"
    if crossings:
        total = formatting.integer(len(curves[group[0]].step))
        note += f"; crossed at {formatting.integer(crossings)} of {total} steps logged"
    return Signal(plot, positions, note, "worse" if crossings else "unclear")
