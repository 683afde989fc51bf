"""What a field of a config may be: ranges that stand in its annotation, checked when the config is made."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

from pit.errors import PitError


class ConfigError(PitError):
    """A config field that is unknown, out of range or contradicts another one."""


def require(ok: bool, name: str, value: object, rule: str, remedy: str) -> None:
    """Refuse a value with its name, the rule and what to do.

    Raises:
        ConfigError: not `ok`.
    """
    if not ok:
        raise ConfigError(f"{name} = {value!r}: {rule}; {remedy}")


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; `open_low` and `open_high` leave the end itself out.

    >>> POSITIVE.holds(2), POSITIVE.holds(0), POSITIVE.rule(0), POSITIVE.rule(math.inf)
    (True, False, 'must be > 0', 'must be > 0 and finite')
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: int | float) -> bool:
        """Whether the value is in the range; NaN and infinities never are."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def rule(self, value: int | float) -> str:
        """What was asked of a value that is not in the range."""
        if math.isfinite(self.high):
            return f"must be in [{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"
        bound = [f"{'>' if self.open_low else '>='} {self.low:g}"] if math.isfinite(self.low) else []
        return "must be " + " and ".join(bound if math.isfinite(value) else [*bound, "finite"])


FINITE = Range()
POSITIVE = Range(low=0.0, open_low=True)
COUNT = Range(low=1.0)
"""At least one of something."""
UNSIGNED = Range(low=0.0)
SHARE = Range(low=0.0, high=1.0)
DECAY = Range(low=0.0, high=1.0, open_high=True)
"""Of a running mean."""


@dataclass(frozen=True)
class Section:
    """A frozen group of settings. A field annotated `Annotated[float, POSITIVE]` holds positive numbers, or None."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            for rule in getattr(hints[field.name], "__metadata__", ()):
                if value is not None:
                    require(rule.holds(value), self._name(field.name), value, rule.rule(value), "choose such a value")

    def _name(self, field: str) -> str:
        return f"{self.section}.{field}" if self.section else field

    def _require(self, ok: bool, field: str, rule: str, remedy: str) -> None:
        require(ok, self._name(field), getattr(self, field), rule, remedy)
