"""Folds are shares of the conversations, stable, and disjoint by prompt."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.errors import DataError
from pit.data.folds import DEFAULT_FRACTIONS, Folds, fold_of, whole
from pit.types import FOLDS, Message

GOLDEN = ["reward", "sft", "reward", "sft", "rl", "eval", "sft", "reward"]

roles = st.sampled_from(["user", "assistant"])
turns = st.lists(st.builds(Message, roles, st.text()), max_size=3)


@given(st.text(), turns, turns)
def test_conversations_that_open_alike_share_a_fold(opening: str, more: list[Message], other: list[Message]) -> None:
    first = Message("user", opening)
    folds = {fold_of([first, *more]), fold_of([first, *other]), fold_of(opening), fold_of(f" {opening}\n")}
    assert len(folds) == 1
    assert folds <= set(FOLDS)


def test_a_shared_system_message_does_not_decide_the_fold() -> None:
    system = Message("system", "You are helpful.")
    folds = {fold_of([system, Message("user", f"question {i}")]) for i in range(200)}
    assert folds == set(FOLDS)
    assert all(fold_of([system, Message("user", f"q{i}")]) == fold_of(f"q{i}") for i in range(50))


def test_a_greeting_of_the_assistant_does_not_decide_the_fold() -> None:
    hello = Message("assistant", "Hello, what can I do?")
    assert all(fold_of([hello, Message("user", f"q{i}")]) == fold_of(f"q{i}") for i in range(50))
    assert fold_of([Message("system", "x"), hello]) == fold_of(hello.content)


@given(st.text(), turns)
def test_by_prompt_every_message_decides_the_fold(text: str, more: list[Message]) -> None:
    folds, first = Folds(by="prompt"), Message("user", text)
    # A single message has the fold of its text, whichever the rule.
    assert folds.of([first]) == folds.of(text) == fold_of(text)
    padded = [Message(turn.role, f" {turn.content}\n") for turn in (first, *more)]
    assert folds.of([first, *more]) == folds.of([Message("system", "x"), *padded])


def test_conversations_that_open_alike_spread_by_prompt() -> None:
    hi = (Message("user", "Hi"), Message("assistant", "Yes?"))
    conversations = [(*hi, Message("user", f"q{i}")) for i in range(300)]
    assert len({Folds().of(each) for each in conversations}) == 1
    assert {Folds(by="prompt").of(each) for each in conversations} == set(FOLDS)
    # Who says it matters, and where a message ends.
    texts = {whole(turns) for turns in (hi, hi[::-1], [Message("user", "Hi Yes?")], [hi[0], hi[0]])}
    assert len(texts) == 4


def test_a_fold_can_be_left_out() -> None:
    rest = Folds(DEFAULT_FRACTIONS, key="other", by="prompt").without("eval")
    assert (rest.key, rest.by, "eval" in rest.fractions) == ("other", "prompt", False)
    assert rest.fractions["sft"] == pytest.approx(0.28 / 0.94)
    with pytest.raises(DataError, match=r"leave nothing but 'eval'; give others a share"):
        Folds({"eval": 1.0}).without("eval")


def test_folds_have_their_shares_and_never_change() -> None:
    texts = [f"prompt {i}" for i in range(20_000)]
    counts = Counter(fold_of(text) for text in texts)
    for name, share in DEFAULT_FRACTIONS.items():
        assert abs(counts[name] / len(texts) - share) < 4 * (share * (1 - share) / len(texts)) ** 0.5
    # Written down once: another machine, version or run must give the same.
    assert [fold_of(text) for text in texts[:8]] == GOLDEN
    assert sum(fold_of(text, key="other") != fold_of(text) for text in texts[:1000]) > 500


def test_a_fold_without_a_share_stays_empty() -> None:
    fractions = {"sft": 0.0, "reward": 0.5, "rl": 0.0, "eval": 0.5}
    assert {fold_of(str(i), fractions) for i in range(500)} == {"reward", "eval"}


@pytest.mark.parametrize(
    ("fractions", "key", "words"),
    [
        ({"sft": 0.5, "test": 0.5}, "pit", r"name \['test'\]: unknown; the folds are \['sft'"),
        ({"sft": 1.5, "rl": -0.5}, "pit", r"fold fraction sft=1.5 must lie in \[0, 1\]"),
        ({"sft": float("nan")}, "pit", "fold fraction sft=nan"),
        ({"sft": 0.5}, "pit", "sum to 0.5, but must sum to 1"),
        ({"sft": 1.0}, "k" * 65, "has 65 bytes, but at most 64"),
    ],
)
def test_bad_fractions_are_named(fractions: dict[str, float], key: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fold_of("x", fractions, key)


def test_no_messages_no_fold() -> None:
    with pytest.raises(DataError, match="without messages belongs to no fold"):
        fold_of([])
