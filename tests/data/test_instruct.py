"""Writing under constraints: checkers by worked examples, edits that leave others alone, held-out prompts."""

import hashlib
import json
import math
import re
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.folds import DEFAULT_FRACTIONS, fold_of
from pit.data.synthetic import generate, generate_prompts
from pit.data.synthetic.instruct import clean_answer, grammar, preference_at, prompt_at, subset_of, words
from pit.data.synthetic.instruct.base import Constraint
from pit.data.synthetic.instruct.constraints import CONFLICTS, KINDS, TRAINED_KINDS, UNSEEN_KINDS, UNSEEN_PAIRS
from pit.data.synthetic.instruct.draft import words_of
from pit.data.synthetic.instruct.grammar import SEEN, SUBSETS, Request, Wording, parse_prompt, render_prompt
from pit.data.synthetic.instruct.oracle import aspects, quality, topic_words
from pit.data.synthetic.instruct.task import SHARPNESS, compose, sentences_of
from pit.data.synthetic.shared import WIDE_FOLDS, Dice

PROMPT = (
    'Write a short note about a harbour at dawn. Write without commas. Include the word "lantern". End with a question.'
)
TEXT = "The harbour looks cold at dawn. The boats and the gulls wait for a lantern. Do you see it?"


@st.composite
def requests(draw) -> Request:
    """Draw any request, held-out kinds and pairs included."""
    kinds = draw(
        st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=grammar.MOST).filter(
            lambda kinds: not grammar.conflicting(tuple(kinds))
        )
    )
    constraints = tuple(KINDS[kind](draw(st.sampled_from(KINDS[kind].values))) for kind in kinds)
    return Request(draw(st.sampled_from(list(words.FORMS))), draw(st.sampled_from(words.TOPICS)), constraints)


def test_rows_never_change() -> None:
    rows = [(row.prompt[0].content, row.better, row.worse) for row in generate(20, 0, task="instruct")]
    assert rows[0][0] == (
        "Please write a short advert about a beach in summer. Put the entire answer inside double quotation marks. End "
        'with the exact sentence "I hope you agree." Use the word "kettle" somewhere.'
    )
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "c401892896dbae5a"


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 3))
def test_a_row_depends_on_seed_and_index_only(seed: int, start: int, n: int) -> None:
    expected = [preference_at(seed, start + i) for i in range(n)]
    assert list(generate(n, seed, task="instruct", start=start)) == expected
    prompts = list(generate_prompts(n, seed, task="instruct", start=start))
    assert prompts == [row.prompt[0].content for row in expected]
    assert all(row.better != row.worse for row in expected)


@given(requests(), st.data())
def test_a_prompt_is_read_as_it_was_written(request_: Request, data) -> None:
    numbers = tuple(data.draw(st.integers(0, len(each.wordings) - 1)) for each in request_.constraints)
    prompt = render_prompt(request_, Wording(data.draw(st.integers(0, 1)), numbers))
    assert parse_prompt(prompt) == request_
    assert parse_prompt(f" {prompt}\n") == request_


@pytest.mark.parametrize("kind", list(KINDS.values()), ids=lambda kind: kind.kind)
def test_a_statement_says_one_thing(kind: type[Constraint]) -> None:
    for value in kind.values:
        for wording in kind.wordings:
            statement = wording.format(value=value)
            assert grammar.statements_of(f"{statement} Write without commas.") == [
                (kind(value), "Write without commas.")
            ]
            assert grammar.statements_of(statement) == [(kind(value), "")]


@given(requests(), st.data())
def test_an_edit_holds_or_breaks_its_constraint_and_no_other(request_: Request, data) -> None:
    count = len(request_.constraints)
    kept = tuple(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    ways = tuple(data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=count, max_size=count)))
    sentences = sentences_of(request_.topic, Dice(data.draw(st.integers(0, 2**32)), 0, "test"))
    text = compose(request_, sentences, data.draw(st.integers(2, 4)), kept, ways).render()
    assert tuple(constraint.holds(text) for constraint in request_.constraints) == kept
    prompt = render_prompt(request_, Wording(0, (0,) * count))
    assert aspects(prompt, text)["fluent"] == 1
    assert quality(prompt, text) == sum(kept) / count
    assert len(words_of(text)) <= 75


