"""Exact invariants of packed rows: what a score, a loss and a gradient may depend on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pit.testing.faults import Violation
from pit.testing.invariants.base import Exact, Material
from pit.testing.paths import packed_path, separate_rows
from pit.testing.rows import RowScorer, forest_scores, gradients_of, loss_of, path_scores, scores_of
from pit.testing.scorers import Level, rounding_of
from pit.testing.strategies.trees import Forest, forests
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW, Batch

ROUNDED = "|a - b| <= rounding * max(1, |a|, |b|)"
SAME = "bit for bit"
_SOURCE = "docs/trees.md: shared computation equals separate computation"


def require_close(what: str, found: np.ndarray, expected: np.ndarray, rounding: float) -> None:
    """Refuse values that differ by more than rounding.

    Raises:
        Violation: they do; the message names the worst of them.
    """
    scale = np.maximum(1.0, np.maximum(np.abs(found), np.abs(expected)))
    excess = np.abs(found.astype(np.float64) - expected) / scale
    if excess.size and not excess.max() <= rounding:
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        place = list(map(int, worst))
        raise Violation(
            f"{what}: {found[worst]:.8g} instead of {expected[worst]:.8g} at {place}, where rounding allows "
            f"{rounding * scale[worst]:.2g}"
        )


@dataclass(frozen=True)
class RowInvariant(Exact):
    """An exact invariant of the forests that a row scorer reads; `test` raises where it does not hold."""

    test: Callable[[RowScorer, Forest], None]
    trained_only: bool = False

    def examples(self, material: Material) -> st.SearchStrategy[Forest]:
        """Forests of the scorer's trees."""
        form = material.scorer.format
        trees = (form.trained,) if self.trained_only else form.topologies
        return st.one_of([_forests(material, topology) for topology in trees])

    def check(self, scorer: Any, example: Forest) -> None:
        """Check one forest."""
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
        turned = replace(batch, **arrays, leaf=leaf)
        found, expected = scores_of(scorer, turned), scores_of(scorer, batch)
        require_close("score after the rows were turned round", found, expected, rounding_of(scorer))


_BY_ROW = ("token", "position", "visible_until", "previous", "loss_weight")


def _neighbours(scorer: RowScorer, forest: Forest) -> None:
    layout = scorer.format.narrow
    together = forest_scores(scorer, forest, layout)
    alone = np.concatenate([forest_scores(scorer, forest.alone(i), layout) for i in range(forest.trees)])
    require_close("score beside other trees", together, alone, rounding_of(scorer))


def _dead(batch: Batch) -> np.ndarray:
    dead: np.ndarray = batch.visible_until <= np.arange(batch.token.shape[1], dtype=np.int32)
    return dead


def _padding_content(scorer: RowScorer, forest: Forest) -> None:
    for batch in forest.pack(scorer.format.narrow):
        dead, low = _dead(batch), scorer.format.content[0]
        token = np.where(dead, np.int32(low), batch.token)
        position = np.where(dead, np.int32(scorer.format.path - 1), batch.position)
        found, expected = scores_of(scorer, replace(batch, token=token, position=position)), scores_of(scorer, batch)
        require_close("score after padding was overwritten", found, expected, 0.0)


def _padding_length(scorer: RowScorer, forest: Forest) -> None:
    more = scorer.format.wide.row_length - scorer.format.narrow.row_length
    for batch in forest.pack(scorer.format.narrow):
        arrays = {name: np.pad(getattr(batch, name), ((0, 0), (0, more))) for name in _BY_ROW}
        found, expected = scores_of(scorer, replace(batch, **arrays)), scores_of(scorer, batch)
        require_close("score in rows with more padding", found, expected, rounding_of(scorer))


def _after_the_end(scorer: RowScorer, forest: Forest) -> None:
    rows, length, low = scorer.format.narrow.rows, scorer.format.path, scorer.format.content[0]
    paths = forest.leaf_paths(scorer.format.closings)[:rows]
    longer = [(*path, *[low] * min(3, length - len(path))) for path in paths]
    read = separate_rows(longer, rows, length, leaf_at=[len(path) - 1 for path in paths])
    found, expected = scores_of(scorer, read)[: len(paths), 0], path_scores(scorer, paths)
    require_close("score with tokens after the end of the output", found, expected, rounding_of(scorer))


