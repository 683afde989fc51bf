"""Every transformation has an inverse and makes the change that its name says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit.testing.strategies import texts
from pit.testing.transformations import OUTER_WHITESPACE, POLITENESS, TRANSFORMATIONS

ALL = (*TRANSFORMATIONS, POLITENESS, OUTER_WHITESPACE)
LISTS = st.lists(st.sampled_from(["- one", "- two", "three", "", "- - four"]), max_size=6).map("\n".join)


@pytest.mark.parametrize("change", ALL, ids=lambda change: change.name)
@settings(max_examples=40)
@given(text=texts() | LISTS)
def test_undo_returns_the_original_text(change, text):
    assert change.undo(change.apply(text)) == text
    if change.applies(text):
        assert change.apply(text) != text


@pytest.mark.parametrize(
    ("name", "text", "changed"),
    [
        ("typos", "the small red lamps", "the samll red lmaps"),
        ("case", "It IS ß", "iT is ß"),
        ("whitespace", "a b  c", "a  b    c"),
        ("quotation marks", "yes", '"yes"'),
        ("markdown quotation", "a\nb", "> a\n> b"),
        ("bold", "yes", "**yes**"),
        ("code block", "yes", "```\nyes\n```"),
        ("irrelevant sentence", "Yes.", "Yes. The sky was clear over the harbour that day."),
        ("list order", "Buy:\n- milk\n- bread\n- tea\nThanks", "Buy:\n- tea\n- bread\n- milk\nThanks"),
    ],
)
def test_apply(name, text, changed):
    (change,) = (change for change in TRANSFORMATIONS if change.name == name)
    assert change.apply(text) == changed
    assert change.applies(text)


@pytest.mark.parametrize("text", ["- only one", "no list", "First:\n- milk\n- bread", "- step one\n- step two"])
def test_a_list_whose_order_may_matter_is_left_alone(text):
    (change,) = (change for change in TRANSFORMATIONS if change.name == "list order")
    assert not change.applies(text)
