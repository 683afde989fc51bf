"""The hacking board of an RL stage: its signals step by step, what crosses a limit, and what stops the stage.

An audit, not an early warning: each signal says what the last samples were like. The signals are in `signals.py`, the
limits in `pit.config.BoardConfig`; docs/rl.md has the table of both.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32

from pit.config import BoardConfig, Limit
from pit.errors import PitError
from pit.stages import signals
from pit.stages.signals import Tokens

Gold = Callable[[Tokens, Tokens], Float64[np.ndarray, " n"]]
"""What answers are worth, higher is better: of the contents of n inputs and of an answer to each."""


class BoardStopped(PitError):
    """A signal went beyond a limit whose action is to stop; the state of that step is saved."""


class Watch(NamedTuple):
    """A limit of the config, the metric it is about, the side that is too far, and what it means to be there."""

    limit: str
    metric: str
    side: Literal["above", "below", "either"]
    meaning: str


_SAMPLER = (
    "sampler and trainer disagree about the log-probs of the same tokens, so the gradient is not that of the policy "
    "that was sampled: look at compute_dtype, at the cache, at what differs between decode and the packed rows"
)

WATCHES = (
    Watch("copy_rate", "rollout/copy_rate", "above", "the improver hands its reference back"),
    Watch("similar_share", "board/similar_share", "above", "the improver hands its reference back, a few tokens aside"),
    Watch("length_within", "board/length_reward_within", "either", "among siblings the reward is little but length"),
    Watch("length_across", "board/length_reward_across", "either", "from prompt to prompt the reward is mostly length"),
    Watch("repeated_ngrams", "board/repeated_ngrams", "above", "answers repeat themselves"),
    Watch("truncated", "completions/clipped_ratio", "above", "answers do not end"),
    Watch("kl_speed_nats", "board/kl_speed_nats", "above", "the policy runs away from its anchor"),
    Watch("entropy_nats", "objective/entropy", "below", "the policy gives nearly always the same answers"),
    Watch("gold_agreement", "board/gold_agreement", "below", "the reward model ranks siblings against the gold"),
    Watch("gold_gain", "board/gold_gain", "below", "by the gold, answers are worse than their references"),
    Watch("logp_gap_mean_nats", "rollout/logp_gap_nats_mean", "above", _SAMPLER),
    Watch("logp_gap_max_nats", "rollout/logp_gap_nats_max", "above", _SAMPLER),
)
"""What the limits of a `BoardConfig` are about."""


class Seen(NamedTuple):
    """What a step sampled, as the board sees it; `references` are None for the policy; `outputs[n][g]`."""

    inputs: Tokens
    references: Tokens | None
    outputs: list[list[list[int]]]
    scores: Float32[np.ndarray, "G N"]
    length: Int32[np.ndarray, "G N"]


@dataclass(frozen=True)
class BoardState:
    """After a step: its number, KL and its smoothed speed, nats, and the signals beyond their limits."""

    step: int = 0
    kl_nats: float | None = None
    kl_speed_nats: float = 0.0
    beyond: Mapping[str, float] = field(default_factory=dict)

    def moved(self, kl_nats: float, smoothing: float) -> "BoardState":
        """After a step with that KL to the anchor; one that is not finite is passed over.

        >>> BoardState(7, 1.0, 0.5).moved(3.0, 0.5).kl_speed_nats
        1.25
        """
        if not math.isfinite(kl_nats):
            return self
        if self.kl_nats is None:
            return replace(self, kl_nats=kl_nats)
        speed = smoothing * self.kl_speed_nats + (1.0 - smoothing) * (kl_nats - self.kl_nats)
        return replace(self, kl_nats=kl_nats, kl_speed_nats=speed)


class Board:
    """The board of one stage.

    Args:
        config: limits and intervals.
        stage: its name.
        resume: command that goes on with the stage.
        gold: what answers are worth, None where nobody knows.
        state: what an earlier process saved.
    """

    def __init__(
        self, config: BoardConfig, stage: str, resume: str, gold: Gold | None, state: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self._stage, self._resume, self._gold = config, stage, resume, gold
        self._state = BoardState(**(state or {}))

    def signals(self, step: int, seen: Seen, values: Mapping[str, float]) -> dict[str, float]:
        """The signals of a step, the costlier ones every `every` steps.

        Args:
            step: number of the step, from 1.
            seen: what it sampled.
            values: its other metrics.
        """
        self._state = self._state.moved(values["objective/kl"], self.config.smoothing)
        within, across = signals.length_and_reward(seen.length, seen.scores)
        found = {
            "length_reward_within": within,
            "length_reward_across": across,
            "kl_speed_nats": self._state.kl_speed_nats,
            **{f"reward_{name}": value for name, value in signals.quantiles(seen.scores).items()},
        }
        if step % self.config.every == 0:
            found |= deep_signals(self.config, seen) | gold_signals(self._gold, seen)
        return {f"board/{name}": value for name, value in found.items()}

    def judge(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take note of the metrics of a step; a line for each limit that was crossed since the step before."""
        before = self._state.beyond
        now = beyond(self.config, before, values)
        self._state = replace(self._state, step=step, beyond=now)
        return [self._line(watch, now[watch.limit]) for watch in WATCHES if watch.limit in now.keys() - before.keys()]

    def stopped(self) -> BoardStopped | None:
        """Why the stage must stop, None where nothing says so; it does until the setting or the signal changes."""
        for watch in WATCHES:
            value = self._state.beyond.get(watch.limit)
            limit: Limit = getattr(self.config, watch.limit)
            if value is not None and limit.action == "stop" and is_beyond(watch, limit, value):
                return BoardStopped(
                    f"{self._line(watch, value)}; the checkpoint of that step is saved: look at the board in the "
                    f"metrics and at the samples, and go on regardless with:  {self._resume} "
                    f"--set board.{watch.limit}.action=warn"
                )
        return None

    def _line(self, watch: Watch, value: float) -> str:
        limit: Limit = getattr(self.config, watch.limit)
        where = f"{self._stage}: {watch.metric} = {value:.4g} at step {self._state.step}"
        return f"{where}: {watch.meaning} (board.{watch.limit}.limit = {limit.limit})"

    def state(self) -> dict[str, Any]:
        """JSON values from which an equal board is made."""
        return {**vars(self._state), "beyond": dict(self._state.beyond)}


