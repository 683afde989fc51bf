"""Signals of reward hacking, each a pure function of a step's samples: copying, length, repetition, proxy and gold.

Answers and references are token contents; arrays are [G, N], samples of trees. Sources: Goodhart's curves of Gao et al.
(arXiv 2210.10760) for proxy against gold, Singhal et al. (arXiv 2310.03716) for length, Kumar et al. (arXiv 2409.12917)
for improvers that hand their reference back, Li et al. (arXiv 1510.03055) for distinct n-grams.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32

from pit.data.tokens import Sequences

QUANTILES = (5, 25, 50, 75, 95)
"""Logged quantiles of the rewards, per cent."""


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Return Pearson's correlation; 0 where one side is constant.

    >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), correlation(np.ones(3), np.arange(3.0))
    (1.0, 0.0)
    """
    dx, dy = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (x, y))
    # Deviations of equal values are not 0 but of the size of their rounding.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.sum(dx * dy) / np.sqrt(np.sum(dx * dx) * np.sum(dy * dy)))


def length_and_reward(length: Int32[np.ndarray, "G N"], scores: Float32[np.ndarray, "G N"]) -> tuple[float, float]:
    """Return the correlation of length with score within trees, and across the means of trees.

    Only the first moves a policy: advantages are deviations within a tree.

    >>> length_and_reward(np.array([[1, 2], [7, 8]], np.int32), np.array([[5, 6], [1, 2]], np.float32))
    (1.0, -1.0)
    """
    tokens, score = length.astype(np.float64), scores.astype(np.float64)
    mean_tokens, mean_score = tokens.mean(axis=1), score.mean(axis=1)
    within = correlation((tokens - mean_tokens[:, None]).ravel(), (score - mean_score[:, None]).ravel())
    return within, correlation(mean_tokens, mean_score)


def ngrams(answer: Sequence[int] | np.ndarray, n: int) -> list[tuple[int, ...]]:
    """Return the n-grams of an answer, from left to right."""
    tokens = [int(token) for token in answer]
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repeated_ngrams(answers: Sequences, n: int) -> float:
    """Return the share of n-grams that repeat an earlier one of the same answer, mean over answers that have any.

    >>> repeated_ngrams([[1, 2, 1, 2, 1], [1, 2, 3], [4]], 2)
    0.25
    """
    shares = [1.0 - len(set(grams)) / len(grams) for answer in answers if (grams := ngrams(answer, n))]
    return float(np.mean(shares)) if shares else 0.0


def distinct_ngrams(answers: Sequences, n: int) -> float:
    """Return the share of distinct n-grams among those of all answers: low where prompts get one answer; 1 without any.

    >>> distinct_ngrams([[1, 2, 3], [1, 2, 4]], 2)
    0.75
    """
    grams = [gram for answer in answers for gram in ngrams(answer, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def quantiles(scores: Float32[np.ndarray, "G N"]) -> dict[str, float]:
    """Return the `QUANTILES` of all scores, linear between neighbours.

    >>> quantiles(np.array([[0, 1], [2, 4]], np.float32))["p50"]
    1.5
    """
    values = np.quantile(scores.astype(np.float64), np.array(QUANTILES) / 100)
    return {f"p{percent:02d}": float(value) for percent, value in zip(QUANTILES, values, strict=True)}


def agreement(proxy: Float32[np.ndarray, "G N"], gold: Float64[np.ndarray, "G N"]) -> float | None:
    """Return the share of pairs of siblings that differ in gold and that the proxy ranks the same way.

    Ties of the proxy count a half. None where no two siblings differ in gold.

    >>> agreement(np.array([[1, 2, 2]], np.float32), np.array([[0.0, 1.0, 0.5]]))
    0.8333333333333334
    """
    first, second = np.triu_indices(gold.shape[1], 1)
    by_gold = np.sign(gold[:, first] - gold[:, second])
    by_proxy = np.sign(proxy[:, first] - proxy[:, second])
    differ = by_gold != 0
    if not differ.any():
        return None
    return float(np.mean((1 + by_gold[differ] * by_proxy[differ]) / 2))
