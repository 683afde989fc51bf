"""Answers that begin with the prompt, in the ways in which sets repeat it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.readers.repeats import repeats
from pit.types import Message

LAMP = (Message("user", "Describe a lamp."),)
LONGER = (Message("user", "Hi."), Message("assistant", "Hello."), *LAMP)
LONG = (Message("user", "Describe the tall red lamp over there."),)


@pytest.mark.parametrize(
    ("prompt", "better", "worse", "whose"),
    [
        (LAMP, "Describe a lamp. Red.", "Describe a lamp. Tall.", "both answers"),
        (LAMP, "Describe a lamp.\n\nRed.", " Describe  a\tlamp. Tall.", "both answers"),
        (LAMP, "Human: Describe a lamp.\n\nAssistant: Red.", "Describe a lamp. Tall.", "both answers"),
        (LAMP, "### Instruction:\nDescribe a lamp.\nRed.", "USER: Describe a lamp. Tall.", "both answers"),
        (LONGER, "Describe a lamp. Red.", "Describe a lamp. Tall.", "both answers"),
        (LONGER, "Hi.\nHello.\nDescribe a lamp.\nRed.", "Hi. Hello. Describe a lamp. Tall.", "both answers"),
        (LONGER, "User: Hi.\nAssistant: Hello.\nUser: Describe a lamp. Red.", "Describe a lamp. No.", "both answers"),
        # In one answer alone, where it is long or has a header.
        (LONG, f"{LONG[0].content} Red.", "Tall.", "'chosen'"),
        (LONG, "Red.", f"{LONG[0].content}\nTall.", "'rejected'"),
        (LAMP, "Red.", "Human: Describe a lamp. Tall.", "'rejected'"),
        # No sign: a short one by itself, a greeting, part of a word, an earlier turn alone.
        (LAMP, "Describe a lamp. Well.", "Red.", None),
        ((Message("user", "Hi"),), "Hi you.", "Hi there.", None),
        ((Message("user", "What is it"),), "What is items?", "What is itching?", None),
        (LONGER, "Hi. Red.", "Hi. Tall.", None),
        (LAMP, "Assistant: Red.", "User: Tall.", None),
        ((Message("user", ""), Message("user", " ")), "Red.", "Tall.", None),
    ],
)
def test_a_repeated_prompt_is_recognised(
    prompt: tuple[Message, ...], better: str, worse: str, whose: str | None
) -> None:
    assert repeats(prompt, better, worse) == whose


@given(st.lists(st.sampled_from("ab ."), min_size=12).map("".join), st.text("ab .\n", max_size=9))
def test_a_prompt_in_front_of_both_answers_is_always_found(content: str, answer: str) -> None:
    content = f"x y {content}"
    assert repeats((Message("user", content),), f"{content}\n{answer}", f"{content} \n {answer}") == "both answers"
