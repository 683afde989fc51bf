"""Conversations written as text are recognised in every disguise; prose, code and other JSON are not."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.readers.encoded import is_encoded

Messages = list[dict[str, str]]

CONTENTS = st.text(st.characters(codec="utf-8"), max_size=30)
MESSAGES: st.SearchStrategy[Messages] = st.lists(
    st.one_of(
        st.builds(lambda r, t: {"role": r, "content": t}, st.sampled_from(["system", "user", "assistant"]), CONTENTS),
        st.builds(lambda r, t: {"content": t, "role": r}, st.sampled_from(["user", "assistant", "tool"]), CONTENTS),
        st.builds(lambda r, t: {"from": r, "value": t}, st.sampled_from(["system", "human", "gpt"]), CONTENTS),
    ),
    min_size=1,
    max_size=3,
)
ENCODERS: dict[str, Callable[[Any], str]] = {
    "JSON": json.dumps,
    "JSON with indents": lambda value: json.dumps(value, indent=2),
    "JSON of readable Unicode": lambda value: json.dumps(value, ensure_ascii=False),
    "JSON after a mark and white space": lambda value: "\ufeff \n\t" + json.dumps(value),
    "JSON twice": lambda value: json.dumps(json.dumps(value)),
    "JSON three times": lambda value: json.dumps(json.dumps(json.dumps(value))),
    "Python": repr,
    "Python of JSON": lambda value: repr(json.dumps(value)),
    "one message": lambda value: json.dumps(value[0]),
    "one message in Python": lambda value: repr(value[0]),
    "an object around it": lambda value: json.dumps({"messages": value}),
    "an array of NumPy": lambda value: "array([" + "\n ".join(map(repr, value)) + "], dtype=object)",
    "base64": lambda value: base64.b64encode(json.dumps(value).encode()).decode(),
    "base64 for URLs": lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode(),
    "base64 in lines": lambda value: base64.encodebytes(json.dumps(value).encode()).decode(),
}


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=list(ENCODERS))
@given(messages=MESSAGES)
def test_a_conversation_is_recognised_in_every_disguise(encoder: Callable[[Any], str], messages: Messages) -> None:
    assert is_encoded(encoder(messages))


@given(MESSAGES)
def test_its_beginning_suffices(messages: Messages) -> None:
    text = json.dumps([{"role": "user", "content": "Hi"}, *messages])
    assert is_encoded(text[:-5])


@given(st.text())
def test_prose_is_not_taken(text: str) -> None:
    assert not is_encoded(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | CONTENTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["value", "from", "name", "content", "id", "to"]) | CONTENTS, inner, max_size=3
        )
    ),
)


@given(VALUES, st.sampled_from([json.dumps, repr]))
def test_other_values_are_not_taken(value: object, encoder: Callable[[object], str]) -> None:
    assert not is_encoded(encoder(value))


@pytest.mark.parametrize(
    "text",
    [
        "A message looks like this: [{'role': 'user', 'content': 'Hi'}]",
        '```json\n[{"role": "user", "content": "Hi"}]\n```',
        'messages = [{"role": "user", "content": "Hi"}]\nprint(messages)',
        '{"role": "admin", "content": "rw"}',
        '[{"from": "Paris", "value": 3}, {"from": "user", "cost": 4}]',
        '{"model": "small", "options": {"messages": [{"role": "user", "content": "Hi"}]}}',
        "{ x : x is a user, content or not }",
        "[1] role: user, content: a text",
        "\"Be quiet,\" she said. 'role': no.",
        "{% for message in messages %}{{ message['role'] }}{{ message['content'] }}{% endfor %}",
        "int main() { return 0; }",
        '{"name": "x", "value": "y"}',
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",  # {"alg":"HS256","typ":"JWT"}
        "A" * 40,
        "",
    ],
)
def test_code_and_prose_about_messages_are_not_taken(text: str) -> None:
    assert not is_encoded(text)
