"""Docstrings as Markdown, and what they say of single fields.

A docstring of the project is plain text with names in backticks. Parameters and fields stand in it as `name: text.` or
`name, other: text.`, under `Args:` or at the start of any sentence.
"""

import re
from collections.abc import Collection, Iterator
from itertools import pairwise
from textwrap import dedent

from site_pages.names import ROOT

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples")
_SECTION = re.compile(rf"({'|'.join(SECTIONS)}):[ ]*$")
_PAGE = re.compile(r"\b((?:docs|kernels)/[\w/-]+\.md)")
_ENTRY = re.compile(r"(?P<names>\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*): (?P<text>\S.*)", re.S)


def escaped(text: str) -> str:
    r"""Return prose as Markdown that shows it unchanged; backticks keep their meaning, names of pages become links.

    >>> escaped("a * b in `a * b`, <key>")
    'a \\* b in `a * b`, \\<key>'
    """
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(
        part if part.startswith("`") and not _PAGE.fullmatch(part, 1, len(part) - 1) else _plain(part.strip("`"))
        for part in parts
    )


def _plain(text: str) -> str:
    """Return text with a backslash before what Markdown would read; the name of a page becomes a link."""
    pieces = _PAGE.split(text)
    plain = [re.sub(r"([\\*_<\[\]{&$|])", r"\\\1", piece) for piece in pieces[::2]]
    links = [f"[{page}](/{page})" if (ROOT / page).is_file() else page for page in pieces[1::2]] + [""]
    return "".join(piece + link for piece, link in zip(plain, links, strict=True))


def entries(doc: str, names: Collection[str]) -> dict[str, str]:
    r"""Return what a docstring says of each of the names, on one line; a text may be that of several names.

    >>> entries("Weights.\n\nworse, better: two answers\n    of the data. policy: one.", ["worse", "better", "policy"])
    {'worse': 'Two answers of the data.', 'better': 'Two answers of the data.', 'policy': 'One.'}
    """
    flat = re.sub(r"[ \n]+", " ", re.sub(r"\n\n+", "\n\n", doc).replace("\n\n", " \0 "))
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    if not known:
        return {}
    start = re.compile(rf"(?:(?<=\0 )|(?<=[.;:] )|^)((?:{known})(?:, (?:{known}))*): ")
    found: dict[str, str] = {}
    pieces = start.split(flat)
    for group, text in zip(pieces[1::2], pieces[2::2], strict=True):
        meaning = text.split("\0")[0].strip().rstrip(";")
        for name in group.split(", "):
            found[name] = meaning[:1].upper() + meaning[1:]
    return found


def without_entries(doc: str, names: Collection[str]) -> str:
    r"""Return a docstring without the paragraphs that `entries` reads, which a table shows instead.

    >>> without_entries("Weights.\n\nworse, better: the answers.\n\nThey are whole.", ["worse", "better"])
    'Weights.\n\nThey are whole.'
    """
    known = "|".join(map(re.escape, names)) or r"\Z."
    entry = re.compile(rf"(Attributes:\s+)?(?:{known})(?:, (?:{known}))*: ")
    return "\n\n".join(paragraph for paragraph in doc.split("\n\n") if not entry.match(paragraph))


def markdown(doc: str) -> str:
    """Return a docstring as Markdown: sections as bold lines with lists, examples and indented blocks as code."""
    return "\n\n".join(part for paragraph in _paragraphs(doc) for part in _shown(paragraph)) if doc else ""


def summary(doc: str) -> str:
    """Return the first paragraph of a docstring on one line, as Markdown."""
    return escaped(" ".join(doc.split("\n\n")[0].split()))


def _paragraphs(doc: str) -> Iterator[list[str]]:
    """Yield paragraphs; a section is one paragraph up to the next line at its own indentation."""
    block: list[str] = []
    for line in [*doc.splitlines(), ""]:
        if line.strip() and not (_SECTION.match(line) and block):
            block.append(line)
            continue
        if block:
            yield block
        block = [line] if line.strip() else []


def _shown(block: list[str]) -> Iterator[str]:
    if heading := _SECTION.match(block[0]):
        body = dedent("\n".join(block[1:])).splitlines()
        yield f"**{heading[1]}**"
        # What stands in a section without a blank line before or after belongs to it while it is indented.
        inside = [line for line, raw in zip(body, block[1:], strict=True) if raw.startswith(" ")]
        yield from _listed(inside) if heading[1] not in ("Example", "Examples") else _shown(inside)
        rest = block[1 + len(inside) :]
        if rest:
            yield from _shown(rest)
    elif any(line.lstrip().startswith(">>>") for line in block):
        first = next(i for i, line in enumerate(block) if line.lstrip().startswith(">>>"))
        if first:
            yield from _shown(block[:first])
        yield "\n".join(["```pycon", *dedent("\n".join(block[first:])).splitlines(), "```"])
    elif all(line.startswith("  ") for line in block):
        yield "\n".join(["```text", *dedent("\n".join(block)).splitlines(), "```"])
    else:
        yield from _listed(block)


def _listed(block: list[str]) -> Iterator[str]:
    """Yield lines whose entries begin at the margin as a list, others as a paragraph."""
    items: list[str] = []
    for line in block:
        if items and line.startswith(" ") and not line.lstrip().startswith("- "):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    # Lines of a paragraph stand at the margin too: only those that follow an entry and begin one are of a list.
    shown: list[str] = []
    for item in items:
        if item.startswith("- "):
            shown.append(f"- {escaped(item[2:])}")
        elif (entry := _ENTRY.fullmatch(item)) and _is_name(entry["names"]):
            names = ", ".join(f"`{name}`" for name in entry["names"].split(", "))
            shown.append(f"- {names}: {escaped(entry['text'])}")
        elif shown and not (shown[-1].startswith("- ") and item[:1].isupper()):
            shown[-1] += f" {escaped(item)}"
        else:
            shown.append(escaped(item))
    prose = [line for line in shown if not line.startswith("- ")]
    yield "\n\n".join(prose) if len(prose) == len(shown) else _spaced(shown)


def _spaced(lines: list[str]) -> str:
    """Return lines with an empty one between prose and list."""
    text = lines[0]
    for before, line in pairwise(lines):
        both = before.startswith("- ") and line.startswith("- ")
        text += ("\n" if both else "\n\n") + line
    return text


def _is_name(names: str) -> bool:
    """Return whether the words before a colon are parameters, fields or errors, and not the start of a sentence."""
    return all(
        name.islower() or name.endswith(("Error", "Interruption")) for name in names.replace("*", "").split(", ")
    )
