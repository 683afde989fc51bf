"""The one rule by which a low-precision result is judged.

Its error against the float64 formula may be at most twice that of the naive formula in the same dtype, three times for
gradients; the rule of flash-attention's tests (Dao et al., 2022, arXiv 2205.14135).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

OUTPUT_FACTOR = 2.0
"""Bound on the error of an output, in errors of the naive formula."""

GRADIENT_FACTOR = 3.0
"""Bound on the error of a gradient, in errors of the naive formula."""


@dataclass(frozen=True)
class Errors:
    """Largest absolute errors of a result and of the naive formula against float64, and the bound on the first."""

    error: float
    naive: float
    bound: float

    @property
    def within(self) -> bool:
        """Whether the result keeps to the rule; a NaN does not."""
        return self.error <= self.bound


def errors(actual: Any, naive: Any, truth: Any, *, factor: int | float) -> Errors:
    """Measure a result by the rule.

    The bound has a floor, 16 float32 units of the largest magnitude, for results that the naive formula gets exactly:
    a query that sees only itself has dp - sum_s p dp = 0, which a blockwise backward forms as the difference of two
    sums in different orders.

    Args:
      actual: the result.
      naive: result of the naive formula in the dtype under test.
      truth: result of the formula in float64; finite.
      factor: OUTPUT_FACTOR or GRADIENT_FACTOR.

    Raises:
      ValueError: if the truth is not float64 or not finite.
    """
    truth = np.asarray(truth)
    if truth.dtype != np.float64:
        raise ValueError(
            f"the truth has dtype {truth.dtype}; it must be float64: compute it under jax.enable_x64(True)"
        )
    if not np.isfinite(truth).all():
        raise ValueError("the truth has values that are not finite; leave out results that are not defined")
    floor = 16 * float(np.finfo(np.float32).eps) * max(1.0, float(np.abs(truth).max(initial=0.0)))
    naive_error = float(np.abs(np.asarray(naive, np.float64) - truth).max(initial=0.0))
    error = float(np.abs(np.asarray(actual, np.float64) - truth).max(initial=0.0))
    return Errors(error, naive_error, factor * naive_error + floor)


def assert_within_rule(actual: Any, naive: Any, truth: Any, *, factor: int | float, name: str) -> None:
    """Assert that a result keeps to the rule; arguments as of `errors`, and its name for the message."""
    measured = errors(actual, naive, truth, factor=factor)
    assert measured.within, (
        f"{name} has error {measured.error:.3g} against float64; the rule allows {measured.bound:.3g} "
        f"(naive formula: {measured.naive:.3g})"
    )
