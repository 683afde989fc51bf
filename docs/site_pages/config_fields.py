"""The tables of config fields, from the classes of `pit.config`: one per section, with range and default."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from pit.config import RunConfig
from pit.config.rules import Range
from site_pages.docstrings import entries, escaped, markdown, without_entries
from site_pages.tables import code, table


class Setting(typing.NamedTuple):
    """A config field as the page shows it.

    kind: its type in words. default: as `--set` takes it; empty for a section.
    section: class of the section, if it is one.
    """

    name: str
    kind: str
    default: str
    meaning: str
    section: type | None


def config_page() -> str:
    """Return the sections of a run's config in their order, then those inside them, each with its fields."""
    return "\n\n".join(part for section in sections() for part in _section(section))


@cache
def sections() -> list[type]:
    """Return the classes of sections, a run's own first, each once."""
    found: list[type] = [RunConfig]
    for section in found:
        inside = dict.fromkeys(setting.section for setting in settings(section) if setting.section is not None)
        found += [kind for kind in inside if kind not in found]
    return found


@cache
def settings(section: type) -> list[Setting]:
    """Return the fields of a section; what base classes say of a field counts where the section says nothing."""
    hints = typing.get_type_hints(section, include_extras=True)
    names = [field.name for field in dataclasses.fields(section)]
    meanings: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if dataclasses.is_dataclass(base):
            meanings |= entries(inspect.getdoc(base) or "", names)
    return [
        Setting(
            name=field.name,
            kind=_kind(hints[field.name]),
            default=_default(field),
            meaning=meanings.get(field.name, ""),
            section=_section_in(hints[field.name]),
        )
        for field in dataclasses.fields(section)
    ]


@cache
def paths(section: type) -> list[str]:
    """Return where a section stands in a run's config, as `--set` names it; empty for the run itself."""
    found = []
    for parent in sections():
        for setting in settings(parent):
            if setting.section is section:
                found += [f"{above}.{setting.name}".lstrip(".") for above in paths(parent) or [""]]
    return found


def _section(section: type) -> Iterator[str]:
    places = paths(section)
    yield f"({section.__name__.lower()})=\n## {section.__name__}"
    if places:
        yield "At " + ", ".join(code(place) for place in places) + "."
    names = [setting.name for setting in settings(section)]
    yield markdown(without_entries(inspect.getdoc(section) or "", names))
    rows = ((code(s.name), s.kind, s.default, escaped(s.meaning)) for s in settings(section))
    yield table(("field", "value", "default", "meaning"), rows)


def _section_in(hint: Any) -> type | None:
    """Return the class of a section in an annotation, which may allow none too."""
    kinds = (hint, *typing.get_args(hint))
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _kind(hint: Any) -> str:
    """Return the type of a field in words, with its range.

    >>> from typing import Annotated
    >>> _kind(Annotated[float | None, Range(0.0, 1.0)]), _kind(Literal["a", "b"]), _kind(int)
    ('number in [0, 1], or none', '`a`, `b`', 'whole number')
    """
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"section [{name}](#{name.lower()})"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        words = _kind(arguments[0])
        ranges = [extra for extra in arguments[1:] if isinstance(extra, Range)]
        kind, _, none = words.partition(", or none")
        return " ".join([kind, *(_range(extra) for extra in ranges)]).strip() + (", or none" if words != kind else none)
    if origin is Literal:
        return ", ".join(code(str(value)) for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return ", or ".join("none" if part is type(None) else _kind(part) for part in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(hint, code(str(hint)))


def _range(allowed: Range) -> str:
    if math.isfinite(allowed.low) or math.isfinite(allowed.high):
        return allowed.rule(0).removeprefix("must be ")
    return ""


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        return ""
    if value is None or isinstance(value, bool):
        return code(str(value).lower())
    return code(str(value))
