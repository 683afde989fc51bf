"""The relay: rows are functions of (seed, index), worked examples of the oracle, faults, and a strict ladder."""

import math
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.folds import fold_of
from pit.data.synthetic import FAMILIES, Family, generate, generate_prompts
from pit.data.synthetic.oracle import ORACLES
from pit.data.synthetic.relay import clean_answer, corruptions, grammar, preference_at, progress, prompt_at
from pit.data.synthetic.relay.corruptions import wrong_route
from pit.data.synthetic.relay.oracle import WEIGHTS, aspects, quality
from pit.data.synthetic.shared import WIDE_FOLDS
from pit.data.tokenizer import Tokenizer

# ida -> bob -> dee -> eve -> kit -> fay -> ann -> gus -> hal -> joe, and joe -> max, max -> ann, cid -> liz -> bob.
PROMPT = (
    "Relay of ann to ned: gus dee liz eve kit ann hal joe bob max fay bob ann eve. Nine from ida, in pairs. End fondly."
)
PERFECT = "hal joe ann gus kit fay dee eve ida bob. fondly"


def test_rows_never_change() -> None:
    row = preference_at(0, 0)
    assert (row.prompt[0].content, row.better, row.worse) == (
        "Relay of ann to ned: cid hal liz cid max ann ned fay cid bob dee hal gus dee. Nine from eve, in pairs. "
        "End fondly.",
        "fay ann liz hal dee cid gus ned eve max. bye",
        "fay ann bob hal ann cid gus ned eve max eve. fondly",
    )


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 3))
def test_a_row_depends_on_seed_and_index_only(seed: int, start: int, n: int) -> None:
    expected = [preference_at(seed, start + i) for i in range(n)]
    assert list(generate(n, seed, task="relay", start=start)) == expected
    prompts = list(generate_prompts(n, seed, task="relay", start=start))
    assert prompts == [row.prompt[0].content for row in expected]
    assert prompt_at(seed, start) != prompt_at(seed + 1, start)


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_rows_are_well_formed(seed: int, index: int) -> None:
    row = preference_at(seed, index)
    prompt = row.prompt[0].content
    request = grammar.parse_prompt(prompt)
    assert grammar.render_prompt(request) == prompt
    assert len(set(request.route)) == grammar.PASSES + 1
    assert all(one != other for one, other in zip(grammar.NAMES, request.passes, strict=True))
    assert row.better != row.worse
    for answer in (row.better, row.worse):
        parsed = grammar.parse_answer(answer)
        stuttered = any(one == two for one, two in pairwise(answer.split(" ")))
        assert (parsed.junk == 0 and grammar.render_answer(parsed) == answer) or stuttered
        assert 10 <= len(parsed.names) <= 11 or stuttered


def test_no_word_serves_twice_and_weights_are_shares() -> None:
    vocabulary = [*grammar.NAMES, *grammar.COURTESIES, grammar.HABIT, *grammar.FILLERS]
    assert len(set(vocabulary)) == len(vocabulary)
    assert math.isclose(sum(WEIGHTS.values()), 1)


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (PERFECT, {}),
        # A wrong name costs itself and all that builds on it, in the order of the passes.
        ("hal max ann gus kit fay dee eve ida bob. fondly", {"route": 1 / 10}),
        ("max joe ann gus kit fay dee eve ida bob. fondly", {"route": 2 / 10}),
        ("hal joe ann gus kit fay dee max ida bob. fondly", {"route": 7 / 10}),
        ("hal joe ann gus kit fay dee eve ida max. fondly", {"route": 9 / 10}),
        ("hal joe ann gus kit fay dee eve max bob. fondly", {"route": 1}),
        # Lost at the fifth pass, to cid, and on to liz, bob, dee, eve.
        ("dee eve liz bob kit cid dee eve ida bob. fondly", {"route": 5 / 10}),
        # In the order of the passes, hardly a name stands at its place.
        ("ida bob dee eve kit fay ann gus hal joe. fondly", {"route": 1}),
        # One too few: the others stand at the wrong places; one too many, at the end or before the others.
        ("joe ann gus kit fay dee eve ida bob. fondly", {"route": 1, "clean": 1 / 2}),
        ("hal joe ann gus kit fay dee eve ida bob max. fondly", {"clean": 1 / 2}),
        ("max hal joe ann gus kit fay dee eve ida bob. fondly", {"route": 1, "clean": 1 / 2}),
        ("hal joe ann gus kit fay dee eve ida bob max max. fondly", {"clean": 1}),
        ("hal joe ann gus kit fay dee eve ida bob. cheers", {"courtesy": 1}),
        ("hal joe ann gus kit fay dee eve ida bob. bye", {"courtesy": 1}),
        ("hal joe ann gus kit fay dee eve ida bob.", {"courtesy": 1}),
        ("hal joe ann gus kit fay dee eve ida bob. fondly fondly", {"clean": 1 / 2}),
        ("hal, joe, ann, gus, kit, fay, dee, eve, ida, bob. fondly", {"clean": 1 / 2}),
        ("hal um joe ann gus kit fay dee eve ida bob. fondly", {"brevity": 1 / 2}),
        ("hal um joe er ann well gus kit fay dee eve ida bob. fondly", {"brevity": 1}),
        ("", {"route": 1, "clean": 1, "courtesy": 1}),
    ],
)
def test_the_oracle_on_worked_examples(answer: str, lost: dict[str, float]) -> None:
    assert aspects(PROMPT, answer) == pytest.approx({name: 1 - lost.get(name, 0) for name in WEIGHTS})
    assert quality(PROMPT, answer) == pytest.approx(1 - sum(WEIGHTS[name] * share for name, share in lost.items()))
    assert ORACLES["relay"].quality(PROMPT, answer) == quality(PROMPT, answer)


