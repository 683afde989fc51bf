"""Text for terminals: control characters of data, models and users are shown as escapes, never obeyed.

A text with such characters could clear the screen, set the clipboard or hide what it says (OWASP, "Terminal escape
injection"; CVE-2021-42574 for the direction marks). Every print of PIT goes through `say`, `styled` or `Terminal`.
"""

import json
import re
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters, line and paragraph separators, marks that change the direction of text, lone surrogates."""

_UNSAFE = re.compile(f"(?![\t\n])[{_CONTROLS}]")


def printable(text: str) -> str:
    r"""Return the text with each control character as an escape; tabs and line ends stay.

    >>> printable("A\x1b[2JB \u202e")
    'A\\x1b[2JB \\u202e'
    """
    return _UNSAFE.sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def json_line(value: Any, *, indent: int | None = None) -> str:
    r"""Return a value as JSON: readable Unicode, but control characters and lone surrogates as escapes.

    It is one line, or with `indent` a line per item.

    >>> json_line({"text": "caf\u00e9 \x9b \ud800"})
    '{"text": "café \\u009b \\ud800"}'
    """
    # JSON has its own escapes for tabs and line ends; those that are left part its items.
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: str, *, error: bool = False) -> None:
    """Print a text, to stderr if `error`, with its control characters shown as escapes."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Return a text of parts; a pair is a part and its style. Nothing in a part is read as markup."""
    return Text.assemble(*(printable(p) if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts))


class Terminal(Console):
    """A console whose texts are shown as they are: control characters as escapes, `:names:` as no emoji."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string with its markup as text."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of anything that can be printed, parts of tables and trees included."""
        return super().render(_shown(renderable) if isinstance(renderable, Text) else renderable, options)


def _shown(text: Text) -> Text:
    """Return a text with escapes, and its styles where they were."""
    plain = text.plain
    if not _UNSAFE.search(plain):
        return text
    pieces = [printable(character) for character in plain]
    begin = [0]
    for piece in pieces:
        begin.append(begin[-1] + len(piece))
    shown = text.blank_copy("".join(pieces))
    shown.spans = [Span(begin[span.start], begin[min(span.end, len(plain))], span.style) for span in text.spans]
    return shown


def tolerate_encodings() -> None:
    """Let stdout and stderr show characters that their encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
