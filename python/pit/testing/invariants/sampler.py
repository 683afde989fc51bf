"""The figure of sampler against trainer: KL per step, under every temperature and filter.

Both compute one model, so its ideal is 0. Where it is not 0 bit for bit, sums were added in another order: decoding
reads cached keys one token at a time, and training whole rows.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pit.evaluate.stats import Interval, mean_interval
from pit.testing.invariants.base import Direct, Measurement
from pit.testing.invariants.draws import DrawCall, both_logprobs, settings_of
from pit.testing.scorers import Method, rounding_of

_CALLS = 8
"""Calls to the sampler under each setting."""


@dataclass(frozen=True)
class SamplerKl(Direct):
    """Mean KL of the sampler from the trainer per token, nats, estimated from the tokens that were drawn.

    For d = log p(trainer) - log p(sampler) the estimator exp(d) - 1 - d is never negative, and 0 only where d is
    (Schulman 2020). Under a filter the tokens are not samples of the policy, and it is a mean over those drawn.
    """

    kind: ClassVar[str] = "sampler"
    ideal: ClassVar[float | None] = 0.0

    def measure(self, scorer: Any, seed: int) -> Measurement:
        """Return the mean, with a table by setting and by step; the note says how far log-probs differ at most.

        Raises:
            InvariantError: the scorer fails.
        """
        dice = np.random.default_rng(seed)
        by_setting: dict[str, list[np.ndarray]] = {}
        for temperature, filters in settings_of(scorer):
            name = ", ".join([f"temperature {temperature:g}", *(f"{key} {number:g}" for key, number in filters)])
            for _ in range(_CALLS):
                call = DrawCall(_prompts(scorer, dice), temperature, int(dice.integers(2**16)), filters)
                by_setting.setdefault(name, []).extend(
                    recomputed.astype(np.float64) - recorded for recorded, recomputed in both_logprobs(scorer, call)
                )
        every = [difference for samples in by_setting.values() for difference in samples]
        table = [(name, _kl(np.concatenate(samples))) for name, samples in by_setting.items()]
        for step in range(max(map(len, every))):
            table.append((f"step {step + 1}", _kl(np.array([each[step] for each in every if len(each) > step]))))
        joined = np.concatenate(every)
        return Measurement(_kl(joined), np.zeros(len(joined)), tuple(table), note=_note(joined, rounding_of(scorer)))


def _prompts(scorer: Any, dice: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    low, high = scorer.format.content
    lengths = dice.integers(1, scorer.format.longest + 1, scorer.format.prefixes)
    return tuple(tuple(map(int, dice.integers(low, high + 1, length))) for length in lengths)


def _kl(difference: np.ndarray) -> Interval:
    return mean_interval(np.expm1(difference) - difference)


def _note(difference: np.ndarray, rounding: float) -> str:
    equal, largest = float(np.mean(difference == 0)), float(np.abs(difference).max())
    if equal == 1:
        return f"bit for bit the same in {len(difference)} tokens"
    return (
        f"bit for bit the same in {100 * equal:.0f} % of {len(difference)} tokens, and at most {largest:.2g} nats "
        f"apart, where rounding allows {rounding:.2g} per nat; decoding adds in another order than training"
    )


SAMPLER: tuple[Direct, ...] = (
    SamplerKl(
        "sampler_kl",
        "KL(sampler, trainer) per token, at every temperature, filter and step",
        "a sampler that differs from its trainer makes RL off-policy (Yao et al. 2025)",
        frozenset({Method.SAMPLES}),
    ),
)
"""Figures of policies."""
