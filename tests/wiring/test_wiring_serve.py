"""`pit improve`: lines are held to the readers' rules, one line of output each, and nothing is lost on the way."""

import io
import json
import os
import threading

import pytest
from world import World, run_of

from pit.chat_client import ChatError
from pit.data.errors import DataError
from pit.data.readers.hh import ASSISTANT
from pit.data.readers.report import RowError
from pit.data.readers.trl import convert
from pit.data.tokens import Tokens
from pit.improve import Models
from pit.seeds import Seed
from pit.serve.lines import ASKED_AT_A_TIME, TOLD_CUTS, improve_lines

HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
TOLD: list[str] = []


def improved(*lines, strict=False, batch=None, world=None, seed=0, ask=None):
    """Return the rows that improve some lines, given as objects, texts or bytes; `TOLD` holds what was said."""
    content = b"".join((line if isinstance(line, bytes) else text_of(line).encode()) + b"\n" for line in lines)
    return served(io.BytesIO(content), strict=strict, batch=batch, world=world, seed=seed, ask=ask)


def served(source, *, strict=False, batch=None, world=None, seed=0, ask=None):
    TOLD.clear()
    world, sink, run = world or World(), io.StringIO(), run_of()
    changes = {"iterations": 2} if batch is None else {"iterations": 2, "batch": batch}
    try:
        with watched(world):
            improve_lines(run, source, sink, changes, seed=seed, strict=strict, ask=ask, tell=TOLD.append)
    finally:
        rows = [json.loads(line) for line in sink.getvalue().splitlines()]
        served.rows = rows
    return rows


def watched(world):
    return world.watched("improve")


def text_of(line):
    return line if isinstance(line, str) else json.dumps(line)


def user(text):
    return [{"role": "user", "content": text}]