def is_beyond(watch: Watch, limit: Limit, value: float) -> bool:
    """Whether a value is on the wrong side of a limit; one that is not a number is on none."""
    if limit.limit is None:
        return False
    if watch.side == "below":
        return value < limit.limit
    return (abs(value) if watch.side == "either" else value) > limit.limit


def beyond(config: BoardConfig, before: Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
    """The limits that are exceeded, with the value of each; a signal that was not measured stays where it was."""
    now = {}
    for watch in WATCHES:
        value = values.get(watch.metric, before.get(watch.limit))
        if value is not None and is_beyond(watch, getattr(config, watch.limit), value):
            now[watch.limit] = value
    return now


def deep_signals(config: BoardConfig, seen: Seen) -> dict[str, float]:
    """Repetition, and for an improver how near answers are to their references."""
    answers = list(chain.from_iterable(seen.outputs))
    found = {
        "repeated_ngrams": signals.repeated_ngrams(answers, config.ngram),
        "distinct_ngrams": signals.distinct_ngrams(answers, config.ngram),
    }
    if seen.references is not None:
        similarity = signals.edit_similarity(answers, list(seen.references) * len(seen.outputs))
        found["similarity"] = float(similarity.mean())
        found["similar_share"] = float(np.mean(similarity > config.similar))
    return found


def gold_signals(gold: Gold | None, seen: Seen) -> dict[str, float]:
    """What the gold says of the samples, of what they gained over their references, and of the reward model's order."""
    if gold is None:
        return {}
    worth = np.stack([gold(seen.inputs, answers) for answers in seen.outputs], axis=1)
    found = {"gold": float(worth.mean())}
    if seen.references is not None:
        found["gold_gain"] = float((worth - gold(seen.inputs, seen.references)[:, None]).mean())
    agreement = signals.agreement(seen.scores, worth)
    return found if agreement is None else {**found, "gold_agreement": agreement}
