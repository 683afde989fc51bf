"""The conformance of trees: forests that reveal mistakes, and a model judged on trees against separate paths.

A model reads trees right if it takes positions and the mask from the rows, and nothing from their order.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from pit_kernels.conformance.check import Failure, Verdict
from pit_kernels.trees.packing import pack
from pit_kernels.trees.reference import packing_fault, separate_rows
from pit_kernels.trees.rows import TreeRows
from pit_kernels.trees.values import to_paths

ROW_LENGTH = 48
"""Tokens of a row: few enough that the larger forests are split."""

MOST_PATHS = 16
"""Paths of the largest forest."""

TOLERANCE = 1e-5
"""Largest difference of a result, as a share of its largest magnitude: float32 sums in another order."""

Forest = list[Int32[np.ndarray, " _"]]
"""Sequences to pack."""


def forests(vocabulary: int) -> Mapping[str, Forest]:
    """Return sequences by the mistake that they reveal; none is longer than `ROW_LENGTH`.

    Args:
      vocabulary: tokens are 0 to `vocabulary` - 1; at least 4.

    Raises:
      ValueError: if the vocabulary is smaller.
    """
    if vocabulary < 4:
        raise ValueError(f"vocabulary is {vocabulary}; it must be at least 4")
    rng = np.random.default_rng(vocabulary)

    def words(length: int) -> Int32[np.ndarray, " _"]:
        return rng.integers(0, vocabulary, length).astype(np.int32)

    def joined(*parts: Int32[np.ndarray, " _"]) -> Int32[np.ndarray, " _"]:
        return np.concatenate(parts)

    question, first, second, trunk = words(7), words(4), words(6), words(20)
    chain = words(16)
    return {
        "one path": [words(9)],
        "one token": [words(1)],
        "one question, four answers": [joined(question, words(n)) for n in (3, 5, 1, 4)],
        "two turns, two answers each": [joined(question, turn, words(3)) for turn in (first, first, second, second)],
        "a path that others continue": [question, joined(question, first), joined(question, first, second)],
        "equal paths": [joined(question, first)] * 3,
        "a branch at every token": [joined(chain[:n], words(2)) for n in range(len(chain))],
        "nothing in common": [joined(np.array([n], np.int32), words(5)) for n in range(4)],
        "longer than a row: split": [joined(trunk, words(11 + n)) for n in range(8)],
        "split below a branch": [joined(trunk, turn, words(9)) for turn in (first, second) for _ in range(3)],
    }


def packing_failure(packer: Callable[[Forest], TreeRows]) -> Failure | None:
    """Return the first forest that a packer packs wrongly, or None.

    Args:
      packer: function from sequences to rows, like `pit_kernels.trees.pack`.
    """
    for name, sequences in forests(16).items():
        fault = packing_fault(packer(sequences), sequences)
        if fault is not None:
            return Failure(name, fault)
    return None


def judge_model(
    row_logprob: Callable[[Any, TreeRows], Float[Array, "B T"]],
    params: Any,
    vocabulary: int,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Judge whether a model's log-probabilities and gradients on trees equal those on separate paths.

    Args:
      row_logprob: function from parameters and rows to the log-probability of every token, differentiable in the
        parameters; what it returns at the first tokens of paths and in padding does not count.
      params: parameters, a pytree of floating arrays. Take ones that are not all 0: equal rows hide mistakes.
      vocabulary: size of the model's vocabulary.
      tolerance: largest difference, as a share of a result's largest magnitude.
    """
    judged = jax.jit(jax.value_and_grad(functools.partial(_loss, row_logprob), has_aux=True))
    passed = 0
    for name, sequences in forests(vocabulary).items():
        layouts = pack(sequences, row_length=ROW_LENGTH), separate_rows(sequences, ROW_LENGTH)
        # One static shape, so that the model is compiled once.
        trees, apart = (rows.batches(MOST_PATHS, MOST_PATHS, ROW_LENGTH)[0] for rows in layouts)
        weight = np.random.default_rng(passed).normal(size=trees.place.shape).astype(np.float32)
        (_, logp), gradient = judged(params, trees, jnp.asarray(weight))
        (_, logp_apart), gradient_apart = judged(params, apart, jnp.asarray(weight))
        difference = _difference("log-probability", logp, logp_apart, tolerance)
        difference = difference or _difference("gradient", gradient, gradient_apart, tolerance)
        if difference is not None:
            return Verdict(Failure(name, difference), passed, ())
        passed += 1
    return Verdict(None, passed, ())


def _loss(
    row_logprob: Callable[[Any, TreeRows], Float[Array, "B T"]],
    params: Any,
    tree: TreeRows,
    weight: Float[Array, "P L"],
) -> tuple[Float[Array, ""], Float[Array, "P L"]]:
    """Return a weighted sum of the log-probabilities of all paths, and the log-probabilities."""
    predicted = jnp.asarray(tree.position) > 0
    logp = to_paths(jnp.where(predicted, row_logprob(params, tree), 0), tree)
    return jnp.sum(logp * weight.astype(logp.dtype)), logp


def _difference(name: str, trees: Any, apart: Any, tolerance: float) -> str | None:
    """Return by how much two pytrees differ, if it is too much."""
    pairs = [
        (np.asarray(actual, np.float64), np.asarray(expected, np.float64))
        for actual, expected in zip(jax.tree.leaves(trees), jax.tree.leaves(apart), strict=True)
    ]
    # np.max keeps a NaN, which no comparison then lets pass.
    largest = float(np.max([np.abs(expected).max(initial=0.0) for _, expected in pairs]))
    error = float(np.max([np.abs(actual - expected).max(initial=0.0) for actual, expected in pairs]))
    if error <= tolerance * largest:
        return None
    return (
        f"{name} on trees differs by up to {error:.3g} from that on separate paths, where the largest is "
        f"{largest:.3g}; take position and mask from the rows"
    )
