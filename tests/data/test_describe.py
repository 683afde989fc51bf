"""The synthetic task: rows are functions of (seed, index), labels follow the hidden quality, faults lower it."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.atomic import PlaceError
from pit.data.errors import DataError
from pit.data.folds import fold_of
from pit.data.readers import read_preferences
from pit.data.synthetic import describe, generate, generate_prompts, write
from pit.data.synthetic.describe import clean_answer, corruptions, grammar, preference_at, prompt_at
from pit.data.synthetic.describe.oracle import WEIGHTS, aspects, quality
from pit.data.synthetic.shared import WIDE_FOLDS
from pit.data.tokenizer import Tokenizer
from pit.types import Preference

PROMPT = "Describe this red small cheap old round lamp: price, colour and size. End fondly."
PERFECT = "price cheap, colour red, size small. fondly"


def test_rows_never_change() -> None:
    row = preference_at(0, 0)
    assert (row.prompt[0].content, row.better, row.worse) == (
        "Describe this white old steel free oval bench: age, shape and price. End fondly.",
        "price free, age old, shape oval. fondly",
        "price free, age used, shape oval. fondly",
    )


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 5))
def test_a_row_depends_on_seed_and_index_only(seed: int, start: int, n: int) -> None:
    expected = [preference_at(seed, start + i) for i in range(n)]
    assert list(generate(n, seed, start=start)) == expected
    assert list(generate_prompts(n, seed, start=start)) == [row.prompt[0].content for row in expected]
    assert prompt_at(seed, start) != prompt_at(seed + 1, start) or prompt_at(seed, start + 1) != prompt_at(
        seed + 1, start + 1
    )


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_rows_are_well_formed(seed: int, index: int) -> None:
    row = preference_at(seed, index)
    prompt = row.prompt[0].content
    request = grammar.parse_prompt(prompt)
    assert grammar.render_prompt(request) == prompt
    assert len(request.given) == 5
    assert len(request.asked) in (3, 4)
    assert row.better
    assert row.worse
    assert row.better != row.worse
    for answer in (row.better, row.worse):
        parsed = grammar.parse_answer(answer)
        stuttered = any(one == two for one, two in pairwise(answer.split(" ")))
        assert parsed.junk == 0 or stuttered
        assert grammar.render_answer(parsed) == answer or stuttered


def test_no_word_serves_twice() -> None:
    vocabulary = [value for values in grammar.ATTRIBUTES.values() for value in values]
    vocabulary += [*grammar.ATTRIBUTES, *grammar.COURTESIES, *grammar.NOUNS, *grammar.FILLERS]
    assert len(set(vocabulary)) == len(vocabulary)


def test_weights_are_shares() -> None:
    assert math.isclose(sum(WEIGHTS.values()), 1)


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (PERFECT, {}),
        ("price cheap, colour red. fondly", {"coverage": 1 / 3, "correct": 1 / 3}),
        ("price dear, colour red, size small. fondly", {"correct": 1 / 3}),
        ("price dear, colour blue, size small. fondly", {"correct": 2 / 3}),
        ("price red, colour red, size small. fondly", {"coverage": 1 / 3, "correct": 1 / 3, "clean": 0.5}),
        ("colour red, price cheap, size small. fondly", {"order": 1}),
        ("price cheap, colour red, size small, age old. fondly", {"clean": 0.5}),
        ("price cheap, colour red, price cheap, size small. fondly", {"clean": 0.5}),
        # The first mention counts: a correction afterwards is only a repetition.
        ("price dear, price cheap, colour red, size small. fondly", {"correct": 1 / 3, "clean": 0.5}),
        ("price cheap, colour red, size small. cheers", {"courtesy": 1}),
        ("price cheap, colour red, size small.", {"courtesy": 1}),
        ("um price cheap, colour red, size small. fondly", {"brevity": 0.5}),
        ("um price cheap, er colour red, well size small. fondly", {"brevity": 1}),
        ("price cheap colour red size small fondly", {"clean": 0.5}),
        ("price cheap, colour red, size small. fondly fondly", {"clean": 0.5}),
        ("price cheap", {"coverage": 2 / 3, "correct": 2 / 3, "order": 1, "courtesy": 1, "clean": 0.5}),
        ("", {"coverage": 1, "correct": 1, "order": 1, "courtesy": 1}),
        ("what? <|output|>", {"coverage": 1, "correct": 1, "order": 1, "courtesy": 1, "clean": 1}),
    ],
)
def test_the_oracle_on_worked_examples(answer: str, lost: dict[str, float]) -> None:
    assert aspects(PROMPT, answer) == pytest.approx({name: 1 - lost.get(name, 0) for name in WEIGHTS})
    assert quality(PROMPT, answer) == pytest.approx(1 - sum(WEIGHTS[name] * share for name, share in lost.items()))


@given(st.one_of(st.text(), st.lists(st.sampled_from([*PERFECT.split(), "um", ".", "red", "x"])).map(" ".join)))
def test_any_text_has_a_quality(answer: str) -> None:
    assert all(0 <= value <= 1 for value in aspects(PROMPT, answer).values())
    assert (quality(PROMPT, answer) > 1 - 1e-9) == (answer.strip() == PERFECT)


@given(st.text())
def test_other_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="not a prompt of the synthetic task"):
        quality(prompt, PERFECT)


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT.replace("price, colour", "price, material"),
        PROMPT.replace("price, colour", "price, price"),
        PROMPT.replace("red small", "red blue"),
        PROMPT.replace("red small", "red nice"),
    ],
)
def test_impossible_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="not a prompt of the synthetic task"):
        grammar.parse_prompt(prompt)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_corruption_lowers_only_its_aspects(index: int, seed: int) -> None:
    prompt = prompt_at(7, index)
    clean = clean_answer(prompt)
    assert quality(prompt, clean) == pytest.approx(1)
    corrupted = corruptions(prompt, clean, random.Random(seed))
    # An omitted item cannot be correct either.
    lowers = {name: {name} for name in WEIGHTS} | {"coverage": {"coverage", "correct"}}
    lowers |= {"repetition": {"coverage", "correct", "clean"}, "stutter": {"clean"}}
    assert corrupted.keys() == lowers.keys()
    for aspect, answer in corrupted.items():
        lowered = {name for name, value in aspects(prompt, answer).items() if value < 1}
        assert lowered == lowers[aspect]


def test_pairs_share_a_draft_only_where_improvers_learn() -> None:
    sample = list(generate(1500, 1))
    distance: dict[bool, list[float]] = {True: [], False: []}
    agree: dict[bool, list[bool]] = {True: [], False: []}
    for row in sample:
        prompt = row.prompt[0].content
        independent = fold_of(row.prompt) in WIDE_FOLDS
        difference = quality(prompt, row.better) - quality(prompt, row.worse)
        distance[independent].append(abs(difference))
        if abs(difference) > 1e-9:
            agree[independent].append(difference > 0)
    means = {independent: sum(values) / len(values) for independent, values in distance.items()}
    assert means[True] > 2 * means[False]
    shares = {independent: sum(values) / len(values) for independent, values in agree.items()}
    assert 0.86 < shares[True] < 0.94
    assert 0.76 < shares[False] < 0.88


def test_a_config_moves_the_folds() -> None:
    everything = {"reward": 1.0}
    assert [preference_at(0, i, everything) for i in range(50)] != [
        preference_at(0, i, {"sft": 1.0}) for i in range(50)
    ]


def test_prompts_rarely_repeat_and_words_are_single_tokens() -> None:
    sample = list(generate(400, 3))
    prompts = set(generate_prompts(2000, 3))
    assert len(prompts) == 2000
    texts = [text for row in sample for text in (row.prompt[0].content, row.better, row.worse)]
    tokenizer = Tokenizer.train_bpe(texts, 512)
    assert tokenizer.vocab_size < 480
    assert max(map(len, tokenizer.encode_batch(sorted(prompts)))) == 20
    assert len(tokenizer.encode("price cheap, colour red, size small. fondly")) == 10


def test_files_hold_the_rows_in_order(tmp_path: Path) -> None:
    paths = write(tmp_path / "data", 10, 5, shards=3)
    assert [path.name for path in paths] == [f"train-{i:05d}-of-00003.jsonl" for i in range(3)]
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert all(list(line) == ["prompt", "chosen", "rejected"] for line in lines)
    rows, report = read_preferences(tmp_path / "data", strict=True)
    assert list(rows) == list(generate(10, 5))
    assert set(report.files.values()) == {"trl"}


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(PlaceError, match="taken: already exists and is not an empty folder"):
        write(tmp_path / "taken", 1, 0)
    with pytest.raises(DataError, match="2 rows in 3 shards"):
        write(tmp_path / "data", 2, 0, shards=3)
    real = describe.preference_at

    def fails_late(seed: int, index: int, *rest: object) -> Preference:
        if index == 5:
            raise RuntimeError("disk full")
        return real(seed, index)

    monkeypatch.setattr(describe, "preference_at", fails_late)
    with pytest.raises(RuntimeError, match="disk full"):
        write(tmp_path / "data", 10, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
