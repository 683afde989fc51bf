"""Every reported figure with its interval: win rates, means, accuracies, length control, copying.

Plain NumPy, no JAX. Bootstrap intervals resample prompts (never single scores: the two scores of a prompt belong
together), are percentile intervals at 95 %, and depend on nothing but the data, the seed and the number of resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

LEVEL = 0.95
"""Coverage of every interval of the project."""

Z = 1.959963984540054
"""The standard normal quantile at 1 - (1 - LEVEL) / 2."""

RIDGE = 0.01
"""Penalty on the squared coefficients of the length regression: keeps a separable sample finite, and weighs as much as
a hundredth of one prompt."""

_CHUNK = 1 << 21  # resampled values held at once; 16 MiB of float64

Scores = Float[np.ndarray, " _"] | Int[np.ndarray, " _"]
"""A vector with an entry a prompt. Its length has no name: where two differ, an error of this module says which."""


class Interval(NamedTuple):
    """An estimate, the ends of its 95 % interval, and the number of items it was made from."""

    value: float
    low: float
    high: float
    n: int


class Delta(NamedTuple):
    """Win rate minus lose rate, in points (-100 to 100), with its 95 % interval.

    n: prompts compared; win, lose, tie: how many of them went each way (they add up to n).
    method: how value and interval were made, in words that a report can print.
    """

    value: float
    low: float
    high: float
    n: int
    win: int
    lose: int
    tie: int
    method: str


class CopyRate(NamedTuple):
    """How much of its reference an output repeats.

    exact: share of outputs equal to their reference, 0 to 1.
    similarity: mean of 1 - edit distance / length of the longer one, over tokens (or words), 0 to 1.
    n: pairs compared.
    """

    exact: float
    similarity: float
    n: int


def delta(candidate: Scores, baseline: Scores, tie: float = 0.0, seed: int = 0, resamples: int = 2000) -> Delta:
    """Win rate minus lose rate of a candidate over a baseline that answered the same prompts.

    A prompt is won where ``candidate - baseline > tie``, lost where it is below ``-tie``, tied otherwise. The interval
    is a paired percentile bootstrap over prompts.

    candidate, baseline: judge scores, one a prompt, in the same order; higher is better.
    tie: half-width of the band that counts as a tie, in units of the score.
    Raises ValueError where shapes differ, a score is not finite, there is no prompt, or `tie` or `resamples` is out
    of range.

    >>> d = delta(np.array([3.0, 1.0, 2.0, 5.0]), np.array([1.0, 2.0, 2.0, 4.0]))
    >>> d.value, d.win, d.lose, d.tie
    (25.0, 2, 1, 1)
    """
    outcome = _outcomes(candidate, baseline, tie)
    interval = _bootstrap_mean(100.0 * outcome, seed, resamples)
    return _as_delta(interval, outcome, f"paired bootstrap over prompts, {resamples} resamples")


def length_controlled_delta(
    candidate: Scores,
    baseline: Scores,
    length_candidate: Scores,
    length_baseline: Scores,
    tie: float = 0.0,
    seed: int = 0,
    resamples: int = 2000,
) -> Delta:
    """Win rate minus lose rate, in points, that the candidate would have at the baseline's length.

    Fits ``P(win) = sigmoid(a + b z)`` where z is the length difference over its standard deviation (not centred, so
    z = 0 means equal lengths) and a tie counts as half a win; the estimate is ``100 (2 sigmoid(a) - 1)``. A ridge of
    `RIDGE` on (a, b) keeps a sample that length separates finite. The interval refits every bootstrap resample of the
    prompts. The idea is that of length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475).

    Seven parameters: two systems by two measurements, and the three that `delta` has.
    Raises ValueError as `delta` does, and where all prompts differ in length by the same amount, not 0: then nothing
    tells length from quality.
    """
    outcome = _outcomes(candidate, baseline, tie)
    lengths = np.stack([_checked("length_candidate", length_candidate), _checked("length_baseline", length_baseline)])
    if lengths.shape[1] != outcome.size:
        raise ValueError(f"{lengths.shape[1]} lengths for {outcome.size} scores; give one length a prompt")
    difference = lengths[0] - lengths[1]
    spread = float(np.std(difference))
    if np.all(difference == difference[0]):
        if difference[0] != 0.0:
            raise ValueError(
                f"every candidate differs from its baseline by {difference[0]:g} in length, so length and quality "
                "cannot be told apart; report the plain delta"
            )
        spread = 1.0
    z = difference / spread
    share = (outcome + 1.0) / 2.0
    fit = _fit_logistic(share[None], z[None], np.zeros((1, 2)))

    def refit(index: Int[np.ndarray, "r n"]) -> Float64[np.ndarray, " r"]:
        start = np.repeat(fit, index.shape[0], axis=0)
        return _points(_fit_logistic(share[index], z[index], start))

    interval = _percentiles(float(_points(fit)[0]), refit, outcome.size, seed, resamples)
    return _as_delta(interval, outcome, f"logistic regression at equal length, paired bootstrap, {resamples} resamples")


def mean_interval(values: Scores, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean with a percentile bootstrap interval over items, in the unit of `values`.

    >>> mean_interval(np.array([2.0, 2.0]))
    Interval(value=2.0, low=2.0, high=2.0, n=2)
    """
    return _bootstrap_mean(_checked("values", values), seed, resamples)


