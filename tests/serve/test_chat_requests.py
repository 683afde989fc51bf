"""Requests of the chat API: what is taken, and that each broken rule is named with its field, status and remedy."""

import json

import pytest

from pit.config import ImproveConfig
from pit.data.template import RoleTemplate
from pit.data.tokenizer import Tokenizer
from pit.rollout.strategy import Filtered, Greedy, MinP, Temperature, TopK, TopP
from pit.serve.protocol import MOST_CHOICES, UNSUPPORTED, ApiError, ChatRequest, chat_request
from pit.types import Message

TEMPLATE = RoleTemplate(Tokenizer.train_bpe(["describe this red lamp: price and size."], 330), (40, 24, 24))
USER = {"role": "user", "content": "Why?"}
GIVEN = {"role": "assistant", "content": " Because. "}


def read(config: ImproveConfig | None = None, **fields: object) -> ChatRequest:
    body = {"model": "policy", "messages": [USER], **fields}
    return chat_request(json.dumps(body).encode(), TEMPLATE, config or ImproveConfig())


def refused(**fields: object) -> ApiError:
    with pytest.raises(ApiError) as error:
        read(**fields)
    return error.value


def test_the_least_request_takes_the_settings_of_the_run() -> None:
    asked = read()
    assert asked.question.prompt == (Message("user", "Why?"),)
    assert asked.question.answer is None
    assert asked.question.tokens.prompt == TEMPLATE.encode_prompt(asked.question.prompt)
    assert (asked.seed, asked.limit, asked.stop, asked.choices) == (None, None, (), 1)
    assert (asked.stream, asked.include_usage) == (False, False)
    assert asked.strategy == Temperature(1.0)
    config = ImproveConfig(temperature=0.5, top_k=5, top_p=0.9, min_p=0.1)
    assert read(config).strategy == Filtered(Temperature(0.5), (TopK(5), TopP(0.9), MinP(0.1)))


def test_a_request_has_its_own_settings() -> None:
    asked = read(
        ImproveConfig(top_p=0.9),
        temperature=1.5,
        top_p=1,
        seed=-7,
        max_tokens=5,
        n=3,
        stop="\n",
        stream=True,
        stream_options={"include_usage": True},
    )
    assert asked.strategy == Temperature(1.5), "top_p = 1 cuts nothing"
    assert (asked.seed, asked.limit, asked.stop, asked.choices) == (-7, 5, ("\n",), 3)
    assert (asked.stream, asked.include_usage) == (True, True)
    assert read(temperature=0, top_p=0.5).strategy == Greedy()
    assert read(max_completion_tokens=7).limit == read(max_tokens=7, max_completion_tokens=7).limit == 7


