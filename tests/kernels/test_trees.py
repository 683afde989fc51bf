"""Packing of trees: every path is read back, shared prefixes stand once, and values go to paths and back."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_kernels import trees
from pit_kernels.conformance import forests, packing_failure
from pit_kernels.trees.reference import packing_fault, prefix_at, separate_rows

TOKEN = st.integers(0, 2)
LONGEST = 9


@st.composite
def sequences(draw):
    """Draw sequences of few different tokens, so that they share prefixes, are equal, or continue one another."""
    return draw(st.lists(st.lists(TOKEN, min_size=1, max_size=LONGEST), min_size=1, max_size=12))


def distinct(paths):
    """Return all prefixes of the paths."""
    return {tuple(path[: n + 1]) for path in paths for n in range(len(path))}


@given(sequences(), st.integers(LONGEST, 40), st.booleans())
def test_every_path_is_read_back_and_sees_its_own_prefix_alone(paths, row_length, share):
    rows = trees.pack(paths, row_length=row_length, share=share)
    assert packing_fault(rows, paths, share=share) is None
    assert rows.path.tolist() == list(range(len(paths)))
    assert rows.path_tokens == sum(map(len, paths))


@given(sequences(), st.integers(LONGEST, 40))
def test_what_fits_into_a_row_is_written_once(paths, row_length):
    rows = trees.pack(paths, row_length=row_length)
    once = len(distinct(paths))
    assert rows.tokens >= once
    if once <= row_length:
        assert (rows.token.shape[0], rows.tokens) == (1, once)
    # Each row holds the prefixes of its own paths, and no other.
    for row in range(rows.token.shape[0]):
        here = [path for path, leaf in zip(paths, rows.leaf, strict=True) if leaf[0] == row]
        alive = np.flatnonzero(rows.visible_until[row] > 0)
        assert {prefix_at(rows, row, t) for t in alive.tolist()} == distinct(here)
        assert len(alive) == len(distinct(here))


@given(sequences(), st.integers(LONGEST, 30), st.randoms(use_true_random=False))
def test_the_rows_do_not_depend_on_the_order_of_the_sequences(paths, row_length, random):
    order = list(range(len(paths)))
    random.shuffle(order)
    rows = trees.pack(paths, row_length=row_length)
    shuffled = trees.pack([paths[i] for i in order], row_length=row_length)
    for name in ("token", "position", "visible_until", "previous"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(rows, name))
    for slot, i in enumerate(order):
        assert [rows.token[rows.leaf[i, 0], t] for t in rows.place[i] if t >= 0] == paths[i]
        assert [shuffled.token[shuffled.leaf[slot, 0], t] for t in shuffled.place[slot] if t >= 0] == paths[i]


@given(sequences(), st.integers(LONGEST, 30), st.integers(1, 3))
def test_batches_hold_every_path_once_in_one_static_shape(paths, row_length, count):
    rows = trees.pack(paths, row_length=row_length)
    batches = rows.batches(count, longest=LONGEST + 1)
    assert {tuple(part.shape for part in batch) for batch in batches} == {tuple(part.shape for part in batches[0])}
    assert batches[0].token.shape == (count, row_length)
    assert sorted(path for batch in batches for path in batch.path.tolist() if path >= 0) == list(range(len(paths)))
    for batch in batches:
        chosen = [path for path in batch.path.tolist() if path >= 0]
        local = batch._replace(path=np.array([chosen.index(p) if p >= 0 else -1 for p in batch.path.tolist()]))
        assert packing_fault(local, [paths[path] for path in chosen]) is None


@settings(max_examples=examples(30))
@given(sequences(), st.integers(0, 99))
def test_to_paths_and_to_rows_are_transposes(paths, seed):
    rng = np.random.default_rng(seed)
    (rows,) = trees.pack(paths, row_length=12).batches(12, paths=13, longest=LONGEST)
    of_rows = jnp.asarray(rng.normal(size=rows.token.shape), jnp.float32)
    of_paths = jnp.asarray(rng.normal(size=rows.place.shape), jnp.float32)
    there = trees.to_paths(of_rows, rows)
    expected = np.zeros(rows.place.shape, np.float32)
    for slot, (row, _) in enumerate(rows.leaf.tolist()):
        for n, t in enumerate(rows.place[slot].tolist()):
            expected[slot, n] = of_rows[row, t] if t >= 0 else 0.0
    np.testing.assert_array_equal(there, expected)
    (back,) = jax.vjp(lambda values: trees.to_paths(values, rows), of_rows)[1](of_paths)
    np.testing.assert_allclose(trees.to_rows(of_paths, rows), back, atol=1e-6)


def test_a_shared_token_counts_once_per_path_of_its_own_row():
    paths = [[1, 2, 3], [1, 2, 4], [1, 2, 4], [1, 5]]
    ones = jnp.ones((4, 3), jnp.float32)
    whole = trees.pack(paths, row_length=6)
    assert whole.token.tolist() == [[1, 2, 3, 4, 5, 0]]
    assert trees.to_rows(ones, whole).tolist() == [[4, 3, 1, 2, 1, 0]]
    # Split, the repeated prefix counts the paths of its row.
    split = trees.pack(paths, row_length=4)
    assert split.token.tolist() == [[1, 2, 3, 4], [1, 5, 0, 0]]
    assert trees.to_rows(ones, split).tolist() == [[3, 3, 1, 2], [1, 1, 0, 0]]


def test_weights_and_advantages_of_sequences_lie_in_the_slots_of_their_paths():
    (first, second) = trees.pack([[1, 2, 3], [4, 5]], row_length=3).batches(1, paths=2)
    weights = [[0.0, 1.0, 0.5], -2.0]
    assert first.path.tolist() == [0, -1]
    assert trees.path_values(weights, first).tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
    assert second.path.tolist() == [1, -1]
    assert trees.path_values(weights, second).tolist() == [[-2.0, -2.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_split_tree_fills_rows_and_repeats_only_what_its_paths_need():
    trunk = list(range(20))
    paths = [[*trunk, 100 + n, *range(9)] for n in range(8)]
    rows = trees.pack(paths, row_length=60)
    assert rows.token.shape == (2, 60)
    assert rows.tokens == 2 * 60
    assert trees.pack(paths, row_length=30).token.shape == (8, 30)


def test_nested_splits_keep_deeper_prefixes_together():
    # Two subtrees of 4 + 3 x 3 tokens under a trunk of 2: rows of 15 hold one subtree each, whatever the order.
    paths = [[0, 0, branch, 9, 9, 9, leaf, 1, 1] for leaf in range(3) for branch in (5, 6)]
    rows = trees.pack(paths, row_length=15)
    assert rows.token.shape == (2, 15)
    assert [row for row, _ in rows.leaf.tolist()] == [0, 1, 0, 1, 0, 1]


def test_a_branch_at_every_token_needs_no_recursion():
    paths = [[*range(1, n + 1), 0, 0] for n in range(1500)]
    rows = trees.pack(paths, row_length=1600)
    assert rows.path_tokens == sum(map(len, paths))
    assert sorted(set(rows.leaf[:, 0].tolist())) == list(range(rows.token.shape[0]))


def test_turns_are_joined_with_their_weights():
    system, ask = trees.Turn([1, 2]), trees.Turn(np.array([3, 4, 5]))
    answers = [trees.Turn([6], 1.0), trees.Turn([7, 8], 0.5)]
    tokens, weights = trees.join_turns([[system, ask, answer] for answer in answers] + [[]])
    assert [part.tolist() for part in tokens] == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7, 8], []]
    assert [part.tolist() for part in weights] == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0.5, 0.5], []]


@given(st.data())
def test_the_paths_of_a_trie_are_those_of_its_nodes(data):
    count = data.draw(st.integers(1, 8))
    parents = [data.draw(st.integers(-1, node - 1)) for node in range(count)]
    contents = [data.draw(st.lists(TOKEN, max_size=3)) for _ in range(count)]

    def path(node):
        return [] if node < 0 else [*path(parents[node]), *contents[node]]

    leaves = [node for node in range(count) if node not in parents]
    assert [p.tolist() for p in trees.trie_paths(parents, contents)] == [path(node) for node in leaves]
    assert [p.tolist() for p in trees.trie_paths(parents, contents, [0])] == [path(0)]


def test_the_forests_of_conformance_are_packed_right():
    assert packing_failure(lambda paths: trees.pack(paths, row_length=48)) is None
    split = [name for name, paths in forests(16).items() if trees.pack(paths, row_length=48).token.shape[0] > 1]
    assert split == ["longer than a row: split", "split below a branch"]


def causal_mask(paths):
    """A packer whose paths see all that stands before them in the row."""
    rows = trees.pack(paths, row_length=48)
    return rows._replace(visible_until=np.where(rows.visible_until > 0, rows.visible_until.max(), 0))


def flat_positions(paths):
    """A packer that counts positions along the row."""
    rows = trees.pack(paths, row_length=48)
    index = np.arange(48, dtype=np.int32)[None]
    return rows._replace(position=np.where(rows.visible_until > index, index, 0))


@pytest.mark.parametrize(
    ("packer", "what"),
    [
        (causal_mask, r"^one question, four answers: row 0: token \d+ sees \[.*\], and its path is \[.*\]$"),
        (flat_positions, r"^one question, four answers: row 0: token \d+ has position \d+, and \d+ tokens before it$"),
        (lambda paths: separate_rows(paths[::-1], 48), r"^one question, four answers: path 0 reads \[.*\], and the "),
    ],
)
def test_a_wrong_packer_is_caught_and_the_rule_named(packer, what):
    failure = packing_failure(packer)
    assert re.search(what, str(failure)), str(failure)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "trees.pack: sequences is empty; give at least one sequence of token ids"),
        (
            [[1], []],
            "trees.pack: sequence 1 has shape (0,); it must be a list of at least one token id: leave empty sequences "
            "out",
        ),
        ([np.array([1, 2.5])], "trees.pack: sequence 0 has dtype float64; tokens must be integers"),
        (
            [[1], [3, -1]],
            "trees.pack: sequence 1 has the token -1; tokens must be from 0 to 2147483647: cut padding off",
        ),
        (
            [[1], [1] * 9],
            "trees.pack: sequence 1 has 9 tokens, and row_length is 8; a path lies in one row: raise row_length to 9, "
            "or cut the sequence",
        ),
    ],
)
def test_what_cannot_be_packed_is_named(paths, message):
    with pytest.raises(ValueError, match=r"^trees\.pack: ") as error:
        trees.pack(paths, row_length=8)
    assert str(error.value) == message


def test_batches_that_cannot_hold_a_row_say_what_would():
    rows = trees.pack([[1, 2, 3], [1, 4]], row_length=4)
    with pytest.raises(ValueError, match=r"^TreeRows.batches: rows is 0; it must be at least 1$"):
        rows.batches(0)
    message = (
        "TreeRows.batches: row 0 holds 2 paths, and paths is 1; raise paths to 2, or pack shorter rows",
        "TreeRows.batches: a path has 3 tokens, and longest is 2; raise it to 3",
    )
    with pytest.raises(ValueError, match=r"row 0 holds") as error:
        rows.batches(1, paths=1)
    assert str(error.value) == message[0]
    with pytest.raises(ValueError, match=r"longest is 2") as error:
        rows.batches(1, longest=2)
    assert str(error.value) == message[1]


def test_values_that_fit_no_path_are_named():
    rows = trees.pack([[1, 2, 3], [1, 4]], row_length=4)
    with pytest.raises(
        ValueError, match=r"^path_values: values has 1 entries, and the rows hold sequence 1; give one "
    ):
        trees.path_values([1.0], rows)
    with pytest.raises(
        ValueError, match=r"^path_values: values\[1\] has shape \(3,\), and the sequence has 2 tokens; "
    ):
        trees.path_values([1.0, [1.0, 2.0, 3.0]], rows)
    with pytest.raises(
        ValueError, match=r"^to_paths: values has shape \(1, 5\); it must be \[B T \.\.\.\] = \(1, 4\)$"
    ):
        trees.to_paths(jnp.zeros((1, 5)), rows)
    with pytest.raises(ValueError, match=r"^to_rows: values has shape \(2, 4\); it must be \[P L \.\.\.\] = \(2, 3\)$"):
        trees.to_rows(jnp.zeros((2, 4)), rows)
    with pytest.raises(
        ValueError, match=r"^row_logprob: hidden has shape \(1, 5, 2\); it must be \[B T D\] = \(1, 4, 2\)$"
    ):
        trees.row_logprob(jnp.zeros((1, 5, 2)), jnp.zeros((8, 2)), rows)


def test_a_trie_that_is_none_is_named():
    with pytest.raises(
        ValueError, match=r"^trie_paths: parents has 1 entries and contents 2; give one of each per node$"
    ):
        trees.trie_paths([-1], [[1], [2]])
    with pytest.raises(
        ValueError, match=r"^trie_paths: parents\[0\] is 0; it must be -1 or the index of an earlier node"
    ):
        trees.trie_paths([0], [[1]])
    with pytest.raises(ValueError, match=r"^trie_paths: ends names node 1; nodes are 0 to 0$"):
        trees.trie_paths([-1], [[1]], [1])