def test_kinds_that_conflict_cannot_be_kept_together() -> None:
    topic, sentences = words.TOPICS[0], sentences_of(words.TOPICS[0], Dice(0, 0, "test"))
    for pair in combinations(KINDS, 2):
        constraints = tuple(KINDS[kind](KINDS[kind].values[0]) for kind in pair)
        text = compose(Request("note", topic, constraints), sentences, 3, (True, True), (0.0, 0.0)).render()
        together = all(constraint.holds(text) for constraint in constraints)
        # A postscript is written after an end, so both are there, and the end is none.
        assert together == (frozenset(pair) not in CONFLICTS), pair


@pytest.mark.parametrize(
    ("kind", "value", "holds", "breaks"),
    [
        ("include", "lantern", ["A lantern.", "LANTERN"], ["lanterns", "a lamp", ""]),
        ("commas", "", ["no comma; none.", ""], ["one, two", "1,000"]),
        ("title", "", ["<<A title>>\ntext", "text <<Late title>>"], ["<A title>", "<< >>", "<<a\nb>>"]),
        ("at most", "30", ["", "word " * 30, "it's " * 15], ["word " * 31, "it's " * 16]),
        ("question", "", ["Why?", '"Why?" ', "why ?"], ["Why? Well.", "?!", ""]),
        ("opening", "Here we are", ["Here we are.", '"here we are', " HERE WE ARE now"], ["So here we are", "Here we"]),
        (
            "closing",
            "More will follow soon.",
            ["x more will follow soon.", 'More will follow soon."\n'],
            ["More soon."],
        ),
        ("quotes", "", ['"a"', ' "" ', '"a" and "b"'], ['"', '"a', "'a'", "“a”"]),
        ("lower case", "", ["all small. 1", "é"], ["One", "", "123"]),
        ("bullets", "2", ["* a\n* b", "x\n - a\n* b"], ["* a", "* a\n* b\n* c", "**bold**\n**bold**", "a * b"]),
        ("postscript", "", ["x\nP.S. y", "p. s. y"], ["PS y", "postscript"]),
        ("numbers", "2", ["1 and 22", "3.5 and 4", "1,000 2"], ["1", "1 2 3", "one two"]),
        ("placeholder", "", ["Ask [name].", "[a] [b]"], ["(name)", "[name", "[a\n]"]),
    ],
)
def test_checkers_on_worked_examples(kind: str, value: str, holds: list[str], breaks: list[str]) -> None:
    constraint = KINDS[kind](value)
    assert [constraint.holds(text) for text in holds] == [True] * len(holds)
    assert [constraint.holds(text) for text in breaks] == [False] * len(breaks)


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (TEXT, set()),
        (TEXT.replace("a lantern", "a lamp"), {"held"}),
        (TEXT.replace("cold", "cold, grey"), {"held"}),
        (TEXT + " Yes.", {"held"}),
        (TEXT + " " + TEXT, {"no repeats"}),
        ("The harbour and the boats. A lantern?", {"enough words"}),
        (TEXT.replace("harbour", "city").replace("dawn", "noon").replace("boats and the gulls", "boats"), {"on topic"}),
        (TEXT.upper().replace("LANTERN", "lantern"), set()),
        ("", {"held", "enough words", "on topic"}),
    ],
)
def test_the_oracle_on_worked_examples(answer: str, lost: set[str]) -> None:
    values = aspects(PROMPT, answer)
    lacking = {name for name, value in values.items() if value < 1 and not name.startswith("holds ")}
    assert lacking - {"all held", "fluent"} == lost
    kinds = [values[f"holds {kind}"] for kind in ("commas", "include", "question")]
    assert values["held"] == sum(kinds) / 3
    assert values["all held"] == (values["held"] == 1)
    assert values["fluent"] == (not lost - {"held"})
    assert quality(PROMPT, answer) == values["held"] * values["fluent"]


def test_one_of_three_broken_costs_a_third() -> None:
    assert quality(PROMPT, TEXT + " Yes.") == pytest.approx(2 / 3)
    assert quality(PROMPT, TEXT + " Yes, yes.") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        PROMPT.replace("note", "song"),
        PROMPT.replace("harbour", "port"),
        PROMPT.replace("lantern", "12"),
        PROMPT + " Be brief.",
        PROMPT + " Use small letters only.",
        "Write a short note about a harbour at dawn.",
        "Write a short note about a harbour at dawn. Write without commas. Avoid commas altogether.",
        'Write a short note about a harbour at dawn. End with a question. Close your answer with "I hope you agree."',
    ],
)
def test_other_prompts_are_refused(prompt: str) -> None:
    message = f"not a prompt of the instruct task: {prompt!r}; take prompts from synthetic.generate"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        quality(prompt, TEXT)


