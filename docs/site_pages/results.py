"""The tables of `results.json`, from the classes of `pit.evaluate.schema`."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pit.evaluate.schema import Results
from pit.evaluate.stats import Delta
from site_pages.docstrings import entries, escaped, markdown, without_entries
from site_pages.tables import code, table

PLAIN = {int: "int", float: "number", str: "text", bool: "true or false", Any: "any JSON"}


def results_page() -> str:
    """Return the fields of the file, then those of each kind of object in it."""
    return "\n\n".join(part for record in records() for part in _record(record))


def records() -> list[type]:
    """Return the classes that the file consists of, the whole first, each once."""
    found: list[type] = [Results]
    for record in found:
        inside = dict.fromkeys(kind for hint in _hints(record).values() for kind in _inside(hint))
        found += [kind for kind in inside if kind not in found]
    return found


def fields_of(record: type) -> dict[str, tuple[str, bool, str]]:
    """Return type in words, whether it is required, and meaning of every field."""
    hints = _hints(record)
    meanings = entries(inspect.getdoc(record) or "", list(hints))
    optional = {
        field.name
        for field in (dataclasses.fields(record) if dataclasses.is_dataclass(record) else ())
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    rows = {name: (_kind(hint), name not in optional, meanings.get(name, "")) for name, hint in hints.items()}
    # The file says the unit of every figure in points, which the type does not hold.
    return rows | ({"unit": ("text", True, 'Always "points".')} if record is Delta else {})


def _hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _inside(hint: Any) -> Iterator[type]:
    """Yield the classes of objects in an annotation."""
    if isinstance(hint, type) and _is_record(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _inside(argument)


def _is_record(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _kind(hint: Any) -> str:
    """Return a type in the words of JSON.

    >>> _kind(Mapping[str, int]), _kind(tuple[str, ...]), _kind(float | None)
    ('object of int', 'list of text', 'number or null')
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if part is type(None) else _kind(part) for part in arguments)
    if origin is Mapping:
        return f"object of {_kind(arguments[1])}"
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if isinstance(hint, type) and _is_record(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return PLAIN[hint]


def _record(record: type) -> Iterator[str]:
    name = record.__name__
    yield f"({name.lower()})=\n### {name}"
    doc = inspect.getdoc(record) or ""
    yield markdown(without_entries(doc, list(_hints(record))))
    rows = (
        (code(field), kind, "yes" if required else "no", escaped(meaning))
        for field, (kind, required, meaning) in fields_of(record).items()
    )
    yield table(("field", "type", "required", "meaning"), rows)