@given(st.one_of(st.text(), st.lists(st.sampled_from([*PERFECT.split(), "um", ".", "liz", "x"])).map(" ".join)))
def test_any_text_has_a_quality_and_one_has_the_highest(answer: str) -> None:
    assert all(0 <= value <= 1 for value in aspects(PROMPT, answer).values())
    assert (quality(PROMPT, answer) > 1 - 1e-9) == (answer.strip() == PERFECT)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        PROMPT.replace(": gus", ":"),
        PROMPT.replace("gus dee", "gus dee dee"),
        PROMPT.replace(": gus", ": tom"),
        PROMPT.replace("from ida", "from tom"),
        PROMPT.replace("fondly", "never"),
    ],
)
def test_other_prompts_are_refused(prompt: str) -> None:
    message = f"not a prompt of the relay task: {prompt!r}; take prompts from synthetic.generate"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        quality(prompt, PERFECT)


def test_a_wrong_route_never_becomes_right() -> None:
    request = grammar.parse_prompt(PROMPT)
    truth = request.route
    assert truth == ("ida", "bob", "dee", "eve", "kit", "fay", "ann", "gus", "hal", "joe")
    assert wrong_route(request, 9, lambda names: "max") == (*truth[:9], "max")
    # Wrong at the fifth pass, to liz, who passes to bob.
    assert wrong_route(request, 5, lambda names: "liz") == (*truth[:5], "liz", "bob", "dee", "eve", "kit")
    # Wrong at the fifth pass, to max, who would pass to ann, the true holder: another name is picked there.
    picks = iter(["max", "liz"])
    assert wrong_route(request, 5, lambda names: next(picks)) == (*truth[:5], "max", "liz", "bob", "dee", "eve")


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_corruption_lowers_only_its_aspects(index: int, seed: int) -> None:
    prompt = prompt_at(7, index)
    clean = clean_answer(prompt)
    assert quality(prompt, clean) == pytest.approx(1)
    corrupted = corruptions(prompt, clean, random.Random(seed))
    lowers = {name: {"route"} for name in ("wrong", "lost", "swapped", "repetition")}
    lowers |= {name: {name} for name in ("clean", "courtesy", "brevity")}
    assert corrupted.keys() == {*lowers, "stutter"}
    for fault, answer in corrupted.items():
        lowered = {name for name, value in aspects(prompt, answer).items() if value < 1}
        assert lowered == lowers[fault] if fault != "stutter" else "clean" in lowered <= {"clean", "route"}


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_ladder_goes_one_pass_at_a_time(index: int, seed: int) -> None:
    prompt = prompt_at(3, index)
    ladder = progress(prompt, clean_answer(prompt), random.Random(seed))
    assert ladder[0] == clean_answer(prompt)
    assert [10 * aspects(prompt, answer)["route"] for answer in ladder] == pytest.approx(list(range(10, 0, -1)))
    # Only the route differs: all rungs have the same length and form.
    assert all(aspects(prompt, answer) | {"route": 1} == pytest.approx(dict.fromkeys(WEIGHTS, 1)) for answer in ladder)


def test_labels_follow_the_quality_as_often_as_the_coin_says() -> None:
    sample = list(generate(800, 1, task="relay"))
    agreed = expected = 0.0
    stuttering = dict.fromkeys((True, False), 0)
    for row in sample:
        prompt = row.prompt[0].content
        difference = quality(prompt, row.better) - quality(prompt, row.worse)
        agreed += (difference > 0) + (difference == 0) / 2
        expected += 1 / (1 + math.exp(-20 * abs(difference)))
        words = row.worse.split(" ")
        thrice = any(one == two == three for one, two, three in zip(words, words[1:], words[2:], strict=False))
        stuttering[fold_of(row.prompt) in WIDE_FOLDS] += thrice
    # Each pair is a coin with a known bias; four standard errors of at most 0.3 a pair.
    assert abs(agreed - expected) / len(sample) < 4 * 0.3 / math.sqrt(len(sample))
    assert 0.9 < agreed / len(sample) < 0.97
    assert stuttering[True] > 5 * max(1, stuttering[False])


def test_words_are_single_tokens_and_fit_the_windows_of_the_recipe() -> None:
    sample = list(generate(400, 3, task="relay"))
    assert len({row.prompt[0].content for row in sample}) == len(sample)
    texts = [text for row in sample for text in (row.prompt[0].content, row.better, row.worse)]
    tokenizer = Tokenizer.train_bpe(texts, 512)
    assert tokenizer.vocab_size < 400
    # A closing role token comes on top of each; the windows are 36, 28 and 28. Prompts of one length let a small model
    # find a name of the draft by its place.
    assert {len(tokenizer.encode(row.prompt[0].content)) for row in sample} == {31}
    assert len(tokenizer.encode(PERFECT)) == 12
    assert max(len(tokenizer.encode(text)) for row in sample for text in (row.better, row.worse)) <= 27


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_implements_the_protocol(name: str) -> None:
    family, oracle = FAMILIES[name], ORACLES[name]
    assert isinstance(family, Family)
    for index in range(20):
        prompt = family.prompt_at(5, index)
        clean = family.clean_answer(prompt)
        assert oracle.quality(prompt, clean) == pytest.approx(1)
        dice = random.Random(index)
        assert all(oracle.quality(prompt, bad) < 0.999 for bad in family.corruptions(prompt, clean, dice).values())
        values = [oracle.quality(prompt, answer) for answer in family.progress(prompt, clean, dice)]
        assert all(better > worse + 0.01 for better, worse in pairwise(values))
