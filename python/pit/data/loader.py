"""Deterministic loading: the planner plans every step, and Grain prefetches the batches and keeps their state.

The planner draws the permutations, so every epoch visits every example exactly once; a batch is a function of (seed,
config, data) and its step alone.
"""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import grain

from pit.config import PackingConfig
from pit.data import _core
from pit.data.errors import DataError
from pit.data.local import materialise_local
from pit.data.packing import Layout, core_topology
from pit.data.prefetch import Prefetcher
from pit.data.store import Fold
from pit.types import LocalBatch, Shards, Source, Topology

PREFETCH = 2
"""Number of steps that Grain materialises ahead."""


def make_planner(
    fold: Fold, topology: Topology, layout: Layout, packing: PackingConfig, *, shards: int, seed: int, config_hash: str
) -> _core.Planner:
    """Return the planner of a stage over a fold: uniform draws, packed from a look-ahead window."""
    return _core.Planner(
        lengths=fold.lengths(),
        topology=core_topology(topology, layout.closings),
        row_length=layout.row_length,
        rows_per_group=layout.rows,
        groups_per_step=packing.microbatches * shards,
        trees_per_group=layout.trees,
        window=packing.window,
        seed=seed,
        config_hash=short_hash(config_hash),
        data_hash=short_hash(fold.hash),
        stages=[(0, [1 if source is Source.NONE else 0 for source in Source])],
    )


def count_steps(
    fold: Fold, topology: Topology, layout: Layout, packing: PackingConfig, *, shards: int, seed: int
) -> int:
    """Return the number of steps of one pass over the fold, by planning it (from lengths; no token is read)."""
    planner = make_planner(fold, topology, layout, packing, shards=shards, seed=seed, config_hash="")
    packed = steps = 0
    while packed < len(fold):
        packed += len(planner.next_step().tree_example)
        steps += 1
    return steps


def short_hash(text: str) -> int:
    """Return a 64-bit hash of a text, the form in which the C++ core keeps it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class _PlannedSteps(grain.DatasetIterator[list[LocalBatch]]):
    """Grain iterator over the planner: an element is the list of microbatches of a step."""

    def __init__(
        self,
        planner: _core.Planner,
        fold: Fold,
        topology: Topology,
        layout: Layout,
        microbatches: int,
        shards: Shards,
    ) -> None:
        super().__init__()
        self._planner, self._fold, self._topology = planner, fold, topology
        self._layout, self._microbatches, self._shards = layout, microbatches, shards

    def __next__(self) -> list[LocalBatch]:
        plan = self._planner.next_step()
        # Before: a truncated file must not be read past its end. After: the bytes read must be the verified ones.
        self._fold.check_unchanged()
        batches = [
            materialise_local(
                plan, i * self._shards.count, self._shards, self._fold.table, self._topology, self._layout
            )
            for i in range(self._microbatches)
        ]
        self._fold.check_unchanged()
        return batches

    def get_state(self) -> dict[str, Any]:
        return {"planner": base64.b64encode(self._planner.state()).decode()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._planner.restore(base64.b64decode(state["planner"]))


class _PlannedDataset(grain.IterDataset[list[LocalBatch]]):
    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self._arguments = arguments

    def __iter__(self) -> _PlannedSteps:
        return _PlannedSteps(*self._arguments)


class Loader(Iterator[list[LocalBatch]]):
    """Endless iterator over steps of packed microbatches; `state` and `restore` make it resumable at any step.

    Close it, or use it as a context manager, to end its thread; otherwise that happens when it is collected or the
    process exits.

    Args:
        fold: the rows.
        topology: the tree of each row.
        layout: static shape of a group.
        packing: microbatches and look-ahead window.
        shards: shards of the rows; a microbatch has one group per shard, and this process writes its own.
        seed: seed of the permutations.
        config_hash: part of the state; `restore` raises for a state of another config.
    """

    def __init__(
        self,
        fold: Fold,
        topology: Topology,
        layout: Layout,
        packing: PackingConfig,
        *,
        shards: Shards,
        seed: int,
        config_hash: str,
    ) -> None:
        planner = make_planner(fold, topology, layout, packing, shards=shards.count, seed=seed, config_hash=config_hash)
        dataset = _PlannedDataset(planner, fold, topology, layout, packing.microbatches, shards)
        self._steps: Prefetcher[list[LocalBatch]] = Prefetcher(dataset, PREFETCH)

    def __next__(self) -> list[LocalBatch]:
        if self._steps.closed:
            raise DataError("the loader is closed; make a new one and restore its state")
        return next(self._steps)

    def state(self) -> dict[str, Any]:
        """Return the state after the last step that was handed out (not the last prefetched one), as JSON values."""
        return self._steps.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after a saved state.

        Raises:
            CoreError: the state is damaged, or belongs to another config or other data.
        """
        self._steps.restore(state)

    def close(self) -> None:
        """Stop loading ahead and end the thread; `state` stays available."""
        self._steps.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
