"""The probability that a candidate is better than the answer that it would replace, fitted to labelled answers.

Scores of reward models are no probabilities: their scale depends on how long they were trained. A logistic regression
on held-out answers (Platt, 1999) turns a gap and a difference of R_P into one, and the gains and losses seen there say
from which probability on replacing pays.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

RIDGE = 0.01
"""Penalty on the squared weights of standardised scores, in labelled pairs; it keeps a separable fit finite."""

_ROUNDS = 100
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Calibration:
    """P(better) = sigmoid(intercept + gap * g + quality * d), for a gap g and a difference d of R_P's scores.

    threshold: probability above which replacing gains on average.
    pairs: labelled pairs that it was fitted to.
    """

    intercept: float
    gap: float
    quality: float
    threshold: float
    pairs: int

    def probability(
        self, gaps: Float[np.ndarray, "*n"], differences: Float[np.ndarray, "*n"]
    ) -> Float64[np.ndarray, "*n"]:
        """Return the probability that candidates are better, given that one of the two is.

        >>> calibration = Calibration(0.0, 2.0, 0.0, 0.5, 10)
        >>> calibration.probability(np.array([0.0, 1.0]), np.array([5.0, 5.0])).round(3).tolist()
        [0.5, 0.881]
        """
        logit = self.intercept + self.gap * gaps.astype(np.float64) + self.quality * differences.astype(np.float64)
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)), np.float64)


def fit(
    gaps: Float[np.ndarray, " n"], differences: Float[np.ndarray, " n"], gains: Float[np.ndarray, " n"]
) -> Calibration:
    """Return the calibration of labelled pairs; those of equal worth say nothing about its probability.

    Replacing pays where P(better) times the mean gain of better candidates exceeds P(worse) times the mean loss of
    worse ones, so the threshold is loss / (gain + loss).

    Args:
        gaps: gap of each candidate over its answer.
        differences: R_P of each candidate less that of its answer.
        gains: worth of each candidate less that of its answer.

    Raises:
        ValueError: no pair differs in worth.
    """
    differing = gains != 0
    if not differing.any():
        raise ValueError(
            f"gains: all {gains.size} pairs are of equal worth, so that nothing can be fitted; give more held-out "
            "prompts, or a higher temperature"
        )
    features = np.stack([gaps, differences], axis=1)[differing].astype(np.float64)
    # A score that is the same everywhere has no weight.
    spread = np.where(features.std(axis=0) > 0, features.std(axis=0), 1.0)
    better = gains[differing] > 0
    intercept, *weights = _logistic(better.astype(np.float64), features / spread)
    gain = float(gains[gains > 0].mean()) if better.any() else 0.0
    loss = float(-gains[gains < 0].mean()) if not better.all() else 0.0
    gap, quality = (float(weight) for weight in np.asarray(weights) / spread)
    return Calibration(float(intercept), gap, quality, loss / (gain + loss), int(differing.sum()))


def _logistic(label: Float64[np.ndarray, " n"], features: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, " _"]:
    """Return the intercept and weights of a ridge-penalised logistic regression, by damped Newton steps."""
    inputs = np.concatenate([np.ones((len(features), 1)), features], axis=1)

    def objective(weights: Float64[np.ndarray, " _"]) -> float:
        logit = inputs @ weights
        return float(np.sum(np.logaddexp(0.0, logit) - label * logit) + 0.5 * RIDGE * weights @ weights)

    weights = np.zeros(inputs.shape[1])
    for _ in range(_ROUNDS):
        p = 0.5 * (1.0 + np.tanh(0.5 * (inputs @ weights)))
        gradient = inputs.T @ (p - label) + RIDGE * weights
        curve = (inputs * (p * (1.0 - p))[:, None]).T @ inputs + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curve, gradient)
        decrease = float(gradient @ step)
        if decrease < _TOLERANCE:
            return weights
        factor, value = 1.0, objective(weights)
        while objective(weights - factor * step) > value - 1e-4 * factor * decrease and factor > 1e-9:
            factor *= 0.5
        weights = weights - factor * step
    raise ArithmeticError(f"the calibration did not converge in {_ROUNDS} Newton steps; look for outliers in the gaps")
