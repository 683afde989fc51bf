"""Packed rows as a level of a scorer: what must be known to make rows for it, and what comes back of them, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.data.packing import Layout
from pit.testing.faults import WrongShape
from pit.testing.paths import Closings, Path, separate_rows
from pit.testing.scorers import Level, asked, checked
from pit.testing.strategies.trees import Forest
from pit.types import Batch, Topology


@dataclass(frozen=True)
class RowFormat:
    """The tokens that a row scorer reads.

    closings: closing tokens of input, reference and output segments.
    pad: token of padding.
    content: least and greatest id of a content token.
    longest: most content tokens of an input, a reference and an output.
    topologies: the trees that it scores.
    trained: the tree that its loss is of.
    reads_reference: whether the path of a question is prompt, reference, output, and not prompt, output.
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
        """Leaf slots of every batch: those of the largest tree."""
        return max(topology.leaves for topology in (*self.topologies, self.trained))

    @property
    def path(self) -> int:
        """Tokens of the longest path."""
        return sum(self.longest) + 3

    @property
    def narrow(self) -> Layout:
        """Rows of about one path, so that trees of several long answers are split; slots for a tree a row."""
        return Layout(self.closings, self.pad, row_length=self.path, rows=self.leaves, trees=self.leaves)

    @property
    def wide(self) -> Layout:
        """Rows of twice the length: other neighbours, other splits, more padding."""
        return replace(self.narrow, row_length=2 * self.path)

    def question(self, prompt: Sequence[int], output: Sequence[int], reference: Sequence[int]) -> Path:
        """The path at whose end a question is answered: written here by hand, and not by any template."""
        x, ref, y = self.closings
        return (*prompt, x, *reference, ref, *output, y) if self.reads_reference else (*prompt, x, *output, y)


class RowGradients(NamedTuple):
    """Gradient of sum(weight * score) over the leaves of a batch.

    parameters: by the parameter's name.
    places: with respect to the embedding that enters at each place of the rows.
    """

    parameters: Mapping[str, Float32[np.ndarray, "..."]]
    places: Float32[np.ndarray, "R T D"]


@runtime_checkable
class RowScorer(Protocol):
    """A scorer that can be given packed rows; `loss_rows`, `grad_rows` and `encode` are further levels.

    loss_rows(batch) -> (sum, weight): its training loss on trees `format.trained`, not divided.
    grad_rows(batch, weight) -> RowGradients.
    encode(prompt, output, reference) -> their token contents, for scorers of text and of rows.
    """

    format: RowFormat

    def score_rows(self, batch: Batch) -> Float32[np.ndarray, "G L"]:
        """Score of each leaf, 0 where it is absent."""


def widened(batch: Batch, leaves: int) -> Batch:
    """The batch with absent leaves up to so many slots, so that all trees share one static shape."""
    missing = leaves - batch.leaf.shape[1]
    return replace(batch, leaf=np.pad(batch.leaf, ((0, 0), (0, missing), (0, 0)), constant_values=-1))


def scores_of(scorer: RowScorer, batch: Batch) -> Float32[np.ndarray, "G L"]:
    """Checked scores of a batch."""
    wide = widened(batch, scorer.format.leaves)
    scores = checked("score_rows()", asked(scorer, Level.ROWS, wide), wide.leaf.shape[:2])
    return scores[:, : batch.leaf.shape[1]]


def forest_scores(scorer: RowScorer, forest: Forest, layout: Layout) -> Float32[np.ndarray, "n L"]:
    """Scores of all leaves of a forest, packed with a layout."""
    result = np.full((forest.trees, forest.topology.leaves), np.nan, np.float32)
    for batch in forest.pack(layout):
        present = batch.example_id >= 0
        result[batch.example_id[present]] = scores_of(scorer, batch)[present]
    return result


def path_scores(scorer: RowScorer, paths: Sequence[Path]) -> Float32[np.ndarray, " n"]:
    """Score at the end of each path, alone in a row of its own."""
    rows, length = scorer.format.narrow.rows, scorer.format.path
    scores = [np.zeros(0, np.float32)]
    for first in range(0, len(paths), rows):
        piece = paths[first : first + rows]
        scores.append(scores_of(scorer, separate_rows(piece, rows, length))[: len(piece), 0])
    return np.concatenate(scores)


def gradients_of(scorer: RowScorer, batch: Batch, weight: Float32[np.ndarray, "G L"]) -> RowGradients:
    """Checked gradients of sum(weight * score)."""
    missing = scorer.format.leaves - batch.leaf.shape[1]
    wide, padded = widened(batch, scorer.format.leaves), np.pad(weight, ((0, 0), (0, missing)))
    result = asked(scorer, Level.GRADIENTS, wide, padded)
    places = np.asarray(result.places)
    if places.shape[:2] != batch.token.shape:
        raise WrongShape(f"grad_rows().places has shape {places.shape}, not one vector for each of {batch.token.shape}")
    parameters = {
        name: checked(f"grad_rows().parameters[{name!r}]", value, np.shape(value))
        for name, value in result.parameters.items()
    }
    return RowGradients(parameters, checked("grad_rows().places", places, places.shape))


def loss_of(scorer: RowScorer, batch: Batch) -> tuple[float, float]:
    """Checked (sum, weight) of the training loss of a batch."""
    total, weight = asked(scorer, Level.LOSS, batch)
    checked("loss_rows()", np.array([total, weight], np.float32), (2,))
    return float(total), float(weight)
