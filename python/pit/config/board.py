"""The hacking board's section: what is looked at while a policy is rewarded, and how far a signal may go."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pit.config.rules import COUNT, DECAY, FINITE, SHARE, Section


@dataclass(frozen=True)
class Limit(Section):
    """How far a signal may go, and what happens beyond.

    limit: in the signal's own unit; None: nothing is watched.
    action: "warn", a line in the log each time the signal crosses the limit; "stop", which also saves a checkpoint and
        ends the stage.
    """

    section: ClassVar[str] = "board.limit"
    limit: Annotated[float | None, FINITE] = None
    action: Literal["warn", "stop"] = "warn"


@dataclass(frozen=True)
class BoardConfig(Section):
    """An audit of reward hacking in every RL stage; docs/rl.md explains each signal. No default stops a run.

    It says what a run does, not what it is about to do, and changes nothing of what is trained, so that it may be
    changed while a run is on.

    every: steps from one look at the costlier signals to the next: similarity, repetition and gold.
    gold: who says what the reward model should have said: "auto", the oracle of a task that has one and nobody
        otherwise; "judge", the reward model of the judge fold; or "none".
    ngram: length, tokens, of what counts as repeated.
    similar: edit similarity to its reference above which an answer counts as copied in all but name.
    smoothing: weight of the past in the smoothed KL speed.
    copy_rate, similar_share, repeated_ngrams, truncated: limits from above, shares.
    length_within, length_across: limits of the size of a correlation.
    kl_speed_nats: limit from above, nats a step.
    entropy_nats, gold_agreement, gold_gain: limits from below: nats an answer, a share, and the gold's own unit.
    logp_gap_mean_nats, logp_gap_max_nats: limits from above of what sampler and trainer disagree by, nats a token.
    """

    section: ClassVar[str] = "board"
    every: Annotated[int, COUNT] = 10
    gold: Literal["auto", "judge", "none"] = "auto"
    ngram: Annotated[int, COUNT] = 3
    similar: Annotated[float, SHARE] = 0.9
    smoothing: Annotated[float, DECAY] = 0.9
    copy_rate: Limit = Limit(0.8)
    similar_share: Limit = Limit(0.9)
    length_within: Limit = Limit(0.9)
    length_across: Limit = Limit(0.9)
    repeated_ngrams: Limit = Limit(0.5)
    truncated: Limit = Limit(0.5)
    kl_speed_nats: Limit = Limit(2.0)
    entropy_nats: Limit = Limit()
    gold_agreement: Limit = Limit(0.5)
    gold_gain: Limit = Limit()
    logp_gap_mean_nats: Limit = Limit(0.05)
    logp_gap_max_nats: Limit = Limit(1.0)
