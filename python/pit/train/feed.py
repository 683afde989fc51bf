"""Batches on their way to the devices: the next step's are copied there while this one's are computed."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int64

from pit.data.packing import Layout, batch_shapes
from pit.model.global_arrays import put_local
from pit.train.update import Arrays
from pit.types import LocalBatch, Topology

_MODEL_ARRAYS = ("token", "position", "visible_until", "previous", "loss_weight", "leaf")


def to_device(batch: LocalBatch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """Return the arrays of a batch that models and losses read, rows and trees split over the data shards."""
    return {name: put_local(getattr(batch.local, name), batch.shards, sharding) for name in _MODEL_ARRAYS}


def shapes_of(topology: Topology, layout: Layout, sharding: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what `to_device` makes of a batch with one group per shard of the mesh."""
    mesh = sharding.mesh
    shapes = batch_shapes(mesh.shape["data"] * mesh.shape["fsdp"], topology, layout)
    return {name: jax.ShapeDtypeStruct(*shapes[name], sharding=sharding) for name in _MODEL_ARRAYS}


class StepBatches(NamedTuple):
    """Microbatches of a step on the devices.

    examples: per microbatch, the row of the fold in each tree slot, -1 where it is empty. tokens: tokens that are not
    padding. slots: token slots, padding included. wait_s: seconds spent waiting for data.
    """

    arrays: Sequence[Arrays]
    examples: Sequence[Int64[np.ndarray, " G"]]
    tokens: int
    slots: int
    wait_s: float


@runtime_checkable
class StepLoader(Protocol):
    """Endless steps of microbatches, resumable at any of them by JSON values."""

    def __next__(self) -> list[LocalBatch]:
        """Return the microbatches of the next step."""

    def state(self) -> dict[str, Any]:
        """Return the state after the last step that was handed out."""

    def restore(self, state: dict[str, Any]) -> None:
        """Resume after a saved state."""

    def close(self) -> None:
        """Stop making steps ahead."""


class Feed(Iterator[StepBatches]):
    """Steps of a loader; the next one is on its way to the devices while one is used.

    Args:
        loader: maker of the batches; `state` is that of the last step that was handed out, not of the one under way.
        sharding: places of rows and trees.
    """

    def __init__(self, loader: StepLoader, sharding: NamedSharding) -> None:
        self._loader, self._sharding = loader, sharding
        self._state = loader.state()
        self._next: tuple[StepBatches, dict[str, Any]] | None = None

    def _fetch(self) -> tuple[StepBatches, dict[str, Any]]:
        begin = time.perf_counter()
        batches = next(self._loader)
        wait_s = time.perf_counter() - begin
        arrays = [to_device(batch, self._sharding) for batch in batches]
        tokens, slots = sum(batch.tokens for batch in batches), sum(batch.slots for batch in batches)
        step = StepBatches(arrays, [b.example_id for b in batches], tokens, slots, wait_s)
        return step, self._loader.state()

    def __next__(self) -> StepBatches:
        ready, self._state = self._next or self._fetch()
        self._next = self._fetch()
        return ready

    def state(self) -> dict[str, Any]:
        """Return the loader's state after the last step that was handed out."""
        return self._state