def test_contents_come_as_text_or_in_parts_and_developers_are_systems() -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    asked = read(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert asked.question.prompt == (Message("system", "Be brief."), Message("user", "Why?"))


def test_an_answer_at_the_end_is_what_improved_improves() -> None:
    asked = read(model="improved", messages=[USER, GIVEN])
    assert (asked.question.prompt, asked.question.answer) == ((Message("user", "Why?"),), "Because.")
    error = refused(messages=[USER, GIVEN])
    assert (error.status, error.param) == (400, "messages")
    assert "ask for the model 'improved', which improves the answer" in str(error)


def test_fields_that_change_nothing_are_passed_over() -> None:
    plain = read(seed=1)
    harmless = {"user": "x", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True}
    neutral = {name: values[0] for name, values in UNSUPPORTED.items() if values}
    empty = dict.fromkeys([*UNSUPPORTED, "temperature", "top_p", "n", "stop", "stream", "max_tokens", "stream_options"])
    assert read(seed=1, **harmless) == read(seed=1, **neutral) == read(seed=1, **empty) == plain
    assert read(seed=1, frequency_penalty=0.0, tool_choice="auto") == plain


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_fields_that_would_change_the_answer_are_refused_by_name(name: str) -> None:
    error = refused(**{name: {"something": 1}})
    assert str(error) == f"{name!r} is not supported by this server and would change the answer; leave it out"
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


LONG = "red lamp " * 40
BAD = [
    ({"model": "gpt-9"}, 404, "model", "the model 'gpt-9' does not exist; ask for one of policy, improved"),
    ({"model": None}, 400, "model", "'model' is missing or not text"),
    ({"model": ["policy"]}, 400, "model", "'model' is missing or not text"),
    ({"messages": None}, 400, "messages", "the conversation cannot be answered: wrong type: 'messages' is NoneType"),
    ({"messages": "Why?"}, 400, "messages", "the conversation cannot be answered: wrong type: 'messages' is str"),
    ({"messages": []}, 400, "messages", "the conversation has no user's message at its end"),
    ({"messages": [GIVEN], "model": "improved"}, 400, "messages", "the conversation has no user's message at its end"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "the conversation cannot be answered: unsupp"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "the conversation cannot"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "messages", "the conversation cannot be answered: empty"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "the conversation cannot be"),
    (
        {"messages": [USER, {"role": "assistant", "content": " "}], "model": "improved"}, 400, "messages",
        "the conversation cannot be answered: empty answer",
    ),
    ({"temperature": "hot"}, 400, "temperature", "'temperature' is of type str, but must be a number"),
    ({"temperature": True}, 400, "temperature", "'temperature' is of type bool, but must be a number"),
    ({"temperature": -1}, 400, "temperature", "'temperature' is -1, but must be 0 (greedy), or 0.01 to 2"),
    ({"temperature": 1e-9}, 400, "temperature", "'temperature' is 1e-09, but must be 0 (greedy), or 0.01 to 2"),
    ({"top_p": 0}, 400, "top_p", "'top_p' is 0, but must be above 0 and at most 1"),
    ({"seed": 1.5}, 400, "seed", "'seed' is of type float, but must be a whole number"),
    ({"seed": 2**63}, 400, "seed", "'seed' is 9223372036854775808, but must be a whole number of 64 bits"),
    ({"n": 0}, 400, "n", f"'n' is 0, but must be a whole number from 1 to {MOST_CHOICES}"),
    ({"n": MOST_CHOICES + 1}, 400, "n", f"'n' is {MOST_CHOICES + 1}, but must be a whole number from 1"),
    ({"n": True}, 400, "n", "'n' is of type bool"),
    ({"max_tokens": 0}, 400, "max_tokens", "'max_tokens' is 0, but must be a whole number of at least 1"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_completion_tokens", "'max_tokens' is 1 and"),
    ({"stop": ""}, 400, "stop", "'stop' must be a text that is not empty, or a list of at most 4"),
    ({"stop": ["a"] * 5}, 400, "stop", "'stop' must be"),
    ({"stop": [1]}, 400, "stop", "'stop' must be"),
    ({"stop": {"a": 1}}, 400, "stop", "'stop' must be"),
    ({"stream": "yes"}, 400, "stream", "'stream' is of type str, but must be true or false"),
    ({"stream_options": {}}, 400, "stream_options", "'stream_options' is for streams; leave it out, or set 'stream'"),
    ({"stream": True, "stream_options": 3}, 400, "stream_options", "'stream_options' must be an object"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, 400, "include_usage", "'include_usage' is of type int"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "param", "text"), BAD)
def test_a_broken_rule_is_named(fields: dict[str, object], status: int, param: str, text: str) -> None:
    error = refused(**fields)
    assert str(error).startswith(text)
    assert (error.status, error.param) == (status, param)
    body = error.body()["error"]
    assert body == {
        "message": str(error), "type": "not_found_error" if status == 404 else "invalid_request_error",
        "param": param, "code": error.code,
    }  # fmt: skip


def test_what_does_not_fit_into_a_window_is_refused_with_the_numbers() -> None:
    long = {"role": "user", "content": LONG}
    tokens = TEMPLATE.prompt_size([Message("user", LONG)])
    error = refused(messages=[long])
    assert str(error) == f"the conversation has {tokens} tokens, but this model's window holds 40; shorten it"
    assert error.code == "context_length_exceeded"
    tokens = TEMPLATE.answer_size(LONG.strip())
    error = refused(model="improved", messages=[USER, {"role": "assistant", "content": LONG}])
    assert str(error) == f"the answer has {tokens} tokens, but this model's window holds 24; shorten it"


def test_the_longest_conversation_and_answer_that_fit_are_whole() -> None:
    for length in range(60):
        turns = [Message("user", "x" * length + "?")]
        sizes = TEMPLATE.prompt_size(turns), TEMPLATE.answer_size("x" * length + "?")
        fields = {"model": "improved", "messages": [*[turn._asdict() for turn in turns]]}
        if sizes[1] <= 24:
            fields["messages"].append({"role": "assistant", "content": "x" * length + "?"})
        if sizes[0] <= 40:
            assert read(**fields).question.tokens.truncated == (False, False, False)
        else:
            assert refused(**fields).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "bad JSON"),
        (b"{", "bad JSON"),
        (b"[1]", "not an object"),
        (b'{"model": "policy", "model": "improved"}', "doubled key: the key 'model' occurs twice"),
        (b'{"model": "\xff"}', "bad UTF-8"),
        (b"[" * 100_000, "bad JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "bad JSON"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(ApiError, match=f"^the body is not a JSON object as it should be: {text}"):
        chat_request(body, TEMPLATE, ImproveConfig())
