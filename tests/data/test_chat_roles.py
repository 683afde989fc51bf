"""Formats that leave the project: role tokens as a chat format, and formats cut at the end of an answer."""

import dataclasses

import chat_cases as cases
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.chat import ChatFormat, role_format, scored_source
from pit.data.errors import DataError
from pit.data.template import RoleTemplate
from pit.data.tokenizer import RoleTokens, Tokenizer
from pit.types import Message

REQUEST = 'Improve your "answer", INPUT and ROLES.\nOnly that: {{ x }} {% y %}'
TOKENIZER = Tokenizer.train_bpe(cases.TEXTS, 320)
TEMPLATE = RoleTemplate(TOKENIZER, (4096, 4096, 4096))
FORMAT = role_format(TOKENIZER, REQUEST)
SPECIAL = dataclasses.astuple(RoleTokens())


def contents(**options):
    """Texts without the special tokens, which a program that parses whole texts would read as such."""
    spaced = st.sampled_from(["", " ", "  ", "\n", "\t "])
    texts = st.tuples(spaced, st.text(max_size=12, **options), spaced).map("".join)
    return texts.filter(lambda text: not any(token in text for token in SPECIAL))


TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), contents()), min_size=1, max_size=4)


@given(turns=TURNS, last=contents(), reference=contents(), answer=contents())
def test_the_rendering_has_the_tokens_of_every_path(turns, last, reference, answer):
    prompt = [*(Message(*turn) for turn in turns), Message("user", last)]
    said, asked, better = Message("assistant", reference), Message("user", REQUEST), Message("assistant", answer)
    close = TEMPLATE.closings
    x, ref, y = TEMPLATE.encode_prompt(prompt), TEMPLATE.encode_answer(reference), TEMPLATE.encode_answer(answer)
    for messages, opening, ours in (
        (prompt, False, x),
        (prompt, True, [*x, *close.input]),
        ([*prompt, better], False, [*x, *close.input, *y, close.eos]),
        ([*prompt, said, asked], True, [*x, *close.reviewed, *ref, *close.reference]),
        ([*prompt, said, asked, better], False, [*x, *close.reviewed, *ref, *close.reference, *y, close.eos]),
    ):
        assert TOKENIZER.encode_format(FORMAT.render(messages, opening=opening)) == ours


def test_only_a_request_after_an_answer_makes_a_reference():
    user, said, asked = Message("user", "red"), Message("assistant", "lamp"), Message("user", REQUEST)
    for messages in ([asked], [user, asked], [said, asked], [user, said, Message("user", "more")]):
        ours = [*TEMPLATE.encode_prompt(messages), *TEMPLATE.closings.input]
        assert TOKENIZER.encode_format(FORMAT.render(messages, opening=True)) == ours
    earlier = [user, said, asked, said, user]
    assert "<|reference|>" not in FORMAT.render(earlier, opening=True)


def test_the_format_names_the_ends():
    assert FORMAT.special_tokens == {"eos_token": "<|output|>", "pad_token": "<|pad|>"}
    assert FORMAT.eos_ids == (TEMPLATE.closings.eos,)


def test_a_tokenizer_without_roles_is_refused():
    with pytest.raises(
        DataError, match=r"^tokenizer: has no role tokens, so it has a chat format of its own; use that$"
    ):
        role_format(cases.tokenizer("chatml"), REQUEST)


@pytest.mark.parametrize("name", cases.NAMES)
@given(text=st.sampled_from(["red lamp", "a\n\nb", "Is 2 + 2 = 4?"]), second=st.booleans())
def test_a_scored_conversation_ends_where_its_answer_ends(name, text, second):
    template, format = cases.chat_template(name), cases.chat_format(name)
    eos = template.tokenizer.added[template.closings.eos]
    scored = dataclasses.replace(format, source=scored_source(format.source, eos))
    turns = [Message("user", text), Message("assistant", text)]
    turns += [Message("user", cases.REQUEST), Message("assistant", text)] if second else []
    ids = template.tokenizer.encode_format(scored.render(turns, opening=False))
    x, y, close = template.encode_prompt(turns[:1]), template.encode_answer(text), template.closings
    improved = [*x, *close.reviewed, *y, *close.reference, *y, close.eos]
    assert ids == (improved if second else [*x, *close.input, *y, close.eos])
    for opening in (False, True):
        assert scored.render(turns[:1], opening=opening) == format.render(turns[:1], opening=opening)


SOURCES = ("\n{{ messages[0].content }}", "  {%- if true %} a{% endif %}\n\n", "a\n  ", "{# x #}\n\nb")


@pytest.mark.parametrize("source", SOURCES)
def test_a_scored_template_keeps_white_space(source):
    turns = [Message("user", "x")]
    given_format = ChatFormat(source, {})
    scored = ChatFormat(scored_source(source, "<e>"), {})
    assert scored.render(turns, opening=False) == given_format.render(turns, opening=False)
