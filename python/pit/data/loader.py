"""Deterministic loading with Grain: the planner decides, Grain prefetches planned batches and keeps their state.

The permutation belongs to the planner, not to Grain, so that every epoch visits every example exactly once; a batch is
a function of (seed, config, data) and its step alone.
"""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import grain

from pit.config import PackingConfig
from pit.data import _core
from pit.data.errors import DataError
from pit.data.packing import Layout, core_topology, materialise
from pit.data.store import Fold
from pit.types import Batch, Source, Topology

PREFETCH = 2
"""Planned steps that Grain materialises ahead."""


def make_planner(
    fold: Fold, topology: Topology, layout: Layout, packing: PackingConfig, *, shards: int, seed: int, config_hash: str
) -> _core.Planner:
    """The planner of one stage over one fold: uniform draws, packed from a look-ahead window."""
    return _core.Planner(
        lengths=fold.lengths(),
        topology=core_topology(topology),
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
    """Steps that one pass over the fold takes, by planning it (lengths only; no token is read)."""
    planner = make_planner(fold, topology, layout, packing, shards=shards, seed=seed, config_hash="")
    packed = steps = 0
    while packed < len(fold):
        packed += len(planner.next_step().tree_example)
        steps += 1
    return steps


def short_hash(text: str) -> int:
    """64 bits of a digest, the form in which the C++ core keeps it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class _PlannedSteps(grain.DatasetIterator[list[Batch]]):
    """Grain's view of the planner: each element is the list of a step's microbatches."""

    def __init__(
        self,
        planner: _core.Planner,
        fold: Fold,
        topology: Topology,
        layout: Layout,
        microbatches: int,
        shards: int,
        own: range,
    ) -> None:
        super().__init__()
        self._planner, self._fold, self._topology = planner, fold, topology
        self._layout, self._microbatches, self._shards, self._own = layout, microbatches, shards, own

    def __next__(self) -> list[Batch]:
        plan = self._planner.next_step()
        # Before, so that a file cut short is not read past its end; after, so that what was read is what was verified.
        self._fold.check_unchanged()
        batches = [self._microbatch(plan, i * self._shards + self._own.start) for i in range(self._microbatches)]
        self._fold.check_unchanged()
        return batches

    def _microbatch(self, plan: _core.Plan, first_group: int) -> Batch:
        """This process's groups of a microbatch; leaf rows count from the first row of the whole one."""
        batch = materialise(plan, first_group, len(self._own), self._fold.table, self._topology, self._layout)
        row = batch.leaf[:, :, 0]
        row[row >= 0] += self._own.start * self._layout.rows
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"planner": base64.b64encode(self._planner.state()).decode()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._planner.restore(base64.b64decode(state["planner"]))


class _PlannedDataset(grain.IterDataset[list[Batch]]):
    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self._arguments = arguments

    def __iter__(self) -> _PlannedSteps:
        return _PlannedSteps(*self._arguments)


class Loader(Iterator[list[Batch]]):
    """Endless steps of packed microbatches over one fold; `state` and `restore` make it resumable at any step.

    Args:
        fold: the rows.
        topology: the tree that each row becomes.
        layout: static shape of a group.
        packing: microbatches and look-ahead window.
        shards: data shards; a microbatch holds one group for each.
        seed: root of the permutation.
        config_hash: stamped into the state; a state of another config is refused.
        process_index, process_count: this process among those that share each step. Each plans the whole of it and
            writes the rows of its own shards.

    Raises:
        DataError: the shards cannot be shared among the processes.
    """

    def __init__(
        self,
        fold: Fold,
        topology: Topology,
        layout: Layout,
        packing: PackingConfig,
        *,
        shards: int,
        seed: int,
        config_hash: str,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if shards % process_count:
            raise DataError(
                f"mesh.data x mesh.fsdp = {shards} shards: must be a multiple of the {process_count} processes; change "
                "the mesh or the number of processes"
            )
        part = shards // process_count
        own = range(process_index * part, (process_index + 1) * part)
        planner = make_planner(fold, topology, layout, packing, shards=shards, seed=seed, config_hash=config_hash)
        dataset = _PlannedDataset(planner, fold, topology, layout, packing.microbatches, shards, own)
        self._iterator = iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=PREFETCH))

    def __next__(self) -> list[Batch]:
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """State after the last step that was handed out (not after those prefetched), as JSON values."""
        state: dict[str, Any] = self._iterator.get_state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after a saved state."""
        self._iterator.set_state(state)

    def close(self) -> None:
        """Stop making steps ahead."""
