"""Models on trees: log-probabilities, losses and gradients equal those of each path computed alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tree_model
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_kernels import leaf_scores, trees
from pit_kernels.conformance import judge_model

PATHS, LONGEST, ROWS = 6, 6, 6


@st.composite
def forests(draw):
    """Draw sequences that share prefixes."""
    token = st.integers(0, 2)
    return draw(st.lists(st.lists(token, min_size=1, max_size=LONGEST), min_size=1, max_size=PATHS))


fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Most of the time of an optimised program on arrays this small would be its compilation."""


@fast_jit
@jax.value_and_grad
def tree_loss(params, tree, weight):
    """The weighted log-probabilities of all paths, read back from the rows."""
    return -jnp.sum(trees.to_paths(tree_model.row_logprob(params, tree), tree) * weight)


@fast_jit
@jax.value_and_grad
def alone(params, tokens, weight):
    """The same of one path, by plain causal attention without any of this package; its end is padding of weight 0."""
    return -jnp.sum(tree_model.path_logprob(params, tokens) * weight[1:])


def assert_close(actual, expected):
    """Compare pytrees to 1e-6."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@settings(max_examples=examples(20))
@given(forests(), st.integers(0, 99))
def test_losses_and_gradients_equal_those_of_each_path_alone(paths, seed):
    params = tree_model.initial()
    rng, total = np.random.default_rng(seed), sum(map(len, paths))
    weights = [rng.normal(size=len(path)).astype(np.float32) / total for path in paths]
    expected = jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params)
    for path, weight in zip(paths, weights, strict=True):
        missing = LONGEST - len(path)
        tokens = jnp.asarray([*path, *[0] * missing], jnp.int32)
        one = alone(params, tokens, jnp.asarray(np.pad(weight, (0, missing))))
        expected = jax.tree.map(jnp.add, expected, one)
    (rows,) = trees.pack(paths, row_length=12).batches(ROWS, paths=PATHS, longest=LONGEST)
    assert_close(tree_loss(params, rows, jnp.asarray(trees.path_values(weights, rows))), expected)


def test_a_model_that_takes_position_and_mask_from_the_rows_conforms():
    verdict = judge_model(tree_model.row_logprob, tree_model.initial(), tree_model.VOCABULARY)
    assert (str(verdict.failure), verdict.passed) == ("None", 10)


@pytest.mark.parametrize(
    ("wrong", "case"),
    [
        # Positions along the row: right as long as nothing follows a sibling.
        (
            lambda tree: tree._replace(position=jnp.broadcast_to(jnp.arange(48, dtype=jnp.int32), tree.token.shape)),
            "one question, four answers",
        ),
        # A causal mask without trees.
        (
            lambda tree: tree._replace(visible_until=jnp.where(tree.visible_until > 0, 48, 0).astype(jnp.int32)),
            "one question, four answers",
        ),
        # The token before it in the row as the one that predicts.
        (
            lambda tree: tree._replace(
                previous=jnp.broadcast_to(jnp.maximum(jnp.arange(48, dtype=jnp.int32) - 1, 0), tree.token.shape)
            ),
            "one question, four answers",
        ),
    ],
)
def test_a_model_that_reads_rows_as_sequences_is_caught(wrong, case):
    verdict = judge_model(
        lambda params, tree: tree_model.row_logprob(params, wrong(tree)), tree_model.initial(), tree_model.VOCABULARY
    )
    assert verdict.failure is not None
    assert verdict.failure.case == case
    assert "on trees differs by up to" in verdict.failure.what


def test_a_model_that_returns_nan_is_caught():
    verdict = judge_model(
        lambda params, tree: jnp.full(tree.token.shape, jnp.nan, jnp.float32) * params, jnp.float32(1.0), 16
    )
    assert str(verdict.failure).startswith("one path: log-probability on trees differs by up to nan from ")


def test_padding_and_first_tokens_send_no_gradient():
    rows = trees.pack([[1, 2], [1, 3]], row_length=5)
    table = jnp.arange(12, dtype=jnp.float32).reshape(4, 3)

    def loss(hidden):
        return jnp.sum(trees.row_logprob(hidden, table, rows))

    # Hidden states of leaves and padding predict nothing; a NaN there reaches nothing.
    hidden = jnp.ones((1, 5, 3), jnp.float32).at[:, 1:].set(jnp.nan)
    value, gradient = jax.value_and_grad(loss)(hidden)
    assert np.isfinite(float(value))
    assert np.isfinite(np.asarray(gradient)).all()
    assert not np.asarray(gradient)[:, 1:].any()


def test_scores_are_read_at_the_end_of_every_path():
    (rows,) = trees.pack([[1, 2, 3], [1, 4], [5]], row_length=4).batches(2, paths=4)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    head = jnp.arange(3, dtype=jnp.float32)
    scores = leaf_scores(hidden, jnp.asarray(rows.leaf[:, None]), jnp.ones(3, jnp.float32), head, eps=1e-6)
    last = np.stack([hidden[row, t] for row, t in rows.leaf[:3]])
    expected = (last / np.sqrt((last**2).mean(axis=1, keepdims=True) + 1e-6)) @ np.asarray(head)
    np.testing.assert_allclose(scores[:, 0], [*expected, 0.0], atol=1e-5)
