"""A curriculum that learns: a strategy computes weights from the gaps, and the C++ core draws by weight."""

import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int64

from pit.data import _core
from pit.data.curriculum.protocol import CurriculumError, Draws, Feedback
from pit.data.curriculum.strategies import EntryStats, Strategy

UNIT = 2**20
"""Integer weight of an entry whose strategy and source both give weight 1."""
_BLOCK = 1 << 20
"""Entries whose weights are computed at once; bounds the memory."""


class Adaptive:
    """Curriculum of weighted draws of (example, reference source) entries, by the statistics of each.

    An entry's weight is that of its strategy times the share of its source. Two threads may call it, one that draws
    ahead and one that sends feedback.

    Ten settings: each decides the draws, and the last three guard a restored state.

    Args:
        strategy: rule that weights entries.
        shares: weight of each `pit.types.Source`; a source of weight 0 is never drawn.
        examples: number of examples.
        steps: length of the run; a strategy may depend on the progress.
        lag: step s sees the feedback of all steps <= s - lag.
        memory: trials of an entry at which its counts are halved.
        difficulty: rank of each example from the easiest (0) to the hardest (1); None if unknown.
        seed, config_hash, data_hash: 64-bit numbers; `restore` raises for a state with others.

    Raises:
        CurriculumError: no source has a positive share, or `difficulty` has another length than `examples`.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        shares: tuple[int, int, int, int],
        examples: int,
        steps: int,
        lag: int,
        memory: int,
        difficulty: Float32[np.ndarray, " examples"] | None,
        seed: int,
        config_hash: int,
        data_hash: int,
    ) -> None:
        sources = [source for source, share in enumerate(shares) if share > 0]
        if not sources:
            raise CurriculumError(f"shares = {shares}: no source can be drawn; give a source a positive weight")
        if difficulty is not None and difficulty.shape != (examples,):
            raise CurriculumError(
                f"difficulty has shape {difficulty.shape}; give one rank for each of {examples} examples"
            )
        self.lag: int = lag
        self._strategy, self._steps = strategy, steps
        self._share = np.array([shares[source] / max(shares) for source in sources])
        self._difficulty = np.full(examples, 0.5, np.float32) if difficulty is None else difficulty
        self._core = _core.FeedbackCurriculum(
            seed=seed,
            examples=examples,
            sources=sources,
            lag=lag,
            memory=memory,
            config_hash=config_hash,
            data_hash=data_hash,
        )
        self._notes: dict[int, tuple[float, ...]] = {}
        self._weighted = False
        self._closed = False
        self._arrived = threading.Condition()

    def draw(self, step: int, count: int, *, wait: bool = False) -> Draws:
        """See `Curriculum`."""
        with self._arrived:
            if step != self._core.step:
                raise CurriculumError(f"step = {step}: step {self._core.step} is next; draw steps in order")
            while wait and self._core.update_step < step - self.lag + 1 and not self._closed:
                self._arrived.wait()
            if self._closed:
                raise CurriculumError("the curriculum is closed; make a new one and restore its state")
            changed = self._core.advance()
            self._reweigh(step, changed)
            return Draws(step, *self._core.draw(count))

    def update(self, feedback: Feedback) -> None:
        """See `Curriculum`."""
        draws, gaps = feedback
        n, samples = gaps.shape
        # Numbered over the whole step, because an entry may be drawn twice.
        sample = np.arange(n * samples, dtype=np.int32)
        with self._arrived:
            self._core.update(
                draws.step,
                np.repeat(draws.ids, samples),
                np.repeat(draws.sources, samples),
                sample,
                np.ascontiguousarray(gaps, np.float32).reshape(-1),
            )
            self._arrived.notify_all()

    def state(self, step: int) -> bytes:
        """See `Curriculum`; available for the last `lag` steps."""
        with self._arrived:
            return self._core.state(step, self._notes.get(step - 1, ()))

    def restore(self, state: bytes) -> None:
        """See `Curriculum`."""
        with self._arrived:
            notes = tuple(self._core.restore(state))
            self._notes = {self._core.step - 1: notes}
            self._weighted = False

    def close(self) -> None:
        """See `Curriculum`."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    def stats(self) -> EntryStats:
        """Return the statistics of all entries."""
        with self._arrived:
            return self._stats(None)

    def _phase(self, step: int) -> int:
        return step * self._strategy.phases // self._steps

    def _reweigh(self, step: int, changed: Int64[np.ndarray, " n"]) -> None:
        """Update the weights of the changed entries, or of all entries when a new phase begins."""
        if step == 0 or self._phase(step) != self._phase(step - 1):
            notes = tuple(self._strategy.notes(self._stats(None), min(step / self._steps, 1.0)))
            self._weighted = False
        else:
            notes = self._notes[step - 1]
        self._notes[step] = notes
        self._notes.pop(step - self.lag - 1, None)
        if self._weighted:
            self._core.set_weights(changed, self._weights(changed, notes))
        else:
            blocks = [self._weights(entries, notes) for entries in self._blocks()]
            self._core.assign_weights(np.concatenate(blocks))
            self._weighted = True

    def _blocks(self) -> Iterator[Int64[np.ndarray, " n"]]:
        for first in range(0, self._core.entries, _BLOCK):
            yield np.arange(first, min(first + _BLOCK, self._core.entries), dtype=np.int64)

    def _stats(self, entries: Int64[np.ndarray, " n"] | None) -> EntryStats:
        width = len(self._share)
        difficulty = np.repeat(self._difficulty, width) if entries is None else self._difficulty[entries // width]
        return EntryStats(*self._core.stats(entries), difficulty)

    def _weights(self, entries: Int64[np.ndarray, " n"], notes: tuple[float, ...]) -> np.ndarray:
        weight = self._strategy.weights(self._stats(entries), notes) * self._share[entries % len(self._share)]
        if weight.size and not (weight.min() >= 0.0 and weight.max() <= 1.0):
            raise CurriculumError(
                f"{self._strategy}: weights from {weight.min()} to {weight.max()} must lie in [0, 1]; correct its "
                "weights method"
            )
        rounded: np.ndarray = np.rint(weight * UNIT).astype(np.uint32)
        return rounded
