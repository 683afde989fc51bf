"""Guard of an update: a refused step leaves its cause on disk, and too many in a row end the stage.

The update itself refuses a step (`pit.train.update`); the guard finds the tree whose loss or gradient is NaN or
infinite, by halving the batch until one is left.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Int64

from pit import processes
from pit.atomic import write_file
from pit.errors import PitError
from pit.losses.total import Total
from pit.model.global_arrays import put, whole
from pit.model.params import Params
from pit.train.update import REFUSED, Arrays, Sums, TrainState, Update

Examples = Sequence[Int64[np.ndarray, " G"]]


class DivergedError(PitError):
    """Too many steps in a row were refused; the stage ends with the weights of the last step that was not."""


class Piece(NamedTuple):
    """A tree, or the part of a split one, in a row: tokens `first` to `end` (exclusive)."""

    row: int
    first: int
    end: int


class _Step(NamedTuple):
    step: Int32[Array, ""]
    params: Params
    batches: Sequence[Arrays]
    examples: Examples
    refused: Array


class Guard:
    """A guarded update: `state, metrics = guard(state, microbatches, examples)`.

    Whether a step was refused is read when the next one begins, so that its batch is prepared while the devices are
    still at work.

    Args:
        update: the step.
        folder: folder of the stage; causes go to `refused/` in it.
        stage: name of the stage.
        limit: number of refused steps in a row that ends the stage.
        in_a_row: that number when the stage was last saved.
    """

    def __init__(self, update: Update, folder: Path, stage: str, *, limit: int, in_a_row: int = 0) -> None:
        self._update, self._folder, self._stage, self._limit = update, folder, stage, limit
        self._in_a_row = in_a_row
        self._last: _Step | None = None

    def __call__(
        self, state: TrainState, batches: Sequence[Arrays], examples: Examples
    ) -> tuple[TrainState, dict[str, Total]]:
        """Take a step; `examples` names the row of the fold in each tree slot of each microbatch.

        Raises:
            DivergedError: the step before it was the last that may be refused.
        """
        self.settle()
        state, metrics = self._update(state, batches)
        self._last = _Step(state.step, state.params, batches, examples, metrics[REFUSED].sum)
        return state, metrics

    def settle(self) -> None:
        """Count the last step if it was refused, and write its cause to disk; later calls do nothing.

        Raises:
            DivergedError: it was the last in a row that may be.
        """
        last, self._last = self._last, None
        if last is None:
            return
        if not float(last.refused):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        path = self._save_cause(last)
        if self._in_a_row >= self._limit:
            raise DivergedError(
                f"{self._stage}: loss or gradient of step {int(last.step)} is not finite, the last of "
                f"{self._in_a_row} in a row (optimizer.refusals = {self._limit}), and all were refused; the tree at "
                f"fault is in {path}: look at it and at the models that read it, lower optimizer.learning_rate, or "
                "raise optimizer.refusals"
            )

    def state(self) -> dict[str, int]:
        """Return the state of the guard for a checkpoint."""
        self.settle()
        return {"refused_in_a_row": self._in_a_row}

    def _save_cause(self, last: _Step) -> Path:
        number = int(last.step)
        path = self._folder / "refused" / f"step-{number:08d}.json"
        cause: dict[str, Any] = {"stage": self._stage, "step": number, "microbatch": None}
        for microbatch, (batch, ids) in enumerate(zip(last.batches, last.examples, strict=True)):
            sums = self._update.sums(last.params, batch)
            if not finite(sums):
                guilty = self._guilty(last.params, batch)
                arrays = whole({name: batch[name] for name in batch if np.ndim(batch[name])})
                slots = _slots_in(arrays["leaf"], guilty)
                cause |= {
                    "microbatch": microbatch,
                    "loss": str(float(sums.loss.sum)),
                    "gradients": [n for n, g in sums.grads.items() if not bool(jnp.all(jnp.isfinite(g)))],
                    "tree": [dict(zip(("row", "first", "end"), piece, strict=True)) for piece in guilty],
                    "tokens": [arrays["token"][p.row, p.first : p.end].tolist() for p in guilty],
                    # Trees without leaves (fine-tuning) do not say which slot they fill.
                    "examples": ids[slots].tolist() if slots.size else ids[ids >= 0].tolist(),
                    "of_tree": {
                        name: arrays[name][slots].tolist()
                        for name in ("advantage", "kl_coefficient", "length", "finished")
                        if name in arrays
                    },
                }
                break
        if processes.first():
            write_file(path, (json.dumps(cause, indent=1) + "\n").encode())
        return path

    def _guilty(self, params: Params, batch: Arrays) -> list[Piece]:
        """Return the first piece whose loss or gradient is not finite; several where only their sum is not."""
        group = pieces_of(batch)
        while len(group) > 1:
            half = len(group) // 2
            for part in (group[:half], group[half:]):
                if not finite(self._update.sums(params, only(batch, part))):
                    group = part
                    break
            else:
                return group
        return group


def finite(sums: Sums) -> bool:
    """Return whether the loss and every gradient are finite."""
    return all(bool(jnp.all(jnp.isfinite(x))) for x in (sums.loss.sum, *jax.tree.leaves(sums.grads)))


def pieces_of(batch: Mapping[str, Any]) -> list[Piece]:
    """Return the trees of a batch as they lie in its rows: each begins with a token at position 0.

    >>> import numpy as np
    >>> pieces_of({"position": np.array([[0, 1, 0, 1, 0]]), "visible_until": np.array([[2, 2, 4, 4, 0]])})
    [Piece(row=0, first=0, end=2), Piece(row=0, first=2, end=4)]
    """
    position, until = whole((batch["position"], batch["visible_until"]))
    alive = until > np.arange(until.shape[1])
    begins = np.argwhere(alive & (position == 0)).tolist()
    return [Piece(row, first, int(until[row, first])) for row, first in begins]


def only(batch: Arrays, pieces: Sequence[Piece]) -> dict[str, Array]:
    """Return the batch with these trees alone: the others' leaves are absent and their tokens carry no loss."""
    inside = _inside(batch["token"].shape, pieces)
    leaf, loss_weight = whole((batch["leaf"], batch["loss_weight"]))
    there = (leaf[..., 0] >= 0) & inside[leaf[..., 0], leaf[..., 1]]
    changed = {
        "leaf": np.where(there[..., None], leaf, np.int32(-1)),
        "loss_weight": np.where(inside, loss_weight, np.float32(0)),
    }
    return {**batch, **{name: put(value, batch[name].sharding) for name, value in changed.items()}}


def _inside(shape: tuple[int, ...], pieces: Sequence[Piece]) -> Bool[np.ndarray, "R T"]:
    inside = np.zeros(shape, bool)
    for piece in pieces:
        inside[piece.row, piece.first : piece.end] = True
    return inside


def _slots_in(leaf: np.ndarray, pieces: Sequence[Piece]) -> np.ndarray:
    """Return the tree slots with a leaf in one of the pieces."""
    return np.array(
        [
            slot
            for slot, leaves in enumerate(leaf.tolist())
            if any(p.row == row and p.first <= index < p.end for row, index in leaves for p in pieces)
        ],
        np.int64,
    )