BAD = [
    ({"prompt": None}, "missing column: 'prompt' is missing or null"),
    ({"text": "x"}, "missing column: 'prompt' is missing or null; the columns are ['text']"),
    ({"prompt": 3}, "wrong type: 'prompt' is int, not text or a list of messages"),
    ({"prompt": [{"role": "user", "content": None}]}, "wrong type: 'prompt' has a message whose content is NoneType"),
    (
        {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        "content that is not text: 'prompt' has",
    ),
    ({"prompt": [{"role": "user", "content": 3}]}, "wrong type: 'prompt' has a message whose content is int"),
    ('{"prompt": "x", "prompt": "y"}', "doubled key: the key 'prompt' occurs twice"),
    (
        {"prompt": '[{"role": "user", "content": "x"}]'},
        "messages as text: 'prompt' holds messages written as text",
    ),
    ({"prompt": [{"role": ["user"], "content": "x"}]}, "wrong type: 'prompt' has an item"),
    ({"prompt": [{"role": "tool", "content": "x"}]}, "unsupported role: 'prompt' has a message of role 'tool'"),
    ({"prompt": []}, "empty prompt: no message of the prompt has text"),
    ({"prompt": "  "}, "empty prompt: no message of the prompt has text"),
    ({"prompt": "x", "answer": 3}, "wrong type: 'answer' is int, not text"),
    ({"prompt": "x", "answer": " "}, "empty answer: 'answer' has no text"),
    ({"prompt": "x", "steps": 3}, "'steps' is a field of the output; give it another name"),
    (r'{"prompt": "\ud800"}', "bad UTF-8: a lone surrogate at character 0"),
    (r'{"prompt": "x", "answer": "\ud83d"}', "bad UTF-8: a lone surrogate at character 0"),
    (b'{"prompt": "caf\xe9"}', "bad UTF-8: byte 15 of the line"),
    ('{"prompt": "x", "n": ' + "9" * 5000 + "}", "bad JSON: a number has 5,000 digits"),
    ('{"prompt": "x", "id": 1e999}', "bad JSON: the number 1e999 is not finite"),
    ('{"prompt": "x", "id": [NaN]}', "bad JSON: the number NaN is not finite"),
    ({"prompt": HH, "answer": "A.\n\nHuman: So?"}, "no answer at the end: 'answer' ends with a Human turn"),
    ({"prompt": HH, "answer": "A.\n\nHuman: So?\n\nAssistant: B."}, "several turns differ: 'answer' holds turns after"),
    ({"prompt": "Hi", "answer": f"{HH.removesuffix(ASSISTANT)}"}, "no answer at the end: 'answer' does not end with"),
    ({"prompt": "Ho", "answer": f"{HH} A."}, "prompts differ: the message lists do not begin with"),
    ({"prompt": user(json.dumps(user("x")))}, "messages as text: a message holds messages written as text"),
    ({"prompt": "x", "images": ["a.png"]}, "content that is not text: 'images' holds pictures"),
    ({"prompt": user("x"), "system": 3}, "wrong type: 'system' is int, not text"),
    ({"question": "x"}, "missing column: 'prompt' is missing or null, but there is 'question'; rename it"),
    ("[" * 100_000, "bad JSON: "),
    ('{"prompt": ', "bad JSON: "),
    ("3", "not an object: the row is a int"),
]


@pytest.fixture(scope="module")
def refused():
    """What was said of each bad line, and the rows of the good lines around them."""
    world = World()
    lines = [line for bad, _ in BAD for line in ({"prompt": "a good one", "id": 1}, bad)]
    with pytest.raises(DataError) as error:
        improved(*lines, world=world, batch=7)
    return str(error.value), list(TOLD), served.rows


def test_a_bad_line_is_named_by_its_number_and_the_others_are_answered(refused):
    error, told, rows = refused
    assert error == (
        f"{len(BAD)} of {2 * len(BAD)} lines could not be answered, each is named above; correct or remove them, or "
        "stop at the first with --strict"
    )
    assert len(told) == len(BAD)
    for number, (text, (_, reason)) in enumerate(zip(told, BAD, strict=True), start=1):
        assert text.startswith(f"line {2 * number}: {reason}")
    assert [row["id"] for row in rows] == [1] * len(BAD)


def test_strict_answers_what_is_before_the_first_bad_line_and_stops():
    with pytest.raises(
        DataError, match=r"^line 3: wrong type: 'prompt' is int.*; correct or remove the line, or leave"
    ):
        improved({"prompt": "a"}, {"prompt": "b"}, {"prompt": 3}, {"prompt": "c"}, strict=True)
    assert [row["prompt"] for row in served.rows] == [user("a"), user("b")]
    assert TOLD == []


PROMPTS = [row["prompt"] for row, _ in BAD if isinstance(row, dict) and row.keys() == {"prompt"}]


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if prompt is not None])
def test_a_prompt_that_is_refused_here_is_refused_as_data_too(prompt):
    with pytest.raises(RowError):
        convert({"chosen": "yes", "rejected": "no", "prompt": prompt})


def test_other_fields_pass_through_and_blank_lines_count_in_no_way():
    fields = {"id": 17, "tags": ["é", None], "cut?": {"a": "\ud800\x9b"}, "answer": None}
    first, second = improved({"prompt": "a", **fields}, "", "  ", {"id": "b", "prompt": "b"})
    del fields["answer"]
    assert {name: first[name] for name in fields} == fields
    assert set(first) == {*fields, "prompt", "answers", "steps"}
    assert second["id"] == "b"


def test_a_prompt_comes_back_as_it_went_in():
    conversation = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "  spaces "}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    rows = improved({"prompt": "  x "}, {"prompt": conversation}, {"prompt": HH}, {"prompt": parts})
    assert rows[0]["prompt"] == user("  x ")
    assert rows[1]["prompt"] == conversation
    # As the reader of training data takes parts, and a transcript.
    assert rows[3]["prompt"] == user("ab")
    assert [message["content"] for message in rows[2]["prompt"]] == ["Hi", "Hello", "Why?"]


