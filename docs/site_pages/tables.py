"""Tables of Markdown."""

import re
from collections.abc import Iterable, Sequence


def code(text: str) -> str:
    """Return text as a code span; nothing for nothing."""
    return f"`{text}`" if text else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Return a table; the cells are Markdown on one line.

    >>> print(table(["type"], [["`int | None`"]]))
    | type |
    | --- |
    | `int \| None` |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Return a cell whose bars do not end it."""
    return re.sub(r"(?<!\\)\|", r"\|", text)
