"""Packed rows as the interface of a scorer: the format that its rows must have, and its checked results.

Scores, losses and gradients of the same trees under several layouts are what the exact invariants of rows compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.data.packing import Layout
from pit.testing.errors import ShapeError
from pit.testing.paths import Path, separate_rows
from pit.testing.scorers import Method, call_scorer, check_array
from pit.testing.strategies.trees import Forest
from pit.types import Batch, Closings, Topology


@dataclass(frozen=True)
class RowFormat:
    """The tokens and trees that a row scorer reads.

    closings: closing tokens of the segments.
    pad: padding token.
    content: smallest and largest id of a content token.
    longest: maximum content tokens of an input, a reference and an output.
    topologies: trees that it scores.
    trained: tree of its training loss.
    reads_reference: whether an item is the path prompt, reference, output, and not prompt, output.
    """

    closings: Closings
    pad: int
    content: tuple[int, int]
    longest: tuple[int, int, int]
    topologies: tuple[Topology, ...]
    trained: Topology
    reads_reference: bool

    @cached_property
    def leaves(self) -> int:
        """Leaf slots of every batch, enough for the largest tree."""
        return max(topology.leaves for topology in (*self.topologies, self.trained))

    @property
    def path(self) -> int:
        """Maximum tokens of a path, closing tokens included."""
        closings = self.closings
        added = max(len(closings.input), len(closings.reviewed) + len(closings.reference)) + 1
        return sum(self.longest) + added

    @property
    def narrow(self) -> Layout:
        """Rows that hold one longest path, so that trees with several long answers are split; one tree slot per row."""
        return Layout(self.closings, self.pad, row_length=self.path, rows=self.leaves, trees=self.leaves)

    @property
    def wide(self) -> Layout:
        """Rows of twice the length, with other neighbours, other splits and more padding."""
        return replace(self.narrow, row_length=2 * self.path)

    def item_path(self, prompt: Sequence[int], output: Sequence[int], reference: Sequence[int]) -> Path:
        """Return the path that ends where an item is scored, written out here independently of `pit.data.template`."""
        close = self.closings
        if self.reads_reference:
            return (*prompt, *close.reviewed, *reference, *close.reference, *output, close.eos)
        return (*prompt, *close.input, *output, close.eos)


class RowGradients(NamedTuple):
    """Gradient of sum(weight * score) over the leaves of a batch.

    parameters: gradient by the parameter's name.
    places: gradient with respect to the embedding at each place of the rows.
    """

    parameters: Mapping[str, Float32[np.ndarray, "..."]]
    places: Float32[np.ndarray, "R T D"]


@runtime_checkable
class RowScorer(Protocol):
    """A scorer of packed rows.

    Optional:
        loss_rows(batch) -> (sum, weight): its training loss on trees `format.trained`, not yet divided.
        grad_rows(batch, weight) -> RowGradients.
        encode(prompt, output, reference) -> token contents of the three; needed where the scorer also has `gap`.
    """

    format: RowFormat

    def score_rows(self, batch: Batch) -> Float32[np.ndarray, "G L"]:
        """Return the score of each leaf, 0 where a leaf is absent."""


def pad_leaves(batch: Batch, leaves: int) -> Batch:
    """Return the batch with absent leaves up to `leaves` slots, so that all topologies share one static shape."""
    missing = leaves - batch.leaf.shape[1]
    return replace(batch, leaf=np.pad(batch.leaf, ((0, 0), (0, missing), (0, 0)), constant_values=-1))


def batch_scores(scorer: RowScorer, batch: Batch) -> Float32[np.ndarray, "G L"]:
    """Return the checked scores of a batch.

    Raises:
        InvariantError: the scorer raises, or its result has a wrong shape or dtype, or is not finite.
    """
    padded = pad_leaves(batch, scorer.format.leaves)
    scores = check_array("score_rows()", call_scorer(scorer, Method.ROWS, padded), padded.leaf.shape[:2])
    return scores[:, : batch.leaf.shape[1]]


def forest_scores(scorer: RowScorer, forest: Forest, layout: Layout) -> Float32[np.ndarray, "n L"]:
    """Return the scores of all leaves of a forest that is packed with a layout, one row per tree.

    Raises:
        InvariantError: see `batch_scores`.
    """
    result = np.full((forest.trees, forest.topology.leaves), np.nan, np.float32)
    for batch in forest.pack(layout):
        present = batch.example_id >= 0
        result[batch.example_id[present]] = batch_scores(scorer, batch)[present]
    return result


def path_scores(scorer: RowScorer, paths: Sequence[Path]) -> Float32[np.ndarray, " n"]:
    """Return the score at the end of each path, computed with each path in a separate row.

    Raises:
        InvariantError: see `batch_scores`.
    """
    rows, length = scorer.format.narrow.rows, scorer.format.path
    scores = [np.zeros(0, np.float32)]
    for first in range(0, len(paths), rows):
        piece = paths[first : first + rows]
        scores.append(batch_scores(scorer, separate_rows(piece, rows, length))[: len(piece), 0])
    return np.concatenate(scores)


def batch_gradients(scorer: RowScorer, batch: Batch, weight: Float32[np.ndarray, "G L"]) -> RowGradients:
    """Return the checked gradients of sum(weight * score).

    Raises:
        InvariantError: the scorer raises, or its result has a wrong shape or dtype, or is not finite.
    """
    missing = scorer.format.leaves - batch.leaf.shape[1]
    padded, padded_weight = pad_leaves(batch, scorer.format.leaves), np.pad(weight, ((0, 0), (0, missing)))
    result = call_scorer(scorer, Method.GRADIENTS, padded, padded_weight)
    places = np.asarray(result.places)
    if places.ndim != 3 or places.shape[:2] != batch.token.shape:
        raise ShapeError(
            f"grad_rows().places has shape {places.shape}, must have shape {batch.token.shape} and one more dimension; "
            "return one vector per token"
        )
    parameters = {
        name: check_array(f"grad_rows().parameters[{name!r}]", value, np.shape(value))
        for name, value in result.parameters.items()
    }
    return RowGradients(parameters, check_array("grad_rows().places", places, places.shape))


def batch_loss(scorer: RowScorer, batch: Batch) -> tuple[float, float]:
    """Return the checked (sum, weight) of the training loss of a batch.

    Raises:
        InvariantError: the scorer raises, or its result is not finite.
    """
    total, weight = call_scorer(scorer, Method.LOSS, batch)
    check_array("loss_rows()", np.array([total, weight], np.float32), (2,))
    return float(total), float(weight)
