"""Exact invariants of packed rows: a score, a loss and a gradient depend on the paths of the trees alone.

Each compares two layouts of the same trees, or a value with its definition written out here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pit.testing.errors import InvariantError
from pit.testing.invariants.base import Exact, Material
from pit.testing.paths import packed_path, separate_rows
from pit.testing.rows import RowScorer, batch_gradients, batch_loss, batch_scores, forest_scores, path_scores
from pit.testing.scorers import Method, rounding_of
from pit.testing.strategies.trees import Forest, forests
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW, Batch

ROUNDED = "|a - b| <= rounding * max(1, |a|, |b|)"
"""Tolerance that allows for rounding."""

SAME = "bit for bit"
"""Tolerance that allows for no difference."""

_SOURCE = "docs/concepts/trees.md: shared computation equals separate computation"


def require_close(name: str, actual: np.ndarray, expected: np.ndarray, rounding: float) -> None:
    """Raise if any two values differ by more than rounding * max(1, |actual|, |expected|).

    Args:
        name: name of the actual values in the message.
        actual: values to check.
        expected: values of the same shape.
        rounding: permitted relative difference; 0 demands equality.

    Raises:
        InvariantError: two values differ by more; the message gives the worst of them.

    >>> require_close("score", np.array([1.0, 3.0]), np.array([1.0, 2.0]), 0.1)
    Traceback (most recent call last):
    pit.testing.errors.InvariantError: score: 3 instead of 2 at [1], where rounding allows 0.3
    """
    scale = np.maximum(1.0, np.maximum(np.abs(actual), np.abs(expected)))
    excess = np.abs(actual.astype(np.float64) - expected) / scale
    if excess.size and not excess.max() <= rounding:
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        place = list(map(int, worst))
        raise InvariantError(
            f"{name}: {actual[worst]:.8g} instead of {expected[worst]:.8g} at {place}, where rounding allows "
            f"{rounding * scale[worst]:.2g}"
        )


@dataclass(frozen=True)
class RowInvariant(Exact):
    """An exact invariant of the forests that a row scorer reads.

    test: function of scorer and forest that raises InvariantError where the invariant does not hold.
    trained_only: whether only the tree of the training loss is searched.
    """

    test: Callable[[RowScorer, Forest], None]
    trained_only: bool = False

    def examples(self, material: Material) -> st.SearchStrategy[Forest]:
        """Return a strategy for forests of the scorer's trees."""
        form = material.scorer.format
        trees = (form.trained,) if self.trained_only else form.topologies
        return st.one_of([_forests(material, topology) for topology in trees])

    def check(self, scorer: Any, example: Forest) -> None:
        """Check one forest.

        Raises:
            InvariantError: the invariant does not hold.
        """
        self.test(scorer, example)


def _forests(material: Material, topology: Any) -> st.SearchStrategy[Forest]:
    form = material.scorer.format
    prompt, reference, output = form.longest
    # A column that is a reference in one place and an output in another must fit both.
    answers = [min(reference, output)] * max(segment.column for segment in topology.segments)
    edges = sorted({1, 127, 128, 129, prompt - 1, prompt, output - 1, output})
    return forests(topology, form.content, [prompt, *answers], edges=edges)


def _tree_is_paths(scorer: RowScorer, forest: Forest) -> None:
    packed = forest_scores(scorer, forest, scorer.format.narrow)
    alone = path_scores(scorer, forest.leaf_paths(scorer.format.closings)).reshape(packed.shape)
    require_close("score of a leaf of a packed tree", packed, alone, rounding_of(scorer))


def _layout(scorer: RowScorer, forest: Forest) -> None:
    narrow, wide = (forest_scores(scorer, forest, at) for at in (scorer.format.narrow, scorer.format.wide))
    require_close("score in rows of twice the length", wide, narrow, rounding_of(scorer))


def _row_order(scorer: RowScorer, forest: Forest) -> None:
    for batch in forest.pack(scorer.format.narrow):
        rows = batch.token.shape[0]
        leaf = batch.leaf.copy()
        leaf[..., 0] = np.where(leaf[..., 0] >= 0, rows - 1 - leaf[..., 0], -1)
        arrays = {name: getattr(batch, name)[::-1].copy() for name in _BY_ROW}
        reversed_rows = replace(batch, **arrays, leaf=leaf)
        actual, expected = batch_scores(scorer, reversed_rows), batch_scores(scorer, batch)
        require_close("score in rows in reverse order", actual, expected, rounding_of(scorer))


_BY_ROW = ("token", "position", "visible_until", "previous", "loss_weight")


def _neighbours(scorer: RowScorer, forest: Forest) -> None:
    layout = scorer.format.narrow
    together = forest_scores(scorer, forest, layout)
    alone = np.concatenate([forest_scores(scorer, forest.alone(i), layout) for i in range(forest.trees)])
    require_close("score next to other trees", together, alone, rounding_of(scorer))


