"""The hacking board of an RL stage: its signals step by step, the limits that they cross, and when it stops the stage.

It is an audit, not an early warning: each signal describes the last samples. The signals are in `signals.py`, the
limits in `pit.config.BoardConfig`; docs/reference/metrics.md has the table of both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from pit.config import BoardConfig, Limit
from pit.data.edit import edit_similarity
from pit.errors import PitError
from pit.rl import signals
from pit.rl.records import Gold, Rollout


class BoardStoppedError(PitError):
    """A signal crossed a limit whose action is to stop; the state of that step is saved."""


class Watch(NamedTuple):
    """A limit of the config, its metric, the side beyond the limit, and the meaning of being there."""

    limit: str
    metric: str
    side: Literal["above", "below", "either"]
    meaning: str


_SAMPLER = (
    "sampler and trainer disagree about the log-probs of the same tokens, so the gradient is not that of the sampled "
    "policy: look at compute_dtype, at the cache, at differences between decode and the packed rows"
)

WATCHES = (
    Watch("copy_rate", "rollout/copy_rate", "above", "the improver hands its reference back"),
    Watch(
        "similar_share", "board/similar_share", "above", "the improver hands its reference back, but for a few tokens"
    ),
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
"""Metric and meaning of the limits of a `BoardConfig`."""


@dataclass(frozen=True)
class BoardState:
    """State after a step: its number, KL and smoothed KL speed, nats, and the signals beyond their limits."""

    step: int = 0
    kl_nats: float | None = None
    kl_speed_nats: float = 0.0
    beyond: Mapping[str, float] = field(default_factory=dict)

    def moved(self, kl_nats: float, smoothing: float) -> "BoardState":
        """Return the state after a step with that KL to the anchor; a KL that is not finite changes nothing.

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
        stage: name of the stage.
        resume: command that resumes the stage.
        gold: true worth of answers, None where nobody knows it.
        state: state that an earlier process saved.
    """

    def __init__(
        self, config: BoardConfig, stage: str, resume: str, gold: Gold | None, state: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self._stage, self._resume, self._gold = config, stage, resume, gold
        self._state = BoardState(**(state or {}))

    def signals(
        self, step: int, rollout: Rollout, scores: Float32[np.ndarray, "G N"], values: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the signals of a step, the costlier ones every `every` steps.

        Args:
            step: number of the step, from 1.
            rollout: its samples.
            scores: their scores by the reward model.
            values: its other metrics.
        """
        self._state = self._state.moved(values["objective/kl"], self.config.smoothing)
        within, across = signals.length_and_reward(rollout.samples.length, scores)
        values_of_step = {
            "length_reward_within": within,
            "length_reward_across": across,
            "kl_speed_nats": self._state.kl_speed_nats,
            **{f"reward_{name}": value for name, value in signals.quantiles(scores).items()},
        }
        if step % self.config.every == 0:
            values_of_step |= deep_signals(self.config, rollout) | gold_signals(self._gold, rollout, scores)
        return {f"board/{name}": value for name, value in values_of_step.items()}

    def judge(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Record the metrics of a step; return a line for each limit that was crossed since the step before."""
        before = self._state.beyond
        now = beyond(self.config, before, values)
        self._state = replace(self._state, step=step, beyond=now)
        return [self._line(watch, now[watch.limit]) for watch in WATCHES if watch.limit in now.keys() - before.keys()]

    def stopped(self) -> BoardStoppedError | None:
        """Return the reason to stop, None where there is none; it holds until the setting or the signal changes."""
        for watch in WATCHES:
            value = self._state.beyond.get(watch.limit)
            limit: Limit = getattr(self.config, watch.limit)
            if value is not None and limit.action == "stop" and is_beyond(watch, limit, value):
                return BoardStoppedError(
                    f"{self._line(watch, value)}; the checkpoint of that step is saved: look at the board in the "
                    f"metrics and at the samples, and resume regardless with:  {self._resume} "
                    f"--set board.{watch.limit}.action=warn"
                )
        return None

    def _line(self, watch: Watch, value: float) -> str:
        limit: Limit = getattr(self.config, watch.limit)
        where = f"{self._stage}: {watch.metric} = {value:.4g} at step {self._state.step}"
        return f"{where}: {watch.meaning} (board.{watch.limit}.limit = {limit.limit})"

    def state(self) -> dict[str, Any]:
        """Return JSON values from which an equal board is made."""
        return {**vars(self._state), "beyond": dict(self._state.beyond)}


def is_beyond(watch: Watch, limit: Limit, value: float) -> bool:
    """Return whether a value is beyond a limit; NaN never is."""
    if limit.limit is None:
        return False
    if watch.side == "below":
        return value < limit.limit
    return (abs(value) if watch.side == "either" else value) > limit.limit


def beyond(config: BoardConfig, before: Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
    """Return the limits that are crossed, with each value; a signal that was not measured stays where it was."""
    now = {}
    for watch in WATCHES:
        value = values.get(watch.metric, before.get(watch.limit))
        if value is not None and is_beyond(watch, getattr(config, watch.limit), value):
            now[watch.limit] = value
    return now


def deep_signals(config: BoardConfig, rollout: Rollout) -> dict[str, float]:
    """Return repetition and, for an improver, the similarity of answers to their references."""
    answers, references = list(chain.from_iterable(rollout.outputs)), rollout.prompts.references
    values = {
        "repeated_ngrams": signals.repeated_ngrams(answers, config.ngram),
        "distinct_ngrams": signals.distinct_ngrams(answers, config.ngram),
    }
    if references is not None:
        similarity = edit_similarity(answers, list(references) * len(rollout.outputs))
        values["similarity"] = float(similarity.mean())
        values["similar_share"] = float(np.mean(similarity > config.similar))
    return values


def gold_signals(gold: Gold | None, rollout: Rollout, scores: Float32[np.ndarray, "G N"]) -> dict[str, float]:
    """Return the worth of the samples, their gain over the references, and the agreement with the reward model."""
    if gold is None:
        return {}
    inputs, references = rollout.prompts.inputs, rollout.prompts.references
    worth = np.stack([gold(inputs, answers) for answers in rollout.outputs], axis=1)
    values = {"gold": float(worth.mean())}
    if references is not None:
        values["gold_gain"] = float((worth - gold(inputs, references)[:, None]).mean())
    agreement = signals.agreement(scores, worth)
    return values if agreement is None else {**values, "gold_agreement": agreement}
