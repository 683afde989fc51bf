"""Text of the report: numbers with signs and units, labels from names, and the differences between two answers.

Most functions here are filters of the templates.
"""

import difflib
import re
from typing import Literal, NamedTuple

Change = Literal["same", "ins", "del"]

MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"
"""Text in the place of an unknown figure."""

_PICTURES: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_HIDDEN: dict[int, int | str] = {
    code: f"<U+{code:04X}>" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


class Piece(NamedTuple):
    """Run of text that the second answer kept, added or removed."""

    change: Change
    text: str


def word_differences(before: str, after: str) -> list[Piece]:
    """Return the words that `after` keeps, adds and removes compared with `before`.

    The pieces other than "del" add up to `after` to the character. White space belongs to the word before it and is
    ignored in the comparison.

    >>> word_differences("a small cat", "a big cat")
    [Piece(change='same', text='a '), Piece(change='del', text='small '), Piece(change='ins', text='big '), \
Piece(change='same', text='cat')]
    """
    old, new = (re.findall(r"^\s+|\S+\s*", text) for text in (before, after))
    matcher = difflib.SequenceMatcher(
        None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False
    )
    pieces = []
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        same = [word.strip() for word in old[i1:i2]] == [word.strip() for word in new[j1:j2]]
        if not same:
            pieces.append(Piece("del", "".join(old[i1:i2])))
        pieces.append(Piece("same" if same else "ins", "".join(new[j1:j2])))
    return [piece for piece in pieces if piece.text]


def escape_invisible(text: str) -> str:
    r"""Return `text` with control characters and direction overrides spelled out, since they hide or reorder text.

    Line feeds and tabs stay.

    >>> escape_invisible("a\x7fb\u202ec")
    'a<U+007F>b<U+202E>c'
    """
    return text.translate(_PICTURES | _HIDDEN)


def signed_number(value: float, digits: int = 1) -> str:
    """Return a number with its sign; a number that rounds to 0 has none.

    >>> signed_number(13.04), signed_number(-0.01)
    ('+13.0', '0.0')
    """
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0.0:
        return text
    return ("+" if value > 0 else MINUS) + text


def percent(share: float, digits: int = 1) -> str:
    """Return a share, 0 to 1, in per cent.

    >>> percent(0.6127)
    '61.3%'
    """
    return f"{100.0 * share:.{digits}f}%"


def short_number(value: float | int) -> str:
    """Return a number of any size in about three significant digits.

    >>> short_number(0.01234), short_number(3.0), short_number(12345.0), short_number(2500000.0)
    ('0.0123', '3.00', '12.3k', '2.50M')
    """
    size = abs(value)
    sign = MINUS if value < 0 else ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scaled = size / (1e3 if unit == "k" else limit)
            return f"{sign}{_three_digits(scaled)}{unit}"
    return f"{sign}{_three_digits(size)}"


def _three_digits(size: float | int) -> str:
    """Return a number from 0 to 1000 in about three significant digits."""
    if size == 0.0:
        return "0"
    if size < 1e-3:
        return f"{size:.1e}"
    return f"{size:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 4}f}"


def integer(number: int) -> str:
    """Return an integer with thousands separators.

    >>> integer(12500)
    '12,500'
    """
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Return a time in the units that suit its size.

    >>> duration(0.42), duration(42.0), duration(150.0), duration(7384.0)
    ('0.4 s', '42 s', '2 min 30 s', '2 h 3 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def memory_size(size: int | None) -> str:
    """Return a number of bytes in GiB or MiB; `UNKNOWN` for None.

    >>> memory_size(3 * 2**30), memory_size(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    if size is None:
        return UNKNOWN
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def label(name: str) -> str:
    """Return a name from a file with spaces for underscores; symbols, which have capitals, stay.

    >>> label("wrong_reference"), label("R_PIT")
    ('wrong reference', 'R_PIT')
    """
    return name.replace("_", " ") if name.islower() else name


def line_label(metric: str) -> str:
    """Return the label of one line among several in a plot: the data it was measured on, or its quantile.

    >>> line_label("eval/loss"), line_label("loss"), line_label("board/reward_p05")
    ('held out', 'training', '5 %')
    """
    if metric.startswith("eval/"):
        return "held out"
    quantile = re.search(r"_p(\d\d)$", metric)
    return f"{int(quantile[1])} %" if quantile else "training"


def answer_symbol(iteration: int) -> str:
    r"""Return the symbol of the answer after a number of iterations: y with a subscript.

    >>> answer_symbol(0) == "y\N{SUBSCRIPT ZERO}"
    True
    """
    return "y" + str(iteration).translate({48 + digit: 0x2080 + digit for digit in range(10)})
