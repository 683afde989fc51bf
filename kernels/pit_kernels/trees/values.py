"""Values between rows and paths: log-probabilities of the rows, read back per path; weights of paths, summed into rows.

`to_paths` and `to_rows` are transposes of each other, so a loss may be written on either side with the same gradient.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from pit_kernels import checks
from pit_kernels.token_logprob.api import token_logprob
from pit_kernels.trees.rows import TreeRows


def row_logprob(
    hidden: Float[Array, "B T D"], weight: Float[Array, "V D"] | Float[Array, "D V"], tree: TreeRows, **options: Any
) -> Float[Array, "B T"]:
    """Return the log-probability of every token of the rows given the tokens before it on its path, in nats.

    The first token of a path is predicted from nothing: it and padding have log-probability 0 and send no gradient.

    Args:
      hidden: hidden states of the rows after the final norm.
      weight: output table.
      tree: the rows.
      options: keywords of `token_logprob`, for example `layout="dv"` or `temperature=0.7`.

    Raises:
      ValueError: if the shapes do not fit, or `token_logprob` refuses them.

    Example:
      >>> from pit_kernels import trees
      >>> rows = trees.pack([[1, 2], [1, 3]], row_length=4)
      >>> row_logprob(jnp.ones((1, 4, 2)), jnp.zeros((8, 2)), rows).round(3).tolist()
      [[0.0, -2.0789999961853027, -2.0789999961853027, 0.0]]
    """
    checks.require_rank("row_logprob", "hidden", hidden, "B T D")
    checks.require_shape("row_logprob", "hidden", hidden, "B T D", (*tree.token.shape, hidden.shape[2]))
    before_BTD = jnp.take_along_axis(hidden, jnp.asarray(tree.previous)[:, :, None], axis=1)
    # A token with a token before it has a position above 0; padding has position 0.
    predicted = jnp.asarray(tree.position).reshape(-1) > 0
    target = jnp.asarray(tree.token).reshape(-1)
    result = token_logprob(before_BTD.reshape(-1, hidden.shape[2]), weight, target, valid=predicted, **options)
    return result.logp.reshape(tree.token.shape)


def to_paths(values: Float[Array, "B T *d"], tree: TreeRows) -> Float[Array, "P L *d"]:
    """Return the values of the rows at the tokens of each path, 0 after its end and in empty slots.

    The gradient of a shared token is the sum of those of its paths.

    Args:
      values: a value, or an array of any shape, per token of the rows.
      tree: the rows.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      >>> from pit_kernels import trees
      >>> rows = trees.pack([[5, 6, 7], [5, 8]], row_length=4)
      >>> to_paths(jnp.array([[0.5, 1.5, 2.5, 3.5]]), rows).tolist()
      [[0.5, 1.5, 2.5], [0.5, 3.5, 0.0]]
    """
    checks.require_shape("to_paths", "values", values, "B T ...", (*tree.token.shape, *values.shape[2:]))
    place, row = jnp.asarray(tree.place), jnp.asarray(tree.leaf)[:, :1]
    there = (place >= 0).reshape(*place.shape, *(1 for _ in values.shape[2:]))
    return jnp.where(there, values[jnp.maximum(row, 0), jnp.maximum(place, 0)], 0)


def to_rows(values: Float[Array, "P L *d"], tree: TreeRows) -> Float[Array, "B T *d"]:
    """Return the sum of the values of all paths at each token of the rows, 0 in padding.

    A token that n paths of a row share thus counts n times, as if the paths stood apart.

    Args:
      values: a value, or an array of any shape, per token of the paths; those after the end of a path do not count.
      tree: the rows.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      >>> from pit_kernels import trees
      >>> rows = trees.pack([[5, 6, 7], [5, 8]], row_length=5)
      >>> to_rows(jnp.ones((2, 3)), rows).tolist()
      [[2.0, 1.0, 1.0, 1.0, 0.0]]
    """
    checks.require_shape("to_rows", "values", values, "P L ...", (*tree.place.shape, *values.shape[2:]))
    place, row = jnp.asarray(tree.place), jnp.asarray(tree.leaf)[:, :1]
    # A flat index beyond the row drops what is not there.
    at = jnp.where(place >= 0, place, tree.token.shape[1])
    zeros = jnp.zeros((*tree.token.shape, *values.shape[2:]), values.dtype)
    return zeros.at[jnp.maximum(row, 0), at].add(values, mode="drop")


def path_values(values: Sequence[Any], tree: TreeRows) -> Float32[np.ndarray, "P L"]:
    """Return weights, advantages or other numbers of the packed sequences in the slots of their paths; 0 elsewhere.

    Args:
      values: for each packed sequence a number, which all its tokens get, or a number per token.
      tree: the rows.

    Raises:
      ValueError: if a path has no value, or not one per token.

    Example:
      >>> from pit_kernels import trees
      >>> rows = trees.pack([[5, 6, 7], [5, 8]], row_length=4)
      >>> path_values([[0, 1, 1], -2.0], rows).tolist()
      [[0.0, 1.0, 1.0], [-2.0, -2.0, 0.0]]
    """
    place, path = np.asarray(tree.place), np.asarray(tree.path)
    if path.max(initial=-1) >= len(values):
        raise ValueError(
            f"path_values: values has {len(values)} entries, and the rows hold sequence {path.max()}; give one entry "
            "per packed sequence"
        )
    result = np.zeros(place.shape, np.float32)
    for slot, length in enumerate((place >= 0).sum(axis=1).tolist()):
        if path[slot] < 0:
            continue
        of_path = np.asarray(values[path[slot]], np.float32)
        if of_path.shape not in ((), (length,)):
            raise ValueError(
                f"path_values: values[{path[slot]}] has shape {of_path.shape}, and the sequence has {length} tokens; "
                "give a number, or one per token"
            )
        result[slot, :length] = of_path
    return result
