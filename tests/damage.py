"""Damage to files: cut off, overwritten, a byte changed, or JSON in which one value is another one or gone."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD_VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [None],
    [[1], [2, 3]],
    {},
    {"a": 1},
)
"""Values that stand where another one should."""

ODD_FILES = (b"", b"\0" * 64, b"null", b"[]", b"{}", b"3", b'"x"', b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"\n\n")
"""Whole contents that no file of ours has."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any, *, gone: bool) -> Any:
    """Return a JSON value in which the value at a path is a new one, or gone."""
    result = json.loads(json.dumps(value))
    at = result
    for key in path[:-1]:
        at = at[key]
    if gone:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return result


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the content of a file after an accident."""
    kind = draw(st.sampled_from(["cut", "odd", "byte", "value", "value", "value"]))
    if kind == "cut":
        return content[: draw(st.integers(0, max(0, len(content) - 1)))]
    if kind == "odd":
        return draw(st.sampled_from(ODD_FILES))
    if kind == "byte":
        at = draw(st.integers(0, max(0, len(content) - 1)))
        return content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    lines = content.splitlines(keepends=True)
    whole = content if content.count(b"{\n") or len(lines) == 1 else b""
    number = 0 if whole else draw(st.integers(0, len(lines) - 1))
    line = whole or lines[number]
    value = json.loads(line)
    path = draw(st.sampled_from(list(places(value)) or [()]))
    if not path:
        return json.dumps(draw(st.sampled_from(ODD_VALUES))).encode()
    new = (
        json.dumps(replaced(value, path, draw(st.sampled_from(ODD_VALUES)), gone=draw(st.booleans()))).encode() + b"\n"
    )
    return new if whole else b"".join([*lines[:number], new, *lines[number + 1 :]])