def test_a_transcript_as_an_answer_is_read_as_in_data():
    whole, lists = improved({"prompt": "Hi", "answer": f"{HH} Because.\n"}, {"prompt": HH, "answer": "Because."})
    assert (whole["prompt"], whole["answers"][0]) == (lists["prompt"], "Because.")


def test_the_system_column_is_the_system_turn_of_every_form_of_prompt():
    first, second = improved({"prompt": user("x"), "system": "Be brief."}, {"prompt": HH, "system": "Be brief."})
    assert first["prompt"] == [{"role": "system", "content": "Be brief."}, *user("x")]
    assert [message["role"] for message in second["prompt"]] == ["system", "user", "assistant", "user"]
    # What comes out may go in again.
    assert improved({"prompt": first["prompt"], "system": "Be brief."})[0]["prompt"] == first["prompt"]


def test_a_given_answer_is_y0_and_the_policy_answers_the_other_lines():
    world = World()
    rows = improved(
        {"prompt": "a", "answer": " Given. "}, {"prompt": "b"}, {"prompt": "c", "answer": "Also."}, world=world
    )
    assert rows[0]["answers"][0] == "Given."
    assert rows[2]["answers"][0] == "Also."
    # The same as when it stands alone.
    assert rows[1]["answers"] == improved({"prompt": "b"})[0]["answers"]
    policy = [ask for ask in world.asks if ask.model == "rl-policy"]
    assert [len(ask.ids) for ask in policy] == [1]


def test_a_prompt_that_comes_again_gets_an_answer_of_its_own():
    rows = improved(*[{"prompt": "a"}] * 5, {"prompt": "b"}, batch=2)
    assert len({json.dumps(row["answers"]) for row in rows[:5]}) > 1
    again = improved(*[{"prompt": "a"}] * 5, batch=5)
    assert [row["answers"] for row in again] == [row["answers"] for row in rows[:5]]
    assert improved({"prompt": "b"}, {"prompt": "a"}) == [rows[5], rows[0]]


def test_cuts_are_said_and_marked():
    long = " ".join(f"w{i}" for i in range(200))
    rows = improved({"prompt": long, "answer": long}, {"prompt": "short", "answer": long}, {"prompt": "short"})
    windows = run_of().config.windows
    assert [row.get("cut") for row in rows] == [["prompt", "answer"], ["answer"], None]
    assert [
        f"line 1: the prompt is longer than its window of {windows.input} tokens, and its beginning was cut",
        f"line 1: the answer is longer than its window of {windows.output} tokens, and its end was cut",
        f"line 2: the answer is longer than its window of {windows.output} tokens, and its end was cut",
    ] == TOLD
    assert rows[0]["prompt"] == user(long)
    assert long.startswith(rows[0]["answers"][0])
    assert rows[0]["answers"][0] != long


def test_many_cuts_are_said_a_few_times():
    long = " ".join(f"w{i}" for i in range(200))
    rows = improved(*[{"prompt": long}] * (TOLD_CUTS + 5))
    assert all(row["cut"] == ["prompt"] for row in rows)
    assert len(TOLD) == TOLD_CUTS + 1
    assert TOLD[-1] == 'further lines of which the prompt is cut are marked in the output: "cut": ["prompt"]'


def test_a_writer_who_waits_for_each_answer_gets_it():
    """The answer to a line is there before the next line is written."""
    reading, writing = os.pipe()
    answered = threading.Semaphore(0)

    class Sink(io.StringIO):
        def flush(self):
            super().flush()
            answered.release()

    def write():
        for text in ("a", "b", "c"):
            os.write(writing, json.dumps({"prompt": text}).encode() + b"\n")
            assert answered.acquire(timeout=60)
        os.close(writing)

    writer, sink, run = threading.Thread(target=write), Sink(), run_of()
    with World().watched("improve"), os.fdopen(reading, "rb") as source:
        writer.start()
        improve_lines(run, source, sink, {"iterations": 1}, seed=0)
    writer.join()
    assert [json.loads(line)["prompt"] for line in sink.getvalue().splitlines()] == [user(x) for x in "abc"]


