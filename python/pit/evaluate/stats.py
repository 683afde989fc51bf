"""Statistics of one run with their intervals: win rates, means, accuracies, length control, copying. NumPy, no JAX.

Bootstrap intervals are percentile intervals at 95 % and depend only on the data, the seed and the number of resamples.
They resample prompts, never single scores, because the two scores of a prompt belong together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from pit.data.edit import edit_similarity

LEVEL = 0.95
"""Coverage of every interval."""

Z = 1.959963984540054
"""The standard normal quantile at 1 - (1 - LEVEL) / 2."""

RIDGE = 0.01
"""Penalty on the squared coefficients of the length regression: one hundredth of the weight of a prompt.

It keeps the coefficients finite where length separates wins from losses."""

_CHUNK = 1 << 21  # resampled values in memory at a time; 16 MiB of float64

Scores = Float[np.ndarray, " _"] | Int[np.ndarray, " _"]
"""Vector with one entry per prompt; where two lengths differ, an error of this module names both vectors."""


class Interval(NamedTuple):
    """Estimate, the ends of its 95 % interval, and the number of items behind it.

    value: the estimate. low, high: ends of its interval. n: number of items, such as pairs or answers.
    """

    value: float
    low: float
    high: float
    n: int


class Delta(NamedTuple):
    """Win rate minus lose rate, in points (-100 to 100), with its 95 % interval.

    value: 100 (win rate - lose rate). low, high: ends of its interval.
    n: number of prompts compared.
    win, lose, tie: number of prompts that the candidate won, lost and tied; they add up to n.
    method: description of how value and interval were computed, for the report.
    """

    value: float
    low: float
    high: float
    n: int
    win: int
    lose: int
    tie: int
    method: str


class LengthRule(NamedTuple):
    """The rule of length alone that ranks more pairs right, and the share that it ranks right.

    longer: whether it prefers the longer answer; the rule that prefers the shorter one is right where that is wrong.
    """

    longer: bool
    accuracy: float

    @property
    def text(self) -> str:
        """The rule in words."""
        return "longer is better" if self.longer else "shorter is better"


class CopyRate(NamedTuple):
    """Agreement of outputs with their references.

    exact: share of outputs equal to their reference, 0 to 1.
    similarity: mean of 1 - edit distance / length of the longer one, in tokens (or words), 0 to 1.
    n: number of pairs compared.
    """

    exact: float
    similarity: float
    n: int


def delta(candidate: Scores, baseline: Scores, tie: float = 0.0, seed: int = 0, resamples: int = 2000) -> Delta:
    """Return the win rate minus the lose rate of a candidate over a baseline that answered the same prompts.

    A prompt is won if ``candidate - baseline > tie``, lost if the difference is below ``-tie``, and tied otherwise. The
    interval is a paired percentile bootstrap over prompts.

    candidate, baseline: judge scores, one per prompt, prompts in the same order; higher is better.
    tie: half-width of the band that counts as a tie, in units of the score.
    Raises ValueError if shapes differ, a score is not finite, there is no prompt, or `tie` or `resamples` is out of
    range.

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
    """Return the win rate minus the lose rate, in points, that the candidate would have at the baseline's length.

    Fits ``P(win) = sigmoid(a + b z)``, where z is the length difference over its standard deviation (not centred, so
    z = 0 means equal lengths) and a tie counts as half a win. The estimate is ``100 (2 sigmoid(a) - 1)``. A ridge of
    `RIDGE` on (a, b) keeps the fit finite where length separates wins from losses. The interval refits every bootstrap
    resample of the prompts. The method follows length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475).

    Seven parameters: two measurements of two systems, and the three other parameters of `delta`.
    Raises ValueError as `delta` does, and if all prompts differ in length by the same amount other than 0, because the
    effect of length cannot be estimated then.

    >>> wins, zeros = np.array([1.0, 1.0, -1.0, 1.0]), np.zeros(4)
    >>> d = length_controlled_delta(wins, zeros, np.array([9, 3, 2, 7]), np.array([4, 3, 3, 4]), resamples=20)
    >>> d.win, d.lose, d.low <= d.value <= d.high
    (3, 1, True)
    """
    outcome = _outcomes(candidate, baseline, tie)
    lengths = np.stack(
        [_as_vector("length_candidate", length_candidate), _as_vector("length_baseline", length_baseline)]
    )
    if lengths.shape[1] != outcome.size:
        raise ValueError(
            f"length_candidate and length_baseline have {lengths.shape[1]} values for {outcome.size} scores; "
            "give one length per prompt"
        )
    difference = lengths[0] - lengths[1]
    spread = float(np.std(difference))
    if np.all(difference == difference[0]):
        if difference[0] != 0.0:
            raise ValueError(
                f"length_candidate - length_baseline = {difference[0]:g} for every prompt: the effect of length cannot "
                "be estimated; call delta"
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
    """Return the mean with a percentile bootstrap interval over items, in the unit of `values`.

    >>> mean_interval(np.array([2.0, 2.0]))
    Interval(value=2.0, low=2.0, high=2.0, n=2)
    """
    return _bootstrap_mean(_as_vector("values", values), seed, resamples)


def paired_mean_difference(candidate: Scores, baseline: Scores, seed: int = 0, resamples: int = 2000) -> Interval:
    """Return the mean of candidate - baseline over prompts, with a paired percentile bootstrap interval.

    >>> paired_mean_difference(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    Interval(value=1.0, low=1.0, high=1.0, n=2)
    """
    first, second = _as_vectors("candidate", candidate, "baseline", baseline)
    return _bootstrap_mean(first - second, seed, resamples)


def accuracy_interval(correct: float | int, n: int) -> Interval:
    """Return the share of `n` trials that were correct, with Wilson's score interval (Wilson 1927).

    correct: number of correct trials; a tie may count as half.
    Raises ValueError unless ``0 <= correct <= n`` and ``n >= 1``.

    >>> [round(end, 4) for end in accuracy_interval(50, 100)]
    [0.5, 0.4038, 0.5962, 100]
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct = {correct} and n = {n} must satisfy n >= 1 and 0 <= correct <= n")
    share = correct / n
    scale = 1.0 + Z * Z / n
    centre = (share + Z * Z / (2 * n)) / scale
    half = Z / scale * float(np.sqrt(share * (1.0 - share) / n + Z * Z / (4.0 * n * n)))
    # At a share of exactly 0 or 1, rounding may put an end past the estimate.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), n)


def pair_accuracy(better: Scores, worse: Scores) -> Interval:
    """Return the share of pairs whose better answer scores higher, ties half, with Wilson's interval.

    >>> pair_accuracy(np.array([1.0, 2.0]), np.array([0.0, 2.0])).value
    0.75
    """
    first, second = _as_vectors("better", better, "worse", worse)
    return accuracy_interval(float(np.sum(first > second) + 0.5 * np.sum(first == second)), first.size)


def sign_accuracy(forward: Scores, backward: Scores) -> Interval:
    """Return the share of right signs of a gap that is asked both ways, ties half, with Wilson's interval over pairs.

    An offset that all gaps share gains nothing: it is right one way and wrong the other.

    Args:
        forward: gap of the better answer over the worse one.
        backward: gap of the worse answer over the better one.

    >>> sign_accuracy(np.array([0.5, 0.1]), np.array([-0.5, 0.1])).value
    0.75
    """
    first, second = _as_vectors("forward", forward, "backward", backward)
    return accuracy_interval(float(np.sum(2 + np.sign(first) - np.sign(second)) / 4), first.size)


def length_baseline_accuracy(length_better: Scores, length_worse: Scores) -> Interval:
    """Return the accuracy of "the longer answer is better" (ties half), the baseline of every reward model.

    >>> length_baseline_accuracy(np.array([5, 2]), np.array([4, 2])).value
    0.75
    """
    return pair_accuracy(length_better, length_worse)


def length_rule(length_baseline: Interval) -> LengthRule:
    """Return the better of the two rules of length, from the accuracy of "longer is better".

    >>> length_rule(accuracy_interval(30, 100))
    LengthRule(longer=False, accuracy=0.7)
    """
    value = length_baseline.value
    return LengthRule(value >= 0.5, max(value, 1.0 - value))


def judge_verdict_allowed(accuracy: Interval, length_baseline: Interval) -> bool:
    """Return whether a judge's verdict counts: its accuracy is clearly above that of `length_rule`.

    >>> judge_verdict_allowed(accuracy_interval(70, 100), accuracy_interval(60, 100))
    True
    >>> judge_verdict_allowed(accuracy_interval(70, 100), accuracy_interval(30, 100))
    False
    """
    return accuracy.low > length_rule(length_baseline).accuracy


def perplexity_interval(nll: Scores, tokens: Scores) -> Interval:
    """Return exp(sum of nll / sum of tokens), with the interval of a ratio by the delta method over texts.

    Args:
        nll: negative log-likelihood of each text, nats.
        tokens: tokens of each text, at least 1.

    Raises:
        ValueError: shapes differ, a value is not finite, a text has no token, or there are fewer than two texts.

    >>> perplexity_interval(np.log(2.0) * np.array([1.0, 3.0]), np.array([1, 3])).value
    2.0
    """
    total, length = _as_vectors("nll", nll, "tokens", tokens)
    if total.size < 2 or length.min() < 1:
        raise ValueError(f"tokens = {length.tolist()[:8]} must hold two texts or more, each of at least one token")
    rate = float(total.sum() / length.sum())
    residual = total - rate * length
    error = float(np.sqrt(total.size / (total.size - 1) * np.sum(residual**2)) / length.sum())
    value, low, high = (float(np.exp(rate + sign * Z * error)) for sign in (0.0, -1.0, 1.0))
    return Interval(value, low, high, total.size)


def copy_rate(outputs: Sequence[Sequence[int] | str], references: Sequence[Sequence[int] | str]) -> CopyRate:
    """Return how much of their references outputs repeat; an improver that returns its reference has (1.0, 1.0).

    outputs, references: token ids, or texts. Texts are compared word by word (without white space) except for `exact`.
    Raises ValueError if the counts differ or are 0, or if a text is paired with token ids.

    >>> copy_rate(["a b c d", "a b"], ["a b c x", "a b"])
    CopyRate(exact=0.5, similarity=0.875, n=2)
    """
    if len(outputs) != len(references) or not outputs:
        raise ValueError(
            f"outputs has {len(outputs)} entries and references {len(references)}; "
            "give one reference per output, at least one"
        )
    exact, columns = 0, (list[Sequence[int]](), list[Sequence[int]]())
    ids: dict[str, int] = {}
    for output, reference in zip(outputs, references, strict=True):
        if isinstance(output, str) != isinstance(reference, str):
            raise ValueError(f"output {output!r} and reference {reference!r}: give two texts or two lists of token ids")
        exact += output == reference if isinstance(output, str) else list(output) == list(reference)
        for column, side in zip(columns, (output, reference), strict=True):
            column.append([ids.setdefault(word, len(ids)) for word in side.split()] if isinstance(side, str) else side)
    n = len(outputs)
    return CopyRate(exact / n, sum(edit_similarity(*columns).tolist()) / n, n)


def _as_vector(name: str, values: Scores) -> Float64[np.ndarray, " n"]:
    """Return `values` as float64, or raise ValueError if they are not a vector of finite numbers."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; give a vector with at least one value")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] = {array[bad[0]]}: every value must be finite; {bad.size} are not")
    return array


