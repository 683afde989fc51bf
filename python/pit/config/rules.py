"""Ranges of config fields, written in their annotations and checked when a config is built, and their errors."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, cast

from pit.errors import PitError


class ConfigError(PitError):
    """A config that is unknown, incomplete or contradicts itself."""


class FieldError(ConfigError):
    """A config field whose value breaks a rule.

    Attributes:
        path: the field, as `--set` takes it; a section that stands alone names its class instead.
        value: the refused value.
        rule: the rule that it breaks.
        remedy: a change that helps; `{path}` in it stands for the path.
        section: name of the section's class where the path is not known yet, else empty.
    """

    def __init__(self, path: str, value: object, rule: str, remedy: str, section: str = "") -> None:
        self.path, self.value, self.rule, self.remedy, self.section = path, value, rule, remedy, section
        shown = f"{section}.{path}" if section else path
        super().__init__(f"{shown} = {value!r}: {rule}; {remedy.replace('{path}', shown)}")

    def inside(self, where: str) -> "FieldError":
        """Return this error for a section whose fields are set as `where` + name."""
        return FieldError(f"{where}{self.path}", self.value, self.rule, self.remedy)


def require(ok: bool, path: str, value: object, rule: str, remedy: str) -> None:
    """Raise unless `ok`.

    Raises:
        FieldError: with the path, the value, the rule and the remedy.
    """
    if not ok:
        raise FieldError(path, value, rule, remedy)


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; `open_low` and `open_high` exclude the end itself.

    >>> POSITIVE.holds(2), POSITIVE.holds(0), POSITIVE.rule(0), POSITIVE.rule(math.inf)
    (True, False, 'must be > 0', 'must be > 0 and finite')
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: int | float) -> bool:
        """Return whether the value is in the range; NaN and infinities never are."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and (isinstance(value, int) or math.isfinite(value))

    def rule(self, value: int | float) -> str:
        """Return the rule that a value outside of the range breaks."""
        if math.isfinite(self.high):
            opening, closing = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"must be in {opening}{self.low:g}, {self.high:g}{closing}"
        bound = [f"{'>' if self.open_low else '>='} {self.low:g}"] if math.isfinite(self.low) else []
        return "must be " + " and ".join(
            bound if isinstance(value, int) or math.isfinite(value) else [*bound, "finite"]
        )


FINITE = Range()
POSITIVE = Range(low=0.0, open_low=True)
COUNT = Range(low=1.0)
"""Whole numbers from 1 up."""
UNSIGNED = Range(low=0.0)
SHARE = Range(low=0.0, high=1.0)
DECAY = Range(low=0.0, high=1.0, open_high=True)
"""Weight of the past in a running mean."""
LATER: Mapping[str, bool] = MappingProxyType({"later": True})
"""Metadata of a field that came after runs without it: at its default no digest holds it, so theirs stay valid."""


@dataclass(frozen=True)
class Section:
    """A frozen group of settings. A field annotated `Annotated[float, POSITIVE]` holds positive numbers, or None.

    A section does not know where it stands in a run's config: its errors carry the name of the field, and whoever reads
    the config puts the path in front (`FieldError.inside`).
    """

    def __post_init__(self) -> None:
        for field, rule in _ranges(cast(Any, type(self))):
            value: Any = getattr(self, field.name)
            self._require(value is None or rule.holds(value), field.name, rule.rule, _remedy(field))

    def _require(self, ok: bool, field: str, rule: Any, remedy: str) -> None:
        if not ok:
            value = getattr(self, field)
            raise FieldError(field, value, rule(value) if callable(rule) else rule, remedy, type(self).__name__)


@cache
def _ranges(section: type[Section]) -> "tuple[tuple[dataclasses.Field[Any], Range], ...]":
    """Return the ranges in the annotations of a section's fields, in their order."""
    hints = typing.get_type_hints(section, include_extras=True)
    return tuple(
        (field, rule)
        for field in dataclasses.fields(section)
        for rule in getattr(hints[field.name], "__metadata__", ())
    )


def _remedy(field: "dataclasses.Field[Any]") -> str:
    """Return what to set instead: the field's default, where it has one."""
    default = field.default
    if default is dataclasses.MISSING:
        return "set {path} to a value in that range"
    return f"set {{path}} to a value in that range, for example its default, {'none' if default is None else default}"
