"""The relay: rows are functions of (seed, index), its oracle by hand, faults that are felt, a strict ladder."""

import math
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.folds import fold_of
from pit.data.synthetic import FAMILIES, generate, generate_prompts
from pit.data.synthetic.oracle import ORACLES
from pit.data.synthetic.relay import clean_answer, corruptions, preference_at, progress, prompt_at, words
from pit.data.synthetic.relay.corruptions import lost
from pit.data.synthetic.relay.oracle import WEIGHTS, aspects, quality
from pit.data.synthetic.shared import WIDE_FOLDS
from pit.data.tokenizer import Tokenizer

# joe -> eve -> bob -> dee -> ann -> gus, and gus -> joe.
PROMPT = (
    "Relay of ann to liz: gus dee eve ann bob bob joe gus eve eve joe ann. Five from joe, one from kit. End fondly."
)
PERFECT = "gus ann dee bob eve joe kit joe. fondly"


def test_rows_never_change() -> None:
    row = preference_at(0, 0)
    assert (row.prompt[0].content, row.better, row.worse) == (
        "Relay of ann to liz: cid liz fay cid kit liz kit eve fay kit fay dee. "
        "Five from eve, one from ann. End fondly.",
        "er liz fay liz fay kit eve ann cid. fondly",
        "cid dee liz fay kit eve ann eve.",
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
    request = words.parse_prompt(prompt)
    assert words.render_prompt(request) == prompt
    assert len(set(request.path)) == words.HOPS + 1
    assert request.aside not in request.path
    assert set(request.passes) <= set(request.path)
    assert all(one != other for one, other in zip(words.NAMES, request.passes, strict=True))
    assert row.better != row.worse
    for answer in (row.better, row.worse):
        parsed = words.parse_answer(answer)
        stuttered = any(one == two for one, two in pairwise(answer.split(" ")))
        assert (parsed.junk == 0 and words.render_answer(parsed) == answer) or stuttered
        assert 7 <= len(parsed.names) <= 9 or stuttered


def test_no_word_serves_twice_and_weights_are_shares() -> None:
    every = [*words.NAMES, *words.COURTESIES, *words.FILLERS]
    assert len(set(every)) == len(every)
    assert math.isclose(sum(WEIGHTS.values()), 1)


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (PERFECT, {}),
        # A wrong name costs itself and all that builds on it; nothing builds on the last one reached.
        ("liz ann dee bob eve joe kit joe. fondly", {"chain": 1 / 6}),
        ("gus ann liz bob eve joe kit joe. fondly", {"chain": 3 / 6}),
        ("gus ann dee bob eve liz kit joe. fondly", {"chain": 5 / 6}),
        ("gus ann dee bob eve joe kit bob. fondly", {"chain": 1}),
        # Lost at the third hop, on from joe to eve and bob.
        ("bob eve joe bob eve joe kit joe. fondly", {"chain": 3 / 6}),
        # In the order of the passes the one who began stands where the last one should.
        ("joe eve bob dee ann gus kit joe. fondly", {"chain": 5 / 6}),
        # One too few: what is there is counted from the right; one too many: likewise.
        ("ann dee bob eve joe kit joe. fondly", {"chain": 1 / 6, "clean": 1 / 2}),
        ("kit gus ann dee bob eve joe kit joe. fondly", {"clean": 1 / 2}),
        ("kit kit gus ann dee bob eve joe kit joe. fondly", {"clean": 1}),
        # Without the one who began, or the pass asked of besides, names stand too far to the right.
        ("gus ann dee bob eve kit joe. fondly", {"chain": 5 / 6, "clean": 1 / 2}),
        ("gus ann dee bob eve joe kit. fondly", {"chain": 1, "clean": 1 / 2}),
        ("gus ann dee bob eve joe kit joe. cheers", {"courtesy": 1}),
        ("gus ann dee bob eve joe kit joe.", {"courtesy": 1}),
        ("gus ann dee bob eve joe kit joe. fondly fondly", {"clean": 1 / 2}),
        ("gus, ann, dee, bob, eve, joe, kit, joe. fondly", {"clean": 1 / 2}),
        ("gus um ann dee bob eve joe kit joe. fondly", {"brevity": 1 / 2}),
        ("gus um ann er dee well bob eve joe kit joe. fondly", {"brevity": 1}),
        ("", {"chain": 1, "clean": 1, "courtesy": 1}),
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
        PROMPT.replace("from joe", "from tom"),
        PROMPT.replace("from kit", "from tom"),
        PROMPT.replace("fondly", "never"),
    ],
)
def test_other_prompts_are_refused(prompt: str) -> None:
    message = f"not a prompt of the relay task: {prompt!r}; take prompts from synthetic.generate"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        quality(prompt, PERFECT)