def _padding(batch: Batch) -> np.ndarray:
    padding: np.ndarray = batch.visible_until <= np.arange(batch.token.shape[1], dtype=np.int32)
    return padding


def _padding_content(scorer: RowScorer, forest: Forest) -> None:
    for batch in forest.pack(scorer.format.narrow):
        padding, low = _padding(batch), scorer.format.content[0]
        token = np.where(padding, np.int32(low), batch.token)
        position = np.where(padding, np.int32(scorer.format.path - 1), batch.position)
        overwritten = replace(batch, token=token, position=position)
        actual, expected = batch_scores(scorer, overwritten), batch_scores(scorer, batch)
        require_close("score with overwritten padding", actual, expected, 0.0)


def _padding_length(scorer: RowScorer, forest: Forest) -> None:
    more = scorer.format.wide.row_length - scorer.format.narrow.row_length
    for batch in forest.pack(scorer.format.narrow):
        arrays = {name: np.pad(getattr(batch, name), ((0, 0), (0, more))) for name in _BY_ROW}
        actual, expected = batch_scores(scorer, replace(batch, **arrays)), batch_scores(scorer, batch)
        require_close("score in rows with more padding", actual, expected, rounding_of(scorer))


def _after_the_end(scorer: RowScorer, forest: Forest) -> None:
    rows, length, low = scorer.format.narrow.rows, scorer.format.path, scorer.format.content[0]
    paths = forest.leaf_paths(scorer.format.closings)[:rows]
    longer = [(*path, *[low] * min(3, length - len(path))) for path in paths]
    batch = separate_rows(longer, rows, length, leaf_at=[len(path) - 1 for path in paths])
    actual, expected = batch_scores(scorer, batch)[: len(paths), 0], path_scores(scorer, paths)
    require_close("score with tokens after the end of the output", actual, expected, rounding_of(scorer))


def _deterministic(scorer: RowScorer, forest: Forest) -> None:
    for batch in forest.pack(scorer.format.narrow):
        require_close("score of a second call", batch_scores(scorer, batch), batch_scores(scorer, batch), 0.0)


def _loss_of_trees(scorer: RowScorer, forest: Forest) -> None:
    layout = scorer.format.narrow

    def total(trees: Forest) -> np.ndarray:
        result: np.ndarray = np.array([batch_loss(scorer, batch) for batch in trees.pack(layout)]).sum(axis=0)
        return result

    separate = np.sum([total(forest.alone(i)) for i in range(forest.trees)], axis=0)
    require_close("(sum, weight) of the loss of a batch", total(forest), separate, rounding_of(scorer))


def _loss_definition(scorer: RowScorer, forest: Forest) -> None:
    layout, trees = scorer.format.narrow, forest.trees
    prompts, better, worse = forest.columns
    gap_pairs: dict[int, tuple[Sequence[Any], Sequence[Any]]] = {
        GAP_WW: (better, better),
        GAP_LW: (worse, better),
        GAP_WL: (better, worse),
        GAP_LL: (worse, worse),
    }
    slots = gap_pairs if scorer.format.reads_reference else {0: (better, worse), 1: (worse, better)}
    paths = [
        scorer.format.item_path(p, y, r) for ys, rs in slots.values() for p, y, r in zip(prompts, ys, rs, strict=True)
    ]
    scores = path_scores(scorer, paths).astype(np.float64).reshape(len(slots), trees)
    by_slot = dict(zip(slots, scores, strict=True))
    pairs = _FIVE if scorer.format.reads_reference else ((0, 1),)
    expected = sum(float(np.sum(np.logaddexp(0.0, by_slot[low] - by_slot[high]))) for high, low in pairs)
    actual = np.sum([batch_loss(scorer, batch) for batch in forest.pack(layout)], axis=0)
    require_close("(sum, weight) of the loss", actual, np.array([expected, trees]), rounding_of(scorer))


# Written out here and not imported from pit.losses, which is checked against it.
_FIVE = ((GAP_WL, GAP_WW), (GAP_WL, GAP_LL), (GAP_WL, GAP_LW), (GAP_WW, GAP_LW), (GAP_LL, GAP_LW))


def _weights(forest: Forest) -> np.ndarray:
    """Return a weight per leaf of each tree, all different and of both signs."""
    count = forest.trees * forest.topology.leaves
    weights: np.ndarray = np.resize([1.0, -0.5], count) * (1 + np.arange(count) / count)
    return weights.reshape(forest.trees, -1).astype(np.float32)


def _forest_gradients(scorer: RowScorer, forest: Forest, weight: np.ndarray) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for batch in forest.pack(scorer.format.narrow):
        leaf_weight = np.where(batch.example_id[:, None] >= 0, weight[batch.example_id], np.float32(0))
        for name, value in batch_gradients(scorer, batch, leaf_weight).parameters.items():
            total[name] = total[name] + value if name in total else value
    return total