def paired_mean_difference(candidate: Scores, baseline: Scores, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of candidate - baseline over prompts, with a paired percentile bootstrap interval."""
    first, second = _pair("candidate", candidate, "baseline", baseline)
    return _bootstrap_mean(first - second, seed, resamples)


def accuracy_interval(correct: float | int, n: int) -> Interval:
    """Share of `n` trials that were correct, with Wilson's score interval (Wilson 1927).

    correct: how many; a tie may count as half.
    Raises ValueError unless ``0 <= correct <= n`` and ``n >= 1``.

    >>> [round(end, 4) for end in accuracy_interval(50, 100)]
    [0.5, 0.4038, 0.5962, 100]
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"accuracy of {correct} correct in {n}: need n >= 1 and 0 <= correct <= n")
    share = correct / n
    scale = 1.0 + Z * Z / n
    centre = (share + Z * Z / (2 * n)) / scale
    half = Z / scale * float(np.sqrt(share * (1.0 - share) / n + Z * Z / (4.0 * n * n)))
    # Rounding may carry an end past the estimate at a share of exactly 0 or 1.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), n)


def pair_accuracy(better: Scores, worse: Scores) -> Interval:
    """Share of pairs whose better answer scores higher, ties half, with Wilson's interval.

    >>> pair_accuracy(np.array([1.0, 2.0]), np.array([0.0, 2.0])).value
    0.75
    """
    first, second = _pair("better", better, "worse", worse)
    return accuracy_interval(float(np.sum(first > second) + 0.5 * np.sum(first == second)), first.size)


def length_baseline_accuracy(length_better: Scores, length_worse: Scores) -> Interval:
    """Accuracy of the judge that prefers the longer answer (ties half): the bar under every reward model."""
    return pair_accuracy(length_better, length_worse)


def judge_verdict_allowed(accuracy: Interval, length_baseline: Interval) -> bool:
    """Whether a judge may speak: the lower end of its accuracy lies above the accuracy of "longer is better"."""
    return accuracy.low > length_baseline.value


def copy_rate(outputs: Sequence[Sequence[int] | str], references: Sequence[Sequence[int] | str]) -> CopyRate:
    """How much of their references outputs repeat; an improver that returns its reference has (1.0, 1.0).

    outputs, references: token ids, or texts, which are compared word by word (whitespace apart) except for `exact`.
    Raises ValueError where the counts differ or are 0, or a text is paired with token ids.

    >>> copy_rate(["a b c d", "a b"], ["a b c x", "a b"])
    CopyRate(exact=0.5, similarity=0.875, n=2)
    """
    if len(outputs) != len(references) or not outputs:
        raise ValueError(f"{len(outputs)} outputs for {len(references)} references; need as many, at least one")
    exact, similarity = 0, 0.0
    for output, reference in zip(outputs, references, strict=True):
        if isinstance(output, str) != isinstance(reference, str):
            raise ValueError(f"output {output!r} and reference {reference!r}: compare text with text or ids with ids")
        equal = output == reference if isinstance(output, str) else list(output) == list(reference)
        exact += equal
        similarity += 1.0 if equal else edit_similarity(_tokens(output), _tokens(reference))
    return CopyRate(exact / len(outputs), similarity / len(outputs), len(outputs))


def edit_similarity(first: Sequence[int | str], second: Sequence[int | str]) -> float:
    """1 - Levenshtein distance / length of the longer sequence; 1 for two empty ones.

    >>> edit_similarity([1, 2, 3], [1, 3])
    0.6666666666666667
    """
    longest = max(len(first), len(second))
    if longest == 0:
        return 1.0
    ids: dict[int | str, int] = {}
    a, b = (np.array([ids.setdefault(item, len(ids)) for item in side], dtype=np.int64) for side in (first, second))
    column = np.arange(b.size + 1)
    row = column.copy()
    for i, item in enumerate(a, start=1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (b != item))
        # An insertion chain is a running minimum once the column index is taken off.
        row = np.minimum.accumulate(np.concatenate([[i], changed]) - column) + column
    return float(1.0 - row[-1] / longest)


def _tokens(item: Sequence[int] | str) -> Sequence[int | str]:
    return item.split() if isinstance(item, str) else item