def test_getting_lost_never_leads_back() -> None:
    request = words.parse_prompt(PROMPT)
    # Wrong at the fourth hop, to kit, who passes to joe; wrong at the second, to cid, and on to eve, bob and dee.
    assert lost(request, 4, lambda names: "kit") == ("joe", "eve", "bob", "dee", "kit", "joe")
    assert lost(request, 2, lambda names: "cid") == ("joe", "eve", "cid", "eve", "bob", "dee")
    # Wrong at the third hop, to liz, who would pass to ann, who has it in truth: another name is taken there.
    picks = iter(["liz", "eve"])
    assert lost(request, 3, lambda names: next(picks)) == ("joe", "eve", "bob", "liz", "eve", "bob")


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_corruption_lowers_what_it_says_alone(index: int, seed: int) -> None:
    prompt = prompt_at(7, index)
    clean = clean_answer(prompt)
    assert quality(prompt, clean) == pytest.approx(1)
    corrupted = corruptions(prompt, clean, random.Random(seed))
    lowers = {name: {"chain"} for name in ("wrong", "lost", "start", "aside", "swapped", "repetition")}
    lowers |= {name: {name} for name in ("clean", "courtesy", "brevity")}
    assert corrupted.keys() == {*lowers, "stutter"}
    for fault, answer in corrupted.items():
        lowered = {name for name, value in aspects(prompt, answer).items() if value < 1}
        assert lowered == lowers[fault] if fault != "stutter" else "clean" in lowered <= {"clean", "chain"}


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_ladder_goes_one_hop_at_a_time(index: int, seed: int) -> None:
    prompt = prompt_at(3, index)
    ladder = progress(prompt, clean_answer(prompt), random.Random(seed))
    assert ladder[0] == clean_answer(prompt)
    assert [6 * aspects(prompt, answer)["chain"] for answer in ladder] == pytest.approx([6, 5, 4, 3, 2, 1])
    # All that is lost is the chain: neither length nor form tells the rungs apart.
    assert all(aspects(prompt, answer) | {"chain": 1} == pytest.approx(dict.fromkeys(WEIGHTS, 1)) for answer in ladder)


def test_labels_follow_the_quality_as_often_as_the_coin_says() -> None:
    sample = list(generate(1500, 1, task="relay"))
    agreed = expected = 0.0
    stuttering = dict.fromkeys((True, False), 0)
    for row in sample:
        prompt = row.prompt[0].content
        difference = quality(prompt, row.better) - quality(prompt, row.worse)
        agreed += (difference > 0) + (difference == 0) / 2
        expected += 1 / (1 + math.exp(-20 * abs(difference)))
        said = row.worse.split(" ")
        thrice = any(one == two == three for one, two, three in zip(said, said[1:], said[2:], strict=False))
        stuttering[fold_of(row.prompt) in WIDE_FOLDS] += thrice
    # Each pair is a coin with a known bias; four standard errors of at most 0.3 a pair.
    assert abs(agreed - expected) / len(sample) < 4 * 0.3 / math.sqrt(len(sample))
    assert 0.9 < agreed / len(sample) < 0.97
    assert stuttering[True] > 5 * max(1, stuttering[False])


def test_words_are_single_tokens_and_fit_the_windows_of_the_recipe() -> None:
    sample = list(generate(1000, 3, task="relay"))
    assert len({row.prompt[0].content for row in sample}) == len(sample)
    texts = [text for row in sample for text in (row.prompt[0].content, row.better, row.worse)]
    tokenizer = Tokenizer.train_bpe(texts, 512)
    assert tokenizer.vocab_size < 400
    # A closing role token comes on top of each; the windows are 36, 24 and 24. Prompts of one length let a small model
    # find a name of the draft by its place.
    assert {len(tokenizer.encode(row.prompt[0].content)) for row in sample} == {30}
    assert len(tokenizer.encode(PERFECT)) == 10
    assert max(len(tokenizer.encode(text)) for row in sample for text in (row.better, row.worse)) <= 23


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_keeps_what_the_protocol_says(name: str) -> None:
    family, oracle = FAMILIES[name], ORACLES[name]
    assert math.isclose(sum(oracle.WEIGHTS.values()), 1)
    for index in range(20):
        prompt = family.prompt_at(5, index)
        clean = family.clean_answer(prompt)
        assert oracle.quality(prompt, clean) == pytest.approx(1)
        dice = random.Random(index)
        assert all(oracle.quality(prompt, bad) < 0.999 for bad in family.corruptions(prompt, clean, dice).values())
        values = [oracle.quality(prompt, answer) for answer in family.progress(prompt, clean, dice)]
        assert all(better > worse + 0.01 for better, worse in pairwise(values))