def _deterministic(scorer: RowScorer, forest: Forest) -> None:
    for batch in forest.pack(scorer.format.narrow):
        require_close("score asked for again", scores_of(scorer, batch), scores_of(scorer, batch), 0.0)


def _loss_parts(scorer: RowScorer, forest: Forest) -> None:
    layout = scorer.format.narrow

    def total(part: Forest) -> np.ndarray:
        summed: np.ndarray = np.array([loss_of(scorer, batch) for batch in part.pack(layout)]).sum(axis=0)
        return summed

    whole, parts = total(forest), [total(forest.alone(i)) for i in range(forest.trees)]
    require_close("(sum, weight) of the loss of a batch", whole, np.sum(parts, axis=0), rounding_of(scorer))


def _loss_definition(scorer: RowScorer, forest: Forest) -> None:
    layout, trees = scorer.format.narrow, forest.trees
    prompts, better, worse = forest.columns
    asked: dict[int, tuple[Sequence[Any], Sequence[Any]]] = {
        GAP_WW: (better, better),
        GAP_LW: (worse, better),
        GAP_WL: (better, worse),
        GAP_LL: (worse, worse),
    }
    ask = asked if scorer.format.reads_reference else {0: (better, worse), 1: (worse, better)}
    paths = [
        scorer.format.question(p, y, r) for ys, rs in ask.values() for p, y, r in zip(prompts, ys, rs, strict=True)
    ]
    scores = path_scores(scorer, paths).astype(np.float64).reshape(len(ask), trees)
    by_slot = dict(zip(ask, scores, strict=True))
    pairs = _FIVE if scorer.format.reads_reference else ((0, 1),)
    expected = sum(float(np.sum(np.logaddexp(0.0, by_slot[low] - by_slot[high]))) for high, low in pairs)
    found = np.sum([loss_of(scorer, batch) for batch in forest.pack(layout)], axis=0)
    require_close("(sum, weight) of the loss", found, np.array([expected, trees]), rounding_of(scorer))


# Written out, and not taken from pit.losses: this is what that is checked against.
_FIVE = ((GAP_WL, GAP_WW), (GAP_WL, GAP_LL), (GAP_WL, GAP_LW), (GAP_WW, GAP_LW), (GAP_LL, GAP_LW))


def _weights(forest: Forest) -> np.ndarray:
    """A weight for each leaf of each tree: no two alike, of both signs."""
    count = forest.trees * forest.topology.leaves
    weights: np.ndarray = np.resize([1.0, -0.5], count) * (1 + np.arange(count) / count)
    return weights.reshape(forest.trees, -1).astype(np.float32)


def _forest_gradients(scorer: RowScorer, forest: Forest, weight: np.ndarray) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for batch in forest.pack(scorer.format.narrow):
        own = np.where(batch.example_id[:, None] >= 0, weight[batch.example_id], np.float32(0))
        for name, value in gradients_of(scorer, batch, own).parameters.items():
            total[name] = total[name] + value if name in total else value
    return total


def _require_same_gradients(what: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray], r: float) -> None:
    for name, value in expected.items():
        # A sum's error scales with its terms, which can be larger than the sum: four times that of a score.
        scale = max(1.0, float(np.abs(value).max()))
        require_close(f"{what} by {name}", found[name] / scale, value / scale, 4 * r)


def _gradients_of_paths(scorer: RowScorer, forest: Forest) -> None:
    weight, rows, length = _weights(forest), scorer.format.narrow.rows, scorer.format.path
    paths, flat = forest.leaf_paths(scorer.format.closings), weight.reshape(-1, 1)
    alone: dict[str, np.ndarray] = {}
    for first in range(0, len(paths), rows):
        piece = paths[first : first + rows]
        own = np.pad(flat[first : first + rows], ((0, rows - len(piece)), (0, 0)))
        for name, value in gradients_of(scorer, separate_rows(piece, rows, length), own).parameters.items():
            alone[name] = alone[name] + value if name in alone else value
    packed = _forest_gradients(scorer, forest, weight)
    _require_same_gradients("gradient of a packed tree", packed, alone, rounding_of(scorer))


