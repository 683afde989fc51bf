"""Rows in the shapes of real sets: read as they are meant, or dropped with the reason, never as something else."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.errors import DataError
from pit.data.readers import ReadReport, Reason, read_preferences
from pit.types import Message, Preference

LAMP = Preference((Message("user", "Describe a lamp."),), "Red and tall.", "A lamp.")
DIALOGUE = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Describe a lamp.\n\nAssistant:"
LONGER = LAMP._replace(prompt=(Message("user", "Hi."), Message("assistant", "Hello."), *LAMP.prompt))
WITH_SYSTEM = LAMP._replace(prompt=(Message("system", "Be brief."), *LAMP.prompt))


def says(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


ASKS, GOOD, BAD = says("user", "Describe a lamp."), says("assistant", "Red and tall."), says("assistant", "A lamp.")
SYSTEM, HI, HELLO = says("system", "Be brief."), says("user", "Hi."), says("assistant", "Hello.")
TEXTS = {"chosen": "Red and tall.", "rejected": "A lamp."}


def read(folder: Path, *rows: object, **options: Any) -> tuple[list[Preference], ReadReport]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    preferences, report = read_preferences(path, **options)
    return list(preferences), report


def lists(*before: dict[str, object]) -> dict[str, object]:
    return {"chosen": [*before, GOOD], "rejected": [*before, BAD]}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("record", "row", "format"),
    [
        # A text prompt next to lists that hold a system message, or earlier turns.
        ({"prompt": "Describe a lamp.", **lists(SYSTEM, ASKS)}, WITH_SYSTEM, "trl"),
        ({"prompt": "Describe a lamp.", **lists(HI, HELLO, ASKS)}, LONGER, "trl"),
        ({"prompt": " Hi.\n", **lists(HI, HELLO, ASKS)}, LONGER, "trl"),
        ({"prompt": [SYSTEM, ASKS], **lists(ASKS)}, WITH_SYSTEM, "trl"),
        ({"prompt": [ASKS], **lists(SYSTEM, ASKS)}, WITH_SYSTEM, "trl"),
        # Lists that continue the prompt.
        ({"prompt": [HI], **lists(HELLO, ASKS)}, LONGER, "trl"),
        ({"prompt": "Hi.", **lists(HELLO, ASKS)}, LONGER, "trl"),
        # Transcripts that repeat their prompt, as lists do.
        (
            {"prompt": DIALOGUE, "chosen": f"{DIALOGUE} Red and tall.", "rejected": f"{DIALOGUE} A lamp."},
            LONGER,
            "trl",
        ),
        ({"prompt": "Hi.", "chosen": f"{DIALOGUE} Red and tall.", "rejected": f"{DIALOGUE} A lamp."}, LONGER, "trl"),
        # Transcripts whose leading newlines were stripped.
        ({"prompt": DIALOGUE.strip(), **TEXTS}, LONGER, "trl"),
        ({"chosen": f"{DIALOGUE.strip()} Red and tall.", "rejected": f"{DIALOGUE.strip()} A lamp."}, LONGER, "hh"),
        # A column for the system message, other words for roles, contents in parts.
        ({"system": "Be brief.", "prompt": "Describe a lamp.", **TEXTS}, WITH_SYSTEM, "trl"),
        ({"system": " ", "prompt": "Describe a lamp.", **TEXTS}, LAMP, "trl"),
        (lists(says("developer", "Be brief."), ASKS), WITH_SYSTEM, "trl"),
        (
            lists(says("user", [{"type": "text", "text": "Describe "}, {"type": "text", "text": "a lamp."}])),
            LAMP,
            "trl",
        ),
        # ShareGPT.
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": ASKS["content"]},
                ],
                "chosen": {"from": "gpt", "value": "Red and tall."},
                "rejected": {"from": "gpt", "value": "A lamp."},
            },
            WITH_SYSTEM,
            "sharegpt",
        ),
        ({"conversations": [ASKS], "chosen": GOOD, "rejected": [BAD]}, LAMP, "sharegpt"),
        # One answer may repeat the prompt, and two may begin with the same single word.
        (
            {"prompt": "Describe a lamp.", **TEXTS, "chosen": "Describe a lamp. Well."},
            LAMP._replace(better="Describe a lamp. Well."),
            "trl",
        ),
        (
            {"prompt": "Hi", "chosen": "Hi you.", "rejected": "Hi."},
            Preference((Message("user", "Hi"),), "Hi you.", "Hi."),
            "trl",
        ),
        # A system column beside every form of prompt.
        ({"system": "Be brief.", "prompt": [ASKS], "chosen": [GOOD], "rejected": [BAD]}, WITH_SYSTEM, "trl"),
        ({"system": "Be brief.", "prompt": [SYSTEM, ASKS], "chosen": [GOOD], "rejected": [BAD]}, WITH_SYSTEM, "trl"),
        ({"system_prompt": "Be brief.", "system": None, **lists(ASKS)}, WITH_SYSTEM, "trl"),
        ({"system": "Be brief.", "conversations": [ASKS], "chosen": GOOD, "rejected": BAD}, WITH_SYSTEM, "sharegpt"),
        (
            {"system": "Be brief.", "chosen": f"{DIALOGUE} Red and tall.", "rejected": f"{DIALOGUE} A lamp."},
            LONGER._replace(prompt=(WITH_SYSTEM.prompt[0], *LONGER.prompt)),
            "hh",
        ),
        (
            {"system": "Be brief.", "prompt": DIALOGUE, **TEXTS},
            LONGER._replace(prompt=(WITH_SYSTEM.prompt[0], *LONGER.prompt)),
            "trl",
        ),
        # A null system message or a null prompt beside lists says nothing.
        ({"system": None, "prompt": None, **lists(ASKS)}, LAMP, "trl"),
    ],
)
def test_a_row_is_read_as_it_is_meant(tmp_path: Path, record: dict[str, Any], row: Preference, format: str) -> None:
    found, report = read(tmp_path, record)
    assert (found, report.dropped) == ([row], {})
    assert report.files == {"rows.jsonl": format}


def encoded(answer: str) -> str:
    return json.dumps([{"role": "user", "content": "Hi you"}, {"role": "assistant", "content": answer}])


@pytest.mark.parametrize(
    ("record", "reason", "words"),
    [
        (
            {"prompt": "Describe a lamp.", "chosen": "Describe a lamp. Red.", "rejected": "\nDescribe a lamp. No."},
            Reason.REPEATED,
            "both answers begin with the prompt",
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: x", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
            Reason.NO_ANSWER,
            "'chosen' ends with a Human turn",
        ),
        ({"prompt": DIALOGUE, **TEXTS, "rejected": "A.\n\nHuman: So?"}, Reason.NO_ANSWER, "'rejected' ends with a Hum"),
        (
            {"prompt": DIALOGUE, **TEXTS, "chosen": "A.\n\nHuman: So?\n\nAssistant: B."},
            Reason.SEVERAL,
            "'chosen' holds turns after the answer",
        ),
        (lists(ASKS) | {"chosen": [ASKS, GOOD, HI]}, Reason.NO_ANSWER, "'chosen' does not end with an assistant"),
        (
            {"prompt": [HI], "chosen": [HELLO, ASKS, GOOD], "rejected": [BAD, ASKS, GOOD]},
            Reason.SEVERAL,
            "the answers differ at message 1 and go on for several turns",
        ),
        ({"chosen": [HI, GOOD, ASKS, GOOD], "rejected": [HI, BAD]}, Reason.SEVERAL, "differ at message 2"),
        ({"prompt": [SYSTEM, ASKS], **lists(says("system", "Rhyme."), ASKS)}, Reason.PROMPTS, "different system"),
        ({"system": "Rhyme.", **lists(SYSTEM, ASKS)}, Reason.PROMPTS, "the column 'system' and the messages have diff"),
        ({"system": "Rhyme.", "system_prompt": "Sing.", "prompt": "q", **TEXTS}, Reason.PROMPTS, "have different syst"),
        ({"system": ["Rhyme."], "prompt": "q", **TEXTS}, Reason.TYPE, "'system' is list, not text"),
        ({"system": "\ud800", "prompt": "q", **TEXTS}, Reason.UTF8, "a lone surrogate at character 0"),
        ({"prompt": "Describe a boat.", **lists(HI, HELLO, ASKS)}, Reason.PROMPTS, "do not begin with"),
        (
            {"chosen": encoded("Good."), "rejected": encoded("Bad.")},
            Reason.ENCODED,
            "'chosen' holds messages written as text",
        ),
        ({"prompt": str([ASKS]), **TEXTS}, Reason.ENCODED, "'prompt' holds messages written as text"),
        ({"question": "Describe a lamp.", **TEXTS}, Reason.MISSING, "there is 'question'; rename it to 'prompt'"),
        *(
            (
                {name: [ASKS], "chosen": [GOOD], "rejected": [BAD]},
                Reason.MISSING,
                f"there is {name!r}; rename it to 'pro",
            )
            for name in ("messages", "dialogue", "conversation", "history")
        ),
        ({"chosen": [GOOD], "rejected": [BAD]}, Reason.NO_PROMPT, "the message lists have no message of a user"),
        ({"dialogue": "Hi.", **TEXTS, "chosen": "A tall one."}, Reason.MISSING, "there is 'dialogue'; rename it"),
        (
            {"question": "q", "responses": ["It is a", "It is b"], "scores": [1, 2]},
            Reason.MISSING,
            "there is 'question'",
        ),
        ({"responses": ["It is a", "It is b"], "scores": [1, 2]}, Reason.MISSING, "'prompt' is missing or null"),
        (
            {"prompt": [says("user", json.dumps([ASKS]))], "chosen": [GOOD], "rejected": [BAD]},
            Reason.ENCODED,
            "messages wri",
        ),
        ({"prompt": "q", **TEXTS, "split": 0}, Reason.TYPE, "'split' is int, not text; write train, validation or te"),
        ({"prompt": "q", **TEXTS, "split": ["train"]}, Reason.TYPE, "'split' is list, not text"),
        ({"prompt": None, **TEXTS, "chosen": "A tall one."}, Reason.MISSING, "'prompt' is null; give it, or leave"),
        (lists(ASKS, says("tool", "3")), Reason.ROLE, "a message of role 'tool'; only system, developer, user"),
        (lists({"from": "function", "value": "3"}), Reason.ROLE, "a message of role 'function'"),
        (lists({**HELLO, "tool_calls": [{"id": 1}]}), Reason.PARTS, "a message with tool calls; only text"),
        (lists(says("user", [{"type": "image", "url": "x"}])), Reason.PARTS, "a part of type 'image'; only text"),
        (lists(says("user", None)), Reason.TYPE, "a message whose content is NoneType, not text"),
        (
            {"conversations": [ASKS], "chosen": "Red.", "rejected": GOOD},
            Reason.TYPE,
            "'chosen' is text, not a message",
        ),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, Reason.TIED, "2 answers have no two different"),
        ({"prompt": "q", "responses": ["a"], "scores": [1, 2]}, Reason.TYPE, "not two lists of one length"),
        ({"prompt": "q", "responses": ["a", 3], "scores": [1, 2]}, Reason.TYPE, r"'responses[1]' is int, not text"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, "x"]}, Reason.TYPE, "'score' is 'x', not a finite"),
        ({"prompt": "q", "responses": ["a", "a"], "scores": [1, 2]}, Reason.EQUAL, "both answers are the same text"),
    ],
)
def test_a_row_of_another_shape_is_dropped_with_its_reason(
    tmp_path: Path, record: dict[str, Any], reason: Reason, words: str
) -> None:
    found, report = read(tmp_path, record)
    assert (found, report.dropped) == ([], {reason.value: 1})
    assert words in report.details[reason.value]
    assert report.losses()[0].startswith(f"dropped 1: {reason.value}; ")
    assert report.losses()[0].endswith("(rows.jsonl:1)")
    with pytest.raises(DataError, match=f"rows.jsonl:1: {reason.value}: "):
        read(tmp_path, record, strict=True)


def test_scored_answers_become_their_pairs(tmp_path: Path) -> None:
    record = {
        "system": "Be brief.",
        "prompt": "q",
        "responses": ["low", "high", "mid", "also mid"],
        "scores": [1, 9, 4, 4],
    }
    found, report = read(tmp_path, record, record, difficulty_column="-margin")
    pairs = [("high", "low", -8.0), ("high", "mid", -5.0), ("high", "also mid", -5.0), ("mid", "low", -3.0)]
    pairs += [("also mid", "low", -3.0)]
    assert [(row.better, row.worse, row.difficulty) for row in found] == pairs * 2
    assert {row.prompt for row in found} == {(Message("system", "Be brief."), Message("user", "q"))}
    assert (report.rows, report.kept, report.pairs, report.files) == (2, 2, 10, {"rows.jsonl": "scored"})
    assert {row.difficulty for row in read(tmp_path, record)[0]} == {None}
    assert read(tmp_path, {**record, "hard": 3}, difficulty_column="hard")[0][0].difficulty == 3


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "-Infinity", "9" * 5000])
def test_numbers_that_json_has_not_are_refused_in_lines_and_arrays(tmp_path: Path, text: str) -> None:
    row = f'{{"prompt": "q", "chosen": "a", "rejected": "b", "id": {text}}}'
    good = row.replace(text, "1e99")
    for name, content in (("rows.jsonl", f"{row}\n{good}\n"), ("rows.json", f"[{row}, {good}]")):
        (tmp_path / name).write_text(content)
        found, report = read_preferences(tmp_path / name)
        assert len(list(found)) == 1
        assert report.places == {"bad JSON": [f"{name}:1"]}
        fault = f"the number {text} is not finite, which JSON cannot say"
        if len(text) == 5000:
            fault = "a number has 5,000 digits, more than can be read"
        assert report.details == {"bad JSON": f"{fault}; write it as text"}


def test_what_comes_after_the_probed_rows_is_held_to_the_same_rules(tmp_path: Path) -> None:
    plain = [{"prompt": f"Question {i}?", **TEXTS} for i in range(120)]
    parts = {"prompt": [says("user", [part("Look: "), {"type": "image_url", "image_url": "x"}])], **lists()}
    found, report = read(tmp_path, *plain, {**plain[0], "images": ["x.png"]}, {**plain[0], "images": []}, parts)
    assert len(found) == 121
    assert report.places == {"content that is not text": ["rows.jsonl:121", "rows.jsonl:123"]}


@given(st.lists(st.integers(-3, 3), max_size=6))
def test_there_is_a_pair_for_each_two_scores_that_differ(
    tmp_path_factory: pytest.TempPathFactory, scores: list[int]
) -> None:
    record = {"prompt": "q", "responses": [f"answer {i}" for i in range(len(scores))], "scores": scores}
    found, report = read(tmp_path_factory.getbasetemp(), record, difficulty_column="margin")
    expected = {
        (f"answer {i}", f"answer {j}", float(scores[i] - scores[j]))
        for i, j in itertools.permutations(range(len(scores)), 2)
        if scores[i] > scores[j]
    }
    assert {(row.better, row.worse, row.difficulty) for row in found} == expected
    assert len(found) == len(expected) == report.pairs
    margins = [row.difficulty or 0.0 for row in found]
    assert margins == sorted(margins, reverse=True)


def test_a_negated_column_ranks_the_other_way(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", **TEXTS, "margin": i} for i in range(3)]
    assert [row.difficulty for row in read(tmp_path, *rows, difficulty_column="margin")[0]] == [0, 1, 2]
    assert [row.difficulty for row in read(tmp_path, *rows, difficulty_column="-margin")[0]] == [0, -1, -2]


def test_answers_without_their_prompts_are_said(tmp_path: Path) -> None:
    alone = [{"chosen": f"Yes {i}.", "rejected": "No."} for i in range(3)]
    alike = {"chosen": "It is red.", "rejected": "It is not."}
    found, report = read(tmp_path, *alone, alike)
    assert (len(found), report.dropped) == (1, {"no prompt": 3})
    assert report.notes() == [
        "note: in 3 rows the answers do not begin alike, so they may not include their prompts: what stands as the "
        "prompt of the 1 kept rows may be the beginning of their answers"
    ]
    assert read(tmp_path, alone[0], alike)[1].notes() == []


def test_markers_of_chat_formats_are_counted(tmp_path: Path) -> None:
    marked = "<|im_start|>user\nDescribe a lamp.<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"prompt": marked, **TEXTS}, {"prompt": "q", **TEXTS, "chosen": "[INST] x"}, {"prompt": "q", **TEXTS}]
    found, report = read(tmp_path, *rows)
    assert len(found) == 3
    assert report.marked == {"<|im_start|>": 1, "<|im_end|>": 1, "[INST]": 1}
    assert report.notes()[1] == (
        "note: pairs that hold '<|im_start|>', a marker of chat formats, as plain text: 1; give such texts as lists of "
        "messages without it"
    )
