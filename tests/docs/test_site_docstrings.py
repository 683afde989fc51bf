"""Docstrings as Markdown: prose survives unchanged, entries and sections become lists."""

import doctest
import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from site_pages import config_fields, docstrings, results, tables

LETTERS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="`"), min_size=1)


def shown(markdown: str) -> str:
    """Return the text that a reader sees."""
    return html.unescape(re.sub(r"<[^>]*>", "", MarkdownIt().renderInline(markdown)))


@given(st.lists(LETTERS, min_size=1).map(" ".join))
def test_prose_is_shown_as_it_stands(text):
    assert shown(docstrings.escaped(text)) == text


@given(st.lists(LETTERS, min_size=1, max_size=4))
def test_cells_of_a_table_keep_their_number(texts):
    made = (
        MarkdownIt().enable("table").render(tables.table(["x"] * len(texts), [[docstrings.escaped(t) for t in texts]]))
    )
    cells = re.findall(r"<td>(.*)</td>", made)
    assert [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in cells] == texts


def test_sections_and_examples():
    doc = """Return rows.

    x: this is an equation

Args:
    sequences: token ids
        of each.
    n: how many.

Raises:
    ValueError: if there is none.

>>> f(1)
2
"""
    assert docstrings.markdown(doc).split("\n\n") == [
        "Return rows.",
        "```text\nx: this is an equation\n```",
        "**Args**",
        "- `sequences`: token ids of each.\n- `n`: how many.",
        "**Raises**",
        "- `ValueError`: if there is none.",
        "```pycon\n>>> f(1)\n2\n```",
    ]


def test_pages_that_exist_become_links():
    assert docstrings.escaped("see docs/testing.md") == "see [docs/testing.md](/docs/testing.md)"
    assert docstrings.escaped("theirs is docs/none.md") == "theirs is docs/none.md"


@pytest.mark.parametrize("module", [docstrings, tables, config_fields, results])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