def _microbatches(scorer: RowScorer, forest: Forest) -> None:
    weight = _weights(forest)
    whole = _forest_gradients(scorer, forest, weight)
    parts: dict[str, np.ndarray] = {}
    for i in range(forest.trees):
        for name, value in _forest_gradients(scorer, forest.alone(i), weight[i : i + 1]).items():
            parts[name] = parts[name] + value if name in parts else value
    _require_same_gradients("gradient of a batch", whole, parts, rounding_of(scorer))


def _unseen_places(scorer: RowScorer, forest: Forest) -> None:
    for batch in forest.pack(scorer.format.narrow):
        weight = np.zeros(batch.leaf.shape[:2], np.float32)
        slot = int(np.argmax(batch.example_id >= 0))
        weight[slot, 0] = 1.0
        row, index = (int(i) for i in batch.leaf[slot, 0])
        seen = np.zeros(batch.token.shape, bool)
        place = index
        for _ in packed_path(batch, row, index):
            seen[row, place] = True
            place = int(batch.previous[row, place])
        places = gradients_of(scorer, batch, weight).places
        size = np.abs(places).max(axis=-1)
        require_close(
            "gradient at places that the weighted leaf does not see", size[~seen], np.zeros_like(size[~seen]), 0.0
        )


def _row(
    name: str, statement: str, needs: Level, test: Callable[[RowScorer, Forest], None], **more: Any
) -> RowInvariant:
    return RowInvariant(
        name=name,
        statement=statement,
        source=more.pop("source", _SOURCE),
        needs=frozenset({Level.ROWS, needs}),
        tolerance=more.pop("tolerance", ROUNDED),
        test=test,
        **more,
    )


ROW_INVARIANTS: tuple[RowInvariant, ...] = (
    _row("rows_deterministic", "r(batch) = r(batch)", Level.ROWS, _deterministic, tolerance=SAME),
    _row("tree_is_paths", "r(leaf of a packed tree) = r(its path alone)", Level.ROWS, _tree_is_paths),
    _row("row_length", "r(leaf | rows of T) = r(leaf | rows of 2T)", Level.ROWS, _layout),
    _row("row_order", "r(leaf | rows) = r(leaf | rows turned round)", Level.ROWS, _row_order),
    _row("row_neighbours", "r(leaf | other trees) = r(leaf | its tree alone)", Level.ROWS, _neighbours),
    _row("padding_content", "r does not depend on what padding holds", Level.ROWS, _padding_content, tolerance=SAME),
    _row("padding_length", "r does not depend on how much padding there is", Level.ROWS, _padding_length),
    _row("after_the_end", "r(x, ref, y) = r(x, ref, y) with tokens after y", Level.ROWS, _after_the_end),
    _row("loss_of_parts", "L(batch) = sum of L(its trees)", Level.LOSS, _loss_parts, trained_only=True),
    _row(
        "loss_definition",
        "L = sum of -log sigmoid(r_h - r_l) over wl>ww, wl>ll, wl>lw, ww>lw, ll>lw (of R_P: w>l)",
        Level.LOSS,
        _loss_definition,
        trained_only=True,
        source="PIT (arXiv 2310.00898), equation 3; Bradley and Terry 1952",
    ),
    _row(
        "gradient_of_paths",
        "grad of a packed tree = sum of the grads of its paths",
        Level.GRADIENTS,
        _gradients_of_paths,
        tolerance="4 * rounding * max(1, |grad|)",
    ),
    _row(
        "microbatches",
        "grad of a batch = sum of the grads of its trees",
        Level.GRADIENTS,
        _microbatches,
        tolerance="4 * rounding * max(1, |grad|)",
    ),
    _row(
        "unseen_places",
        "d r(leaf) / d place = 0 for places off the leaf's path, padding among them",
        Level.GRADIENTS,
        _unseen_places,
        tolerance="exactly 0",
    ),
)
"""Exact invariants of packed rows."""