def test_output_holds_no_control_characters_of_other_fields():
    """A terminal that shows the output obeys nothing in it."""
    sink, run = io.StringIO(), run_of()
    with World().watched("improve"):
        line = json.dumps({"prompt": "a", "id": "\x1b[2J\x9b\u202e\ud800"}).encode()
        improve_lines(run, io.BytesIO(line), sink, {"iterations": 1}, seed=0)
    assert r'"id": "\u001b[2J\u009b\u202e\ud800"' in sink.getvalue()
    assert json.loads(sink.getvalue())["id"] == "\x1b[2J\x9b\u202e\ud800"


# Answers of another server.


def test_another_policy_gives_the_answers_that_lines_lack() -> None:
    world, asked = World(), []

    def ask(messages):
        asked.append(messages)
        return f" {messages[-1].content} indeed. "

    lines = [{"prompt": "a", "id": 1}, {"prompt": "b", "answer": "Given."}, {"prompt": HH}]
    rows = improved(*lines, world=world, ask=ask)
    assert [row["answers"][0] for row in rows] == ["a indeed.", "Given.", "Why? indeed."]
    assert rows[0]["id"] == 1
    assert sorted(len(messages) for messages in asked) == [1, 3]
    assert {one.model for one in world.asks} == {"rl-improver-1"}
    # As if the answers had been in the lines.
    given = [{**line, "answer": row["answers"][0]} for line, row in zip(lines, rows, strict=True)]
    assert improved(*given) == rows


def test_the_runs_own_policy_is_loaded_only_where_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], Models.load

    def spy(*arguments, **options):
        loaded.append(load(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(Models, "load", spy)
    improved({"prompt": "a"}, ask=lambda messages: "Yes.")
    improved({"prompt": "a", "answer": "Yes."})
    assert [models.policy is None for models in loaded] == [True, False]
    with pytest.raises(ValueError, match=r"^policy = None: these models answer no prompts; load them with one, or"):
        loaded[0].respond(Tokens.of([[1]]), [0], run_of().config.improve, Seed((0, "improve")))


def failing(messages):
    text = messages[-1].content
    if text == "b":
        raise ChatError("http://there: status 500; try again later")
    return " " if text == "c" else "word " * 200 if text == "long" else "Yes."


def test_a_prompt_that_the_other_server_fails_at_is_named_and_the_others_are_improved() -> None:
    with pytest.raises(DataError, match=r"^3 of 5 lines could not be answered"):
        improved({"prompt": "a"}, {"prompt": "b"}, {"prompt": 3}, {"prompt": "c"}, {"prompt": "long"}, ask=failing)
    assert TOLD[:3] == [
        "line 2: http://there: status 500; try again later",
        TOLD[1],
        "line 4: empty answer: 'answer' has no text; give one, or leave it out and the policy answers",
    ]
    assert TOLD[1].startswith("line 3: wrong type: 'prompt' is int")
    assert [row["prompt"] for row in served.rows] == [user("a"), user("long")]
    assert served.rows[1]["cut"] == ["answer"]


@pytest.mark.parametrize("batch", [1, 8])
def test_strict_stops_at_the_first_prompt_that_the_other_server_fails_at(batch) -> None:
    with pytest.raises(DataError, match=r"^line 2: http://there: status 500; try again later; correct or remove"):
        improved(
            {"prompt": "a"}, {"prompt": "b"}, {"prompt": "d"}, {"prompt": 3}, strict=True, batch=batch, ask=failing
        )
    assert [row["prompt"] for row in served.rows] == [user("a")]
    assert TOLD == []


def test_other_servers_are_asked_for_several_prompts_at_a_time() -> None:
    together = threading.Barrier(ASKED_AT_A_TIME, timeout=20)

    def ask(messages):
        together.wait()
        return "Yes."

    rows = improved(*[{"prompt": f"p{number}"} for number in range(2 * ASKED_AT_A_TIME)], ask=ask)
    assert [row["prompt"] for row in rows] == [user(f"p{number}") for number in range(2 * ASKED_AT_A_TIME)]
