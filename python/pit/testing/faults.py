"""How a check ends badly: the ways in which a scorer breaks a rule, told apart by name."""

from typing import ClassVar

from pit.errors import PitError


class CheckError(PitError):
    """A check that cannot be made as it was asked for; the message says what is needed."""


class Violation(AssertionError):
    """An example on which an invariant does not hold; the message says what was found and what was allowed."""

    fault: ClassVar[str] = "violated"


class WrongShape(Violation):
    """A result of another shape than one value a question."""

    fault: ClassVar[str] = "wrong shape"


class WrongType(Violation):
    """A result that is not float32."""

    fault: ClassVar[str] = "wrong type"


class NotFinite(Violation):
    """A result with NaN or infinity."""

    fault: ClassVar[str] = "not finite"


class Raised(Violation):
    """A scorer that raises."""

    fault: ClassVar[str] = "raises"


class Random(Violation):
    """A scorer that answers the same question in two ways."""

    fault: ClassVar[str] = "random"
