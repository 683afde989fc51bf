"""Settings that the rows of figures share: amounts of work, preferences, and their store."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import _synthetic
from _measure import spread
from pit.config import override
from pit.data import _core
from pit.data.folds import Folds
from pit.data.packing import Layout, core_topology
from pit.data.readers import read_preferences
from pit.data.store import Fold, Store, build
from pit.data.template import Template, gap, policy_sft, quality
from pit.data.tokens import Tokens
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages.prepare import prepare
from pit.types import Batch, Closings, Preference, Topology

PER_TOKEN = ("token", "position", "visible_until", "previous", "loss_weight")
WINDOW = 1024
TOPOLOGIES = {"X -> y_w": policy_sft, "X -> {y_w, y_l}": quality, "gap": gap}

Columns = Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]
"""Columns of tokens as chunks of values and offsets, as `_core.TokenTable` takes them."""


@dataclass(frozen=True)
class Size:
    """Amounts of work of one call of a contender.

    layout: shape of a batch.
    indices: indices that a permutation maps.
    entries: entries of the table of weights.
    draws: batches of weighted draws.
    batches: planned batches to write.
    steps: batches of trees from lengths to arrays, and of the loader.
    numpy_steps: the same, by the packer in NumPy.
    elements: trees that Grain packs.
    groups: groups of the large batch that two threads write.
    hashed: bytes that each thread hashes.
    copies: sizes of the store, in copies of all preferences, whose loading takes how much memory.
    """

    layout: Layout
    indices: int
    entries: int
    draws: int
    batches: int
    steps: int
    numpy_steps: int
    elements: int
    groups: int
    hashed: int
    copies: tuple[int, ...]


FULL = Size(
    layout=Layout(Closings.roles(1, 2, 3), 0, row_length=4096, rows=32, trees=1024),
    indices=1 << 20,
    entries=10**7,
    draws=16,
    batches=16,
    steps=100,
    numpy_steps=5,
    elements=1500,
    groups=64,
    hashed=1 << 23,
    copies=(1, 10),
)
"""The recorded size: batches of 32 x 4096 tokens."""

SMALL = Size(
    layout=Layout(Closings.roles(1, 2, 3), 0, row_length=512, rows=8, trees=256),
    indices=1 << 16,
    entries=10**6,
    draws=2,
    batches=16,
    steps=20,
    numpy_steps=5,
    elements=200,
    groups=64,
    hashed=1 << 20,
    copies=(1,),
)
"""The size of `make bench`: seconds in all, on short synthetic trees."""

SYNTHETIC_ROWS = 2_000


@dataclass
class Settings:
    """Settings of all rows; the store is built when a row first needs it.

    data: folder of HH-RLHF as published; None means synthetic preferences.
    folder: a folder for stores.
    """

    data: str | None
    folder: Path
    size: Size
    rounds: int
    seed: int

    def store(self, copies: int) -> Fold:
        """Return so many copies of all preferences as one fold; HH-RLHF is tokenised with the hh recipe."""
        path = self.folder / f"store-{copies}"
        if not path.exists():
            repeated = (row for _ in range(copies) for row in self._preferences)
            build(repeated, path, self._template, folds=Folds({"reward": 1.0}))
        return Store.open(path).fold("reward")

    @cached_property
    def _preferences(self) -> list[Preference]:
        if self.data is None:
            return list(_synthetic.preferences(SYNTHETIC_ROWS, SYNTHETIC_ROWS))
        return list(read_preferences(self.data)[0])

    @cached_property
    def _template(self) -> Template:
        if self.data is None:
            return _synthetic.template()
        run = Run(self.folder / "run", override(recipe("hh"), [f"data.path={self.data}"]))
        prepare(run)
        return run.template

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt, better and worse answer of every preference."""
        return self.store(1).lengths()

    def columns(self) -> Columns:
        """Return random tokens of these lengths, in memory."""
        rng = np.random.default_rng(self.seed)
        columns = (Tokens.of([rng.integers(4, 4096, n, np.int32) for n in column]) for column in self.lengths.T)
        return [[(column.values, column.offsets)] for column in columns]


def planner(lengths: np.ndarray, topology: Topology, layout: Layout, seed: int) -> _core.Planner:
    """Return a planner of one group per step; no tree has a reference source."""
    return _core.Planner(
        lengths,
        core_topology(topology, layout.closings),
        row_length=layout.row_length,
        rows_per_group=layout.rows,
        groups_per_step=1,
        trees_per_group=layout.trees,
        window=WINDOW,
        seed=seed,
        config_hash=0,
        data_hash=0,
        stages=[(0, [1, 0, 0, 0])],
    )


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Return the ratios of two contenders' times, round by round."""
    return spread(numerator / denominator)


def copy_all(sources: Sequence[Batch], out: Batch) -> None:
    """Copy the five arrays with one entry per token, of every source in turn, by memcpy."""
    for source in sources:
        for name in PER_TOKEN:
            np.copyto(getattr(out, name), getattr(source, name))
