"""One scale for the scores of all reward models: the log-odds of pairs that the model was not trained on.

A score's unit depends on the loss and on how long it was trained: at the optimum the symmetric gap is .75 to .89 of the
log-odds with five ordered pairs, half of them with one pair, and all of them with the antisymmetric head. The same beta
is then another KL. The slope of a logistic regression on held-out pairs (Platt, 1999) brings all to log-odds.
"""

import numpy as np
from jaxtyping import Float32, Float64

from pit.errors import PitError


class ScaleError(PitError):
    """Margins of held-out pairs from which no scale follows."""


def log_odds_scale(margins: Float32[np.ndarray, " n"], what: str) -> float:
    """Return the factor a by which sigmoid(a margin) is likeliest to be the chance of the better answer.

    Labels count as (n + 1) / (n + 2), as in Platt's paper, so that a is finite even if all n margins are positive.

    Args:
        margins: score of the better answer less that of the worse one, of held-out pairs.
        what: the setting that asks for it, for messages.

    Raises:
        ScaleError: the mean margin is not positive, so that the model ranks no better than chance.

    >>> right_three_times_of_four = np.array([1, 1, 1, -1] * 1000, np.float32)
    >>> [round(log_odds_scale(c * right_three_times_of_four, ""), 2) for c in (1, 2)]  # log 3, and half of it
    [1.1, 0.55]
    """
    # Imported here, because a process that asks for no scale starts sooner without it.
    from scipy.optimize import brentq

    exact = margins.astype(np.float64)
    if not exact.mean() > 0:
        raise ScaleError(
            f"{what}: the mean margin of {len(exact):,} held-out pairs is {exact.mean():.4g}, must be > 0, because a "
            "model that ranks no better than chance has no scale; train the reward model longer, or set it to none"
        )
    target = (len(exact) + 1) / (len(exact) + 2)
    high = 1.0 / float(np.abs(exact).mean())
    while _slope(high, exact, target) < 0:
        high *= 2
    return float(brentq(_slope, 0.0, high, args=(exact, target)))


def _slope(factor: float, margins: Float64[np.ndarray, " n"], target: float) -> float:
    """Return the derivative of the mean loss by the factor, which rises with it."""
    from scipy.special import expit

    return float(np.mean(margins * (expit(factor * margins) - target)))