@given(st.integers(0, 2**32), st.sampled_from(["pit", "other"]), st.sampled_from([0.06, 0.5]))
def test_what_is_held_out_is_in_the_eval_fold_alone(seed: int, key: str, share: float) -> None:
    fractions = {"sft": 1 - share, "eval": share}
    for index in range(2):
        prompt = prompt_at(seed, index, fractions, key)
        assert subset_of(prompt) == SEEN or fold_of(prompt, fractions, key) == "eval"
        assert preference_at(seed, index, fractions, key).prompt[0].content == prompt


def test_subsets_are_as_large_as_planned_and_mean_what_they_say() -> None:
    prompts = list(generate_prompts(1500, 2, task="instruct"))
    evaluated = [prompt for prompt in prompts if fold_of(prompt) == "eval"]
    assert abs(len(evaluated) / len(prompts) - DEFAULT_FRACTIONS["eval"]) < 0.02
    counts = {name: sum(subset_of(prompt) == name for prompt in evaluated) for name in SUBSETS}
    assert min(counts.values()) > len(evaluated) / 6
    for prompt in prompts:
        kinds = [constraint.kind for constraint in parse_prompt(prompt).constraints]
        expected = SEEN
        if any(frozenset(pair) in UNSEEN_PAIRS for pair in combinations(kinds, 2)):
            expected = "unseen combinations"
        if set(kinds) & set(UNSEEN_KINDS):
            expected = "unseen kinds"
        assert subset_of(prompt) == expected
    stated = {each.kind for prompt in prompts for each in parse_prompt(prompt).constraints}
    assert stated == set(KINDS)
    assert {frozenset(pair) <= set(TRAINED_KINDS) for pair in UNSEEN_PAIRS} == {True}


def test_answers_of_a_row_share_a_draft_outside_of_the_reward_folds() -> None:
    shared = dict.fromkeys((True, False), 0.0)
    rows = list(generate(300, 1, task="instruct"))
    count = dict.fromkeys((True, False), 0)
    for row in rows:
        wide = fold_of(row.prompt) in WIDE_FOLDS
        sentences = [set(re.split(r"(?<=[.?!])\s", answer.lower())) for answer in (row.better, row.worse)]
        shared[wide] += len(sentences[0] & sentences[1]) / len(sentences[0] | sentences[1])
        count[wide] += 1
    assert shared[False] / count[False] > 0.33
    assert shared[True] / count[True] < 0.25


def test_labels_follow_the_quality_as_often_as_the_coin_says() -> None:
    rows = list(generate(400, 1, task="instruct"))
    agreed = expected = 0.0
    for row in rows:
        prompt = row.prompt[0].content
        difference = quality(prompt, row.better) - quality(prompt, row.worse)
        assert difference != 0
        agreed += difference > 0
        expected += 1 / (1 + math.exp(-SHARPNESS * abs(difference)))
    assert abs(agreed - expected) / len(rows) < 4 * 0.3 / math.sqrt(len(rows))
    assert 0.9 < agreed / len(rows) < 0.99


def test_no_word_serves_two_purposes() -> None:
    fixed = " ".join(
        (
            *words.FORMS.values(),
            *words.SENTENCES,
            *words.ASIDES,
            *words.OPENINGS,
            *words.CLOSINGS,
            *words.QUESTIONS,
            *words.POSTSCRIPTS,
            *words.AFTERTHOUGHTS,
        )
    )
    others = {word.lower() for word in words_of(fixed)}
    for topic in words.TOPICS:
        others |= topic_words(topic) | {*topic.nouns, *topic.adjectives}
        assert 6 <= len(topic_words(topic)) <= 8
    assert not others & set(words.KEYWORDS)
    assert not set(',[]"0123456789') & set("".join((*words.FORMS.values(), *words.SENTENCES)))


def test_drafts_of_one_topic_are_off_the_next() -> None:
    for one, other in pairwise((*words.TOPICS, words.TOPICS[0])):
        prompt = f"Write a short story about {one.phrase}. Write without commas."
        text = clean_answer(prompt.replace(one.phrase, other.phrase))
        assert aspects(prompt, text)["on topic"] == 0, (one.phrase, other.phrase)
