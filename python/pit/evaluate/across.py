"""Figures across seeds and across methods: t-intervals with every seed's sign, and Elo ratings.

Plain NumPy, no JAX. Intervals over prompts (`stats`) say nothing about another run of the same recipe; a t-interval
over seeds does, and needs few of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from pit.evaluate.stats import LEVEL, Interval, Scores

ELO = 400.0 / math.log(10.0)
"""Elo points a unit of log-odds: 400 points are odds of 10 to 1."""

_ROUNDS = 200
_TOLERANCE = 1e-7


class AcrossSeeds(NamedTuple):
    """A figure of several seeds: mean, 95 % t-interval, and how many seeds are above and below 0 (none: a tie)."""

    value: float
    low: float
    high: float
    seeds: int
    above: int
    below: int


def within(t: float, degrees: int) -> float:
    """Chance that Student's t with so many degrees of freedom lies in [-t, t] (Abramowitz and Stegun 26.7.3-4).

    >>> round(within(2.7764, 4), 4)
    0.95
    """
    theta = math.atan(t / math.sqrt(degrees))
    cos2, odd = math.cos(theta) ** 2, degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= cos2 * (k - 1) / k
    tail = math.sin(theta) * total
    return 2.0 / math.pi * (theta + tail) if odd else tail


def t_quantile(degrees: int) -> float:
    """The t that is exceeded in size with probability 1 - `LEVEL`.

    Raises ValueError for less than one degree of freedom.

    >>> round(t_quantile(4), 3)
    2.776
    """
    if degrees < 1:
        raise ValueError(f"degrees = {degrees} must be at least 1; an interval over seeds needs two of them")
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, degrees) < LEVEL else (low, middle)
    return high


def across_seeds(values: Sequence[float]) -> AcrossSeeds:
    """Mean of a figure over seeds with its t-interval, one value a seed.

    Raises ValueError for fewer than two values and for one that is not finite.

    >>> across_seeds([1.0, 3.0]).value
    2.0
    """
    array = np.asarray(values, np.float64)
    if array.size < 2 or not np.all(np.isfinite(array)):
        raise ValueError(f"values = {list(values)}: a t-interval needs at least two seeds, all finite; run more seeds")
    mean = float(array.mean())
    half = t_quantile(array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return AcrossSeeds(mean, mean - half, mean + half, array.size, int(np.sum(array > 0)), int(np.sum(array < 0)))


def elo(scores: Mapping[str, Scores], baseline: str, *, seed: int = 0, resamples: int = 200) -> dict[str, Interval]:
    """Elo of each method over the baseline, by Bradley and Terry's model of all pairs of methods on the same prompts.

    A tie is half a win. Every pair of methods is given one tie more than it played, so that a method which always wins
    has a finite rating. Intervals are percentiles over prompts drawn again, all methods together.

    Args:
        scores: of each method, one a prompt, in the same order.
        baseline: the method whose rating is 0.
        seed: of the resamples.
        resamples: how many.

    Raises:
        ValueError: the baseline is no method, or methods have scores of different prompts.
    """
    names = list(scores)
    if baseline not in scores:
        raise ValueError(f"baseline = {baseline!r} is no method; choose one of {', '.join(names)}")
    counts = {name: np.asarray(values).size for name, values in scores.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"scores of {counts} prompts: every method needs one score of each prompt; give as many")
    table = np.stack([np.asarray(scores[name], np.float64) for name in names])
    prompts = table.shape[1]
    rng = np.random.default_rng(seed)
    draws = np.stack([np.arange(prompts), *(rng.integers(0, prompts, prompts) for _ in range(resamples))])
    won = np.stack([_won(table, index) for index in draws])
    ratings = ELO * _bradley_terry(won)
    ratings -= ratings[:, [names.index(baseline)]]
    ends = np.quantile(ratings[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) if resamples else ratings[[0, 0]]
    return {
        name: Interval(
            float(ratings[0, i]),
            float(min(ends[0, i], ratings[0, i])),
            float(max(ends[1, i], ratings[0, i])),
            prompts,
        )
        for i, name in enumerate(names)
    }


def _won(table: Float64[np.ndarray, "m n"], index: Int[np.ndarray, " n"]) -> Float64[np.ndarray, "m m"]:
    """How often each method beat each other on the prompts of an index, ties half, and a tie more for each pair."""
    own = table[:, index]
    won = np.stack([np.sum(row > own, axis=1) + 0.5 * np.sum(row == own, axis=1) for row in own]) + 0.5
    np.fill_diagonal(won, 0.0)
    return np.asarray(won, np.float64)


def _bradley_terry(won: Float64[np.ndarray, "r m m"]) -> Float64[np.ndarray, "r m"]:
    """Log-strengths of the most likely ratings, one set a table, mean 0: Newton's method with bounded steps."""
    methods = won.shape[1]
    played = won + won.swapaxes(1, 2)
    ratings = np.zeros(won.shape[:2])
    for _ in range(_ROUNDS):
        chance = 0.5 + 0.5 * np.tanh((ratings[:, :, None] - ratings[:, None, :]) / 2)
        slope = np.sum(won - played * chance, axis=2)
        weight = played * chance * (1.0 - chance)
        # Ratings are known up to a constant: the ones keep the matrix regular and the mean where it is.
        curve = np.eye(methods) * np.sum(weight, axis=2)[:, :, None] - weight + 1.0
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        ratings = ratings + np.clip(step, -1.0, 1.0)
        if float(np.max(np.abs(step))) < _TOLERANCE:
            return np.asarray(ratings - ratings.mean(axis=1, keepdims=True), np.float64)
    raise ArithmeticError(f"Elo: ratings still move after {_ROUNDS} rounds; leave out methods that always win")