def _checked(name: str, values: Scores) -> Float64[np.ndarray, " n"]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; give a vector of at least one value")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}; every value must be finite ({bad.size} are not)")
    return array


def _pair(
    name_a: str, a: Scores, name_b: str, b: Scores
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    first, second = _checked(name_a, a), _checked(name_b, b)
    if first.size != second.size:
        raise ValueError(f"{name_a} has {first.size} values and {name_b} {second.size}; pair them prompt by prompt")
    return first, second


def _outcomes(candidate: Scores, baseline: Scores, tie: float) -> Float64[np.ndarray, " n"]:
    """1 for a win, -1 for a loss, 0 for a tie."""
    first, second = _pair("candidate", candidate, "baseline", baseline)
    if not (np.isfinite(tie) and tie >= 0.0):
        raise ValueError(f"tie = {tie} must be a finite number of at least 0, in units of the score")
    if tie == 0.0:  # compared, not subtracted: the result is exact whatever the scale
        win, lose = first > second, first < second
    else:
        win, lose = first - second > tie, first - second < -tie
    return np.asarray(win, dtype=np.float64) - np.asarray(lose, dtype=np.float64)


def _as_delta(interval: Interval, outcome: Float64[np.ndarray, " n"], method: str) -> Delta:
    win, lose = int(np.sum(outcome > 0)), int(np.sum(outcome < 0))
    return Delta(*interval, win, lose, outcome.size - win - lose, method)


def _bootstrap_mean(values: Float64[np.ndarray, " n"], seed: int, resamples: int) -> Interval:
    def means(index: Int[np.ndarray, "r n"]) -> Float64[np.ndarray, " r"]:
        return np.asarray(values[index].mean(axis=1), dtype=np.float64)

    return _percentiles(float(values.mean()), means, values.size, seed, resamples)


def _percentiles(
    value: float,
    statistic: Callable[[Int[np.ndarray, "r n"]], Float64[np.ndarray, " r"]],
    n: int,
    seed: int,
    resamples: int,
) -> Interval:
    """The percentile interval of a statistic over resampled indices, widened to its value where it misses it."""
    if resamples < 1:
        raise ValueError(f"resamples = {resamples} must be at least 1; 2000 is the usual number")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    drawn = [statistic(rng.integers(0, n, size=(min(step, resamples - done), n))) for done in range(0, resamples, step)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, min(float(low), value), max(float(high), value), n)


def _sigmoid(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def _points(coefficients: Float64[np.ndarray, "r 2"]) -> Float64[np.ndarray, " r"]:
    """Win rate minus lose rate at equal length, in points, of fits (intercept, slope)."""
    return 100.0 * np.tanh(0.5 * coefficients[:, 0])


def _fit_logistic(
    share: Float64[np.ndarray, "r n"], z: Float64[np.ndarray, "r n"], start: Float64[np.ndarray, "r 2"]
) -> Float64[np.ndarray, "r 2"]:
    """Ridge-penalised logistic regressions of `share` on (1, z), one a row, by Newton's method with backtracking."""

    def objective(coefficients: Float64[np.ndarray, "r 2"]) -> Float64[np.ndarray, " r"]:
        logit = coefficients[:, :1] + coefficients[:, 1:] * z
        fit = np.sum(np.logaddexp(0.0, logit) - share * logit, axis=1)
        return np.asarray(fit + 0.5 * RIDGE * np.sum(coefficients**2, axis=1), dtype=np.float64)

    current = start.copy()
    value = objective(current)
    for _ in range(100):
        p = _sigmoid(current[:, :1] + current[:, 1:] * z)
        w = p * (1.0 - p)
        gradient = np.stack([np.sum(p - share, axis=1), np.sum((p - share) * z, axis=1)], axis=1) + RIDGE * current
        cross = np.sum(w * z, axis=1)
        h00, h11 = np.sum(w, axis=1) + RIDGE, np.sum(w * z * z, axis=1) + RIDGE
        determinant = h00 * h11 - cross**2
        step = np.stack([h11 * gradient[:, 0] - cross * gradient[:, 1], h00 * gradient[:, 1] - cross * gradient[:, 0]])
        step = step.T / determinant[:, None]
        decrease = np.sum(step * gradient, axis=1)
        if np.all(decrease < 1e-12):
            return current
        factor = np.ones(len(current))
        for _ in range(40):
            trial = current - factor[:, None] * step
            trial_value = objective(trial)
            worse = trial_value > value - 1e-4 * factor * decrease + 1e-12 * np.abs(value)
            if not np.any(worse):
                break
            factor = np.where(worse, 0.5 * factor, factor)
        current, value = trial, trial_value
    raise ArithmeticError("the length regression did not converge in 100 Newton steps; check the scale of the lengths")
