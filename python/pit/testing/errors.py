"""Errors of a check: a request that cannot be carried out, and the ways in which a scorer breaks an invariant.

Only `CheckError` ends a check; an `InvariantError` becomes a line of its report.
"""

from typing import ClassVar

from pit.errors import PitError


class CheckError(PitError):
    """A check that cannot be run as requested; the message says what to change."""


class InvariantError(AssertionError):
    """An example that violates an invariant; the message gives the observed and the permitted value.

    fault: short name of the fault, as reports print it.
    """

    fault: ClassVar[str] = "violated"


class ShapeError(InvariantError):
    """A result whose shape is wrong."""

    fault: ClassVar[str] = "wrong shape"


class DtypeError(InvariantError):
    """A result that is not float32."""

    fault: ClassVar[str] = "wrong type"


class NonFiniteError(InvariantError):
    """A result with NaN or infinity."""

    fault: ClassVar[str] = "not finite"


class ScorerCrashError(InvariantError):
    """An exception that a scorer raised."""

    fault: ClassVar[str] = "raises"


class NondeterminismError(InvariantError):
    """Two different results for the same item."""

    fault: ClassVar[str] = "random"
