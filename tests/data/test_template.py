"""Windows hold, what fits comes back, and each topology is the tree that its name promises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data import template as t
from pit.data.errors import DataError
from pit.data.tokenizer import Tokenizer
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW, Closings, Message, Preference, SegmentKind, Topology

TOKENIZER = Tokenizer.train_bpe(["describe this red lamp: price and size.", "price cheap, size small. fondly"], 330)
ROLES = {TOKENIZER.role_ids[name] for name in ("system", "user", "assistant")}

messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=12)), min_size=1, max_size=5
)
sizes = st.integers(3, 40)


@given(messages, sizes)
def test_a_prompt_keeps_its_end_behind_a_role_token(conversation: list[Message], window: int) -> None:
    whole = t.RoleTemplate(TOKENIZER, (10_000, 3, 3)).encode_prompt(conversation)
    template = t.RoleTemplate(TOKENIZER, (window, 3, 3))
    cut = template.encode_prompt(conversation)
    assert template.prompt_size(conversation) == len(whole) + 1
    assert len(cut) <= window - 1
    if len(whole) <= window - 1:
        assert cut == whole
        return
    assert cut[0] in ROLES
    assert cut[1:] == whole[len(whole) - len(cut) + 1 :]
    # The role token in front is that of the message to which the first kept token belongs.
    first = len(whole) - len(cut)
    assert cut[0] == next(token for token in reversed(whole[: first + 1]) if token in ROLES)
    # Nothing more would have fitted, but for an own role token of the message before.
    assert len(cut) >= window - 2


@given(messages)
def test_a_prompt_that_fits_comes_back(conversation: list[Message]) -> None:
    template = t.RoleTemplate(TOKENIZER)
    assert template.decode_prompt(template.encode_prompt(conversation)) == tuple(conversation)


@given(st.text(max_size=60), sizes)
def test_an_answer_keeps_its_beginning(text: str, window: int) -> None:
    whole = TOKENIZER.encode(text)
    template = t.RoleTemplate(TOKENIZER, (3, window, window))
    content = template.encode_answer(text)
    assert content == whole[: window - 1]
    assert template.answer_size(text) == len(whole) + 1
    if len(whole) < window:
        closing = (*template.closings.input, *template.closings.reference, template.closings.eos)
        assert template.decode_answer([*content, *closing]) == text


@given(st.lists(st.builds(Preference, messages.map(tuple), st.text(max_size=30), st.text(max_size=30)), max_size=4))
def test_a_batch_of_preferences_is_its_parts(rows: list[Preference]) -> None:
    template = t.RoleTemplate(TOKENIZER, (12, 9, 9))
    for row, encoded in zip(rows, template.encode_preferences(rows), strict=True):
        said = any(message.role != "system" and message.content for message in row.prompt)
        assert encoded.prompt == (template.encode_prompt(row.prompt) if said else [])
        assert encoded.better == template.encode_answer(row.better)
        assert encoded.worse == template.encode_answer(row.worse)
        prompt_tokens = sum(1 + len(TOKENIZER.encode(message.content)) for message in row.prompt)
        lengths = (prompt_tokens, len(TOKENIZER.encode(row.better)), len(TOKENIZER.encode(row.worse)))
        assert encoded.truncated == tuple(n > room for n, room in zip(lengths, (11, 8, 8), strict=True))


def test_a_cut_at_a_message_boundary_invents_no_message() -> None:
    conversation = [Message("user", "red"), Message("assistant", "red"), Message("user", "red")]
    user, assistant = TOKENIZER.role_ids["user"], TOKENIZER.role_ids["assistant"]
    red = TOKENIZER.encode("red")
    step = 1 + len(red)
    for window, expected in [
        (3 * step + 1, [user, *red, assistant, *red, user, *red]),
        (3 * step, [assistant, *red, user, *red] if len(red) == 1 else None),
        (2 * step + 1, [assistant, *red, user, *red]),
    ]:
        if expected is not None:
            assert t.RoleTemplate(TOKENIZER, (window, 3, 3)).encode_prompt(conversation) == expected


def test_closings_are_the_role_tokens_of_the_segment_kinds() -> None:
    template = t.RoleTemplate(TOKENIZER)
    x, reference, y = (TOKENIZER.role_ids[name] for name in ("input", "reference", "output"))
    assert template.closings.of(t.policy_sft()) == ((x,), (y,))
    assert template.closings.of(t.improver_sft()) == ((x,), (reference,), (y,))
    assert template.closings == Closings.roles(x, reference, y)


def test_each_segment_ends_in_the_closing_tokens_of_its_kind() -> None:
    closings = Closings(input=(1, 2), reviewed=(3,), reference=(4, 5, 6), eos=7)
    assert closings.of(t.policy_sft()) == ((1, 2), (7,))
    assert closings.of(t.quality()) == ((1, 2), (7,), (7,))
    assert closings.of(t.gap()) == ((3,), (4, 5, 6), (7,), (7,), (4, 5, 6), (7,), (7,))
    assert closings.of(t.rollout(1, with_reference=False)) == ((1, 2), (7,))
    assert closings.of(t.rollout(1, with_reference=True)) == ((3,), (4, 5, 6), (7,))
    with pytest.raises(ValueError, match="closings: reference has no token"):
        Closings((1,), (1,), (), 7)


def test_bad_requests_are_named() -> None:
    with pytest.raises(DataError, match=r"windows=\(2, 8, 8\) must be three sizes"):
        t.RoleTemplate(TOKENIZER, (2, 8, 8))
    with pytest.raises(DataError, match="the reference window must equal the output window"):
        t.RoleTemplate(TOKENIZER, (8, 8, 9))
    template = t.RoleTemplate(TOKENIZER)
    with pytest.raises(DataError, match="at least one message"):
        template.encode_prompt([])
    with pytest.raises(DataError, match="message role 'human' is not one of"):
        template.encode_prompt([Message("human", "x")])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="an input must begin with one of the role tokens"):
        template.decode_prompt(TOKENIZER.encode("red"))


def paths(topology: Topology) -> dict[int, tuple[int, ...]]:
    """Columns from the root to each leaf slot."""
    found = {}
    for segment in topology.segments:
        if segment.leaf >= 0:
            columns, at = [segment.column], segment.parent
            while at >= 0:
                columns.append(topology.segments[at].column)
                at = topology.segments[at].parent
            found[segment.leaf] = tuple(reversed(columns))
    return found


def kinds_follow_depth(topology: Topology, referenced: bool) -> None:
    depth = [0] * len(topology.segments)
    order = [SegmentKind.INPUT, *([SegmentKind.REFERENCE] if referenced else []), SegmentKind.OUTPUT]
    for i, segment in enumerate(topology.segments):
        depth[i] = 0 if segment.parent < 0 else depth[segment.parent] + 1
        assert segment.kind == order[depth[i]]


def test_training_trees() -> None:
    x, better, worse = 0, 1, 2
    assert [(s.parent, s.column, s.loss) for s in t.policy_sft().segments] == [(-1, x, False), (0, better, True)]
    assert [(s.parent, s.column, s.loss) for s in t.improver_sft().segments] == [
        (-1, x, False),
        (0, worse, False),
        (1, better, True),
    ]
    assert paths(t.quality()) == {0: (x, better), 1: (x, worse)}
    # Candidate first, reference second: r(worse, better) is read under the reference "better".
    assert paths(t.gap()) == {
        GAP_WW: (x, better, better),
        GAP_LW: (x, better, worse),
        GAP_WL: (x, worse, better),
        GAP_LL: (x, worse, worse),
    }
    for topology, referenced in [
        (t.policy_sft(), False),
        (t.improver_sft(), True),
        (t.quality(), False),
        (t.gap(), True),
    ]:
        kinds_follow_depth(topology, referenced)
    assert not any(segment.loss for tree in (t.quality(), t.gap()) for segment in tree.segments)


@given(st.integers(1, 40), st.booleans())
def test_a_rollout_has_one_leaf_an_output(n: int, with_reference: bool) -> None:
    topology = t.rollout(n, with_reference)
    before = (0, 1) if with_reference else (0,)
    assert paths(topology) == {i: (*before, len(before) + i) for i in range(n)}
    assert [s.loss for s in topology.segments] == [s.kind == SegmentKind.OUTPUT for s in topology.segments]
    kinds_follow_depth(topology, with_reference)


@given(st.integers(1, 15), st.booleans(), st.booleans(), st.booleans())
def test_gap_scoring_finds_each_order(n: int, raw: bool, identity: bool, swapped: bool) -> None:
    if not (raw or identity or swapped):
        with pytest.raises(DataError, match="needs at least one score"):
            t.gap_scoring(n, raw=raw, identity=identity, swapped=swapped)
        return
    topology, leaves = t.gap_scoring(n, raw=raw, identity=identity, swapped=swapped)
    expected = {slot: (0, 1, 2 + i) for i, slot in enumerate(leaves.raw)}
    expected |= {slot: (0, 2 + i, 2 + i) for i, slot in enumerate(leaves.identity)}
    expected |= {slot: (0, 2 + i, 1) for i, slot in enumerate(leaves.swapped)}
    expected |= {leaves.reference_identity: (0, 1, 1)} if identity else {}
    assert paths(topology) == expected
    assert (len(leaves.raw), len(leaves.identity), len(leaves.swapped)) == (n * raw, n * identity, n * swapped)
    assert (leaves.reference_identity >= 0) == identity
    assert not any(segment.loss for segment in topology.segments)
    kinds_follow_depth(topology, True)


def test_trees_too_large_or_too_small_are_refused() -> None:
    with pytest.raises(DataError, match="has 67 segments, at most 64 fit"):
        t.gap_scoring(16, raw=True, identity=True, swapped=True)
    with pytest.raises(DataError, match="has 65 segments, at most 64 fit"):
        t.rollout(64, False)
    with pytest.raises(DataError, match="n=0 outputs has no leaf"):
        t.rollout(0, True)
