"""Section of the hacking board: the signals that an RL stage watches, and the limits at which it warns or stops."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pit.config.rules import COUNT, DECAY, FINITE, SHARE, Section


@dataclass(frozen=True)
class Limit(Section):
    """Limit of a signal, and the action beyond it.

    limit: in the unit of the signal; None: the signal is not watched.
    action: "warn", a line in the log each time the signal crosses the limit; "stop", which also saves a checkpoint and
        ends the stage.
    """

    limit: Annotated[float | None, FINITE] = None
    action: Literal["warn", "stop"] = "warn"


@dataclass(frozen=True)
class BoardConfig(Section):
    """An audit of reward hacking in every RL stage (docs/reference/metrics.md). No default stops a run.

    The board describes the last samples, predicts nothing, and changes nothing of what is trained: its settings may
    change while a run is on.

    every: interval, in steps, of the costlier signals: similarity, repetition and gold.
    gold: source of the true worth of answers: "auto", the oracle of a task that has one; "judge", the reward model of
        the judge fold; or "none".
    ngram: length, in tokens, of a repeated n-gram.
    similar: edit similarity to its reference above which an answer counts as a near copy.
    smoothing: weight of the past in the smoothed KL speed.
    copy_rate, similar_share, repeated_ngrams, truncated: upper limits, shares.
    length_within, length_across: upper limits of the size of a correlation.
    kl_speed_nats: upper limit, nats per step.
    entropy_nats, gold_agreement, gold_gain: lower limits: nats per answer, a share, and the unit of the gold.
    logp_gap_mean_nats, logp_gap_max_nats: upper limits of the difference between sampler and trainer, nats per token.
    """

    every: Annotated[int, COUNT] = 10
    gold: Literal["auto", "judge", "none"] = "auto"
    ngram: Annotated[int, COUNT] = 3
    similar: Annotated[float, SHARE] = 0.9
    smoothing: Annotated[float, DECAY] = 0.9
    copy_rate: Limit = Limit(0.8)
    similar_share: Limit = Limit(0.9)
    length_within: Limit = Limit(0.9)
    length_across: Limit = Limit(0.9)
    repeated_ngrams: Limit = Limit(0.3)
    truncated: Limit = Limit(0.5)
    kl_speed_nats: Limit = Limit(0.5)
    entropy_nats: Limit = Limit()
    gold_agreement: Limit = Limit(0.5)
    gold_gain: Limit = Limit()
    logp_gap_mean_nats: Limit = Limit(0.05)
    logp_gap_max_nats: Limit = Limit(1.0)