def _as_vectors(
    name_a: str, a: Scores, name_b: str, b: Scores
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return two vectors of the same prompts, or raise ValueError if their lengths differ."""
    first, second = _as_vector(name_a, a), _as_vector(name_b, b)
    if first.size != second.size:
        raise ValueError(f"{name_a} has {first.size} values and {name_b} {second.size}; give one value per prompt each")
    return first, second


def _outcomes(candidate: Scores, baseline: Scores, tie: float) -> Float64[np.ndarray, " n"]:
    """Return 1 for a win, -1 for a loss and 0 for a tie, per prompt."""
    first, second = _as_vectors("candidate", candidate, "baseline", baseline)
    if not (np.isfinite(tie) and tie >= 0.0):
        raise ValueError(f"tie = {tie} must be a finite number of at least 0, in units of the score")
    if tie == 0.0:  # comparing is exact at any scale, subtracting is not
        win, lose = first > second, first < second
    else:
        win, lose = first - second > tie, first - second < -tie
    return np.asarray(win, dtype=np.float64) - np.asarray(lose, dtype=np.float64)


def _as_delta(interval: Interval, outcome: Float64[np.ndarray, " n"], method: str) -> Delta:
    win, lose = int(np.sum(outcome > 0)), int(np.sum(outcome < 0))
    return Delta(*interval, win, lose, outcome.size - win - lose, method)


def _bootstrap_mean(values: Float64[np.ndarray, " n"], seed: int, resamples: int) -> Interval:
    """Return the mean with its percentile bootstrap interval."""

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
    """Return the percentile interval of a statistic over resampled indices, widened if necessary to hold `value`."""
    if resamples < 1:
        raise ValueError(f"resamples = {resamples} must be at least 1; the default is 2000")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    counts = [min(step, resamples - done) for done in range(0, resamples, step)]
    samples = [statistic(rng.integers(0, n, size=(count, n))) for count in counts]
    low, high = np.quantile(np.concatenate(samples), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, min(float(low), value), max(float(high), value), n)


def _sigmoid(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def _points(coefficients: Float64[np.ndarray, "r 2"]) -> Float64[np.ndarray, " r"]:
    """Return the win rate minus the lose rate at equal length, in points, of each fit (intercept, slope)."""
    return 100.0 * np.tanh(0.5 * coefficients[:, 0])


def _fit_logistic(
    share: Float64[np.ndarray, "r n"], z: Float64[np.ndarray, "r n"], start: Float64[np.ndarray, "r 2"]
) -> Float64[np.ndarray, "r 2"]:
    """Fit ridge-penalised logistic regressions of `share` on (1, z), one per row, by Newton's method."""

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
    raise ArithmeticError("length regression did not converge in 100 Newton steps; check the lengths for outliers")