def _require_same_gradients(
    description: str, actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], rounding: float
) -> None:
    for name, value in expected.items():
        # The error of a sum scales with its terms, which can exceed the sum: four times the tolerance of a score.
        scale = max(1.0, float(np.abs(value).max()))
        require_close(f"{description} by {name}", actual[name] / scale, value / scale, 4 * rounding)


def _gradients_of_paths(scorer: RowScorer, forest: Forest) -> None:
    weight, rows, length = _weights(forest), scorer.format.narrow.rows, scorer.format.path
    paths, flat = forest.leaf_paths(scorer.format.closings), weight.reshape(-1, 1)
    alone: dict[str, np.ndarray] = {}
    for first in range(0, len(paths), rows):
        piece = paths[first : first + rows]
        leaf_weight = np.pad(flat[first : first + rows], ((0, rows - len(piece)), (0, 0)))
        batch = separate_rows(piece, rows, length)
        for name, value in batch_gradients(scorer, batch, leaf_weight).parameters.items():
            alone[name] = alone[name] + value if name in alone else value
    packed = _forest_gradients(scorer, forest, weight)
    _require_same_gradients("gradient of a packed tree", packed, alone, rounding_of(scorer))


def _microbatches(scorer: RowScorer, forest: Forest) -> None:
    weight = _weights(forest)
    whole = _forest_gradients(scorer, forest, weight)
    separate: dict[str, np.ndarray] = {}
    for i in range(forest.trees):
        for name, value in _forest_gradients(scorer, forest.alone(i), weight[i : i + 1]).items():
            separate[name] = separate[name] + value if name in separate else value
    _require_same_gradients("gradient of a batch", whole, separate, rounding_of(scorer))


def _off_path_places(scorer: RowScorer, forest: Forest) -> None:
    for batch in forest.pack(scorer.format.narrow):
        weight = np.zeros(batch.leaf.shape[:2], np.float32)
        slot = int(np.argmax(batch.example_id >= 0))
        weight[slot, 0] = 1.0
        row, index = (int(i) for i in batch.leaf[slot, 0])
        on_path = np.zeros(batch.token.shape, bool)
        place = index
        for _ in packed_path(batch, row, index):
            on_path[row, place] = True
            place = int(batch.previous[row, place])
        size = np.abs(batch_gradients(scorer, batch, weight).places).max(axis=-1)[~on_path]
        require_close("gradient at places off the path of the weighted leaf", size, np.zeros_like(size), 0.0)


def _row(
    name: str, statement: str, needs: Method, test: Callable[[RowScorer, Forest], None], **more: Any
) -> RowInvariant:
    return RowInvariant(
        name=name,
        statement=statement,
        source=more.pop("source", _SOURCE),
        needs=frozenset({Method.ROWS, needs}),
        tolerance=more.pop("tolerance", ROUNDED),
        test=test,
        **more,
    )


ROW_INVARIANTS: tuple[RowInvariant, ...] = (
    _row("rows_deterministic", "two calls give the same r(batch)", Method.ROWS, _deterministic, tolerance=SAME),
    _row("tree_is_paths", "r(leaf of a packed tree) = r(the end of its path alone)", Method.ROWS, _tree_is_paths),
    _row("row_length", "r(leaf | rows of T) = r(leaf | rows of 2T)", Method.ROWS, _layout),
    _row("row_order", "r(leaf | rows) = r(leaf | rows in reverse order)", Method.ROWS, _row_order),
    _row("row_neighbours", "r(leaf | other trees) = r(leaf | its tree alone)", Method.ROWS, _neighbours),
    _row("padding_content", "r does not depend on what padding holds", Method.ROWS, _padding_content, tolerance=SAME),
    _row("padding_length", "r does not depend on the amount of padding", Method.ROWS, _padding_length),
    _row("after_the_end", "r(x, ref, y) does not depend on tokens after y", Method.ROWS, _after_the_end),
    _row("loss_of_trees", "L(batch) = sum of L(tree) over its trees", Method.LOSS, _loss_of_trees, trained_only=True),
    _row(
        "loss_definition",
        "L = sum of -log sigmoid(r_h - r_l) over wl>ww, wl>ll, wl>lw, ww>lw, ll>lw (of R_P: w>l)",
        Method.LOSS,
        _loss_definition,
        trained_only=True,
        source="PIT (arXiv 2310.00898), equation 3; Bradley and Terry 1952",
    ),
    _row(
        "gradient_of_paths",
        "gradient of a packed tree = sum of the gradients of its paths",
        Method.GRADIENTS,
        _gradients_of_paths,
        tolerance="4 * rounding * max(1, |gradient|)",
    ),
    _row(
        "microbatches",
        "gradient of a batch = sum of the gradients of its trees",
        Method.GRADIENTS,
        _microbatches,
        tolerance="4 * rounding * max(1, |gradient|)",
    ),
    _row(
        "off_path_places",
        "d r(leaf) / d place = 0 for places off the leaf's path, padding included",
        Method.GRADIENTS,
        _off_path_places,
        tolerance="exactly 0",
    ),
)
"""Exact invariants of packed rows."""
