"""Texts that grow: what was shown, joined, is the text at the end, whatever was held back, and limits hold."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.template import RoleTemplate
from pit.data.tokenizer import Tokenizer
from pit.serve.growing import Growing, Limits, first_stop, held_back

TOKENIZER = Tokenizer.train_bpe(["describe this red lamp: price and size.", "aab aab abab"], 330)
TEMPLATE = RoleTemplate(TOKENIZER, (64, 64, 64))
EOS = TEMPLATE.closings.eos
texts = st.text("ab .é漢", max_size=20)
stops = st.lists(st.text("ab .é", min_size=1, max_size=3), max_size=3).map(tuple)


def ended(ids, tokens=None, stop=(), shows=False):
    return Growing(TEMPLATE, Limits(tokens, stop), shows=shows).end(ids)[0]


def obvious(ids: list[int], tokens: int | None, stop: tuple[str, ...]) -> tuple[str, str]:
    """The text and finish of an answer, from the definition alone."""
    kept = ids if tokens is None else ids[:tokens]
    finish = "stop" if kept and kept[-1] == EOS else "length"
    text = TOKENIZER.decode(kept)
    for place in range(len(text)):
        if any(text.startswith(each, place) for each in stop):
            return text[:place], "stop"
    return text, finish


@given(texts, st.booleans(), st.none() | st.integers(1, 12), stops, st.lists(st.integers(1, 4), max_size=12))
def test_what_is_shown_piece_by_piece_is_the_whole_text(text, ends, tokens, stop, steps):
    ids = [*TOKENIZER.encode(text), *([EOS] if ends else [])]
    growing, shown, place = Growing(TEMPLATE, Limits(tokens, stop), shows=True), "", 0
    for step in steps:
        place = min(place + step, len(ids))
        shown += growing.grow(ids[:place])
        expected = obvious(ids, tokens, stop)[0]
        assert expected.startswith(shown)
        if growing.done:
            break
    final, rest = growing.end(ids)
    assert shown + rest == final.text
    assert (final.text, final.finish) == obvious(ids, tokens, stop)
    assert ended(ids, tokens, stop) == final


@given(texts, st.booleans(), st.integers(1, 12), stops)
def test_a_limit_is_seen_as_soon_as_it_is_reached_and_more_tokens_change_nothing(text, ends, tokens, stop):
    ids = [*TOKENIZER.encode(text), *([EOS] if ends else [])]
    growing = Growing(TEMPLATE, Limits(tokens, stop), shows=False)
    for place in range(1, len(ids) + 1):
        growing.grow(ids[:place])
        if growing.done:
            assert place <= tokens
            assert ended(ids[:place], tokens, stop) == ended(ids, tokens, stop)
            break
    else:
        assert len(ids) < tokens
        assert first_stop(text, stop) is None


def test_an_end_counts_as_a_token() -> None:
    ids = [*TOKENIZER.encode("red lamp"), EOS]
    whole = ended(ids)
    assert (whole.text, whole.finish, whole.tokens) == ("red lamp", "stop", len(ids))
    assert whole.ids == ids[:-1]
    assert ended(ids, len(ids)).finish == "stop"
    cut = ended(ids, len(ids) - 1)
    assert (cut.text, cut.finish, cut.tokens) == ("red lamp", "length", len(ids) - 1)


def test_a_stop_text_ends_the_tokens_too() -> None:
    ids = [*TOKENIZER.encode("red. lamp size"), EOS]
    stopped = ended(ids, stop=(". ",))
    assert (stopped.text, stopped.finish) == ("red", "stop")
    assert stopped.ids == TOKENIZER.encode("red")
    assert stopped.tokens < len(ids) - 1
    assert ". " in TOKENIZER.decode(ids[: stopped.tokens])


def test_half_a_character_and_half_a_stop_text_are_held_back() -> None:
    ids = TOKENIZER.encode("a漢")
    growing = Growing(TEMPLATE, Limits(None, ()), shows=True)
    assert [growing.grow(ids[:place]) for place in range(1, len(ids) + 1)] == ["a", "", "", "漢"]
    growing = Growing(TEMPLATE, Limits(None, ("ab",)), shows=True)
    assert growing.grow(TOKENIZER.encode("b a")) == "b "
    assert growing.grow(TOKENIZER.encode("b a.")) == "a."


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("", ["ab"], 0), ("xa", ["ab"], 1), ("aa", ["aab"], 2), ("ab", ["ab"], 0), ("a", [], 0)],
)
def test_the_longest_beginning_of_a_stop_text_is_held_back(text: str, stop: list[str], length: int) -> None:
    assert held_back(text, stop) == length


def test_a_stop_text_longer_than_any_answer_costs_nothing() -> None:
    begin = time.perf_counter()
    assert held_back("ab" * 200, ["ab" * 1_000_000]) == 400
    assert time.perf_counter() - begin < 1
