"""Sequences from other forms of trees: turns of a branching conversation, and tries with explicit parents."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from pit_kernels.trees.sharing import TokenIds


class Turn(NamedTuple):
    """One turn of a conversation as the model reads it, with all that the chat format puts around it.

    tokens: token ids; may be empty.
    weight: weight of each of its tokens in the loss: 0 for what the model is given, 1 for what it learns.
    """

    tokens: TokenIds
    weight: float = 0.0


def join_turns(
    branches: Sequence[Sequence[Turn]],
) -> tuple[list[Int32[np.ndarray, " _"]], list[Float32[np.ndarray, " _"]]]:
    """Return the tokens and the weights of branches of conversations, each from its first turn to its last.

    `pack` finds the turns that branches share.

    Args:
      branches: turns of each branch; those that branches have in common are given in each of them.

    Example:
      >>> ask, answer, other = Turn([5, 6]), Turn([7], 1.0), Turn([8, 9], 1.0)
      >>> tokens, weights = join_turns([[ask, answer], [ask, other]])
      >>> tokens[1].tolist(), weights[1].tolist()
      ([5, 6, 8, 9], [0.0, 0.0, 1.0, 1.0])
    """
    sequences, weights = [], []
    for branch in branches:
        parts = [np.asarray(turn.tokens, np.int32) for turn in branch]
        sequences.append(np.concatenate(parts) if parts else np.zeros(0, np.int32))
        factors = np.array([turn.weight for turn in branch], np.float32)
        weights.append(np.repeat(factors, np.array([part.size for part in parts], np.int64)))
    return sequences, weights


def trie_paths(
    parents: Sequence[int], contents: Sequence[TokenIds], ends: Sequence[int] | None = None
) -> list[Int32[np.ndarray, " _"]]:
    """Return the sequences from a root of a trie to the ends of its paths.

    Args:
      parents: parent of each node, which comes before it; -1 for a root. A trie may have many roots.
      contents: token ids of each node.
      ends: nodes in which a path ends; those without children, in order, when None.

    Raises:
      ValueError: if the lists have different lengths, a parent does not come before its node, or an end is no node.

    Example:
      >>> [path.tolist() for path in trie_paths([-1, 0, 0], [[5, 6], [7], [8, 9]])]
      [[5, 6, 7], [5, 6, 8, 9]]
    """
    if len(parents) != len(contents):
        raise ValueError(
            f"trie_paths: parents has {len(parents)} entries and contents {len(contents)}; give one of each per node"
        )
    paths: list[Int32[np.ndarray, " _"]] = []
    for node, (parent, content) in enumerate(zip(parents, contents, strict=True)):
        if not -1 <= parent < node:
            raise ValueError(
                f"trie_paths: parents[{node}] is {parent}; it must be -1 or the index of an earlier node: write "
                "parents before their children"
            )
        tokens = np.asarray(content, np.int32)
        paths.append(tokens if parent < 0 else np.concatenate([paths[parent], tokens]))
    if ends is None:
        inner = set(parents)
        ends = [node for node in range(len(parents)) if node not in inner]
    for end in ends:
        if not 0 <= end < len(paths):
            raise ValueError(f"trie_paths: ends names node {end}; nodes are 0 to {len(paths) - 1}")
    return [paths[end] for end in ends]
