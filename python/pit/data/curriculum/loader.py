"""Loading of draws through Grain: prefetched, resumable at any step, and divided among processes."""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from pit.data.curriculum.protocol import Curriculum, CurriculumError, Draws, Feedback
from pit.data.prefetch import Prefetcher


class _Steps(grain.DatasetIterator[Draws]):
    """Grain iterator over the steps of a curriculum. Its state is the next step; the curriculum keeps the rest."""

    def __init__(self, curriculum: Curriculum, count: int, step: int, wait: bool) -> None:
        super().__init__()
        self._curriculum, self._count, self._step, self._wait = curriculum, count, step, wait

    def __next__(self) -> Draws:
        draws = self._curriculum.draw(self._step, self._count, wait=self._wait)
        self._step += 1
        return draws

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]


class _Dataset(grain.IterDataset[Draws]):
    def __init__(self, curriculum: Curriculum, count: int, step: int, wait: bool) -> None:
        super().__init__()
        self._arguments = (curriculum, count, step, wait)

    def __iter__(self) -> _Steps:
        return _Steps(*self._arguments)


class DrawLoader(Iterator[Draws]):
    """Iterator over the draws of step after step; every process makes all of them and trains on its own `share`.

    Close it, or use it as a context manager, to end its thread; otherwise that happens when it is collected or the
    process exits.

    Args:
        curriculum: source of the draws.
        count: draws per step, over all processes.
        prefetch: steps that are drawn ahead, at most lag - 1; 0 draws without a thread.
        process_index, process_count: this process, and the number of processes that share each step.

    Raises:
        CurriculumError: `prefetch` exceeds the lag, or the processes cannot share `count`.
    """

    def __init__(
        self, curriculum: Curriculum, count: int, *, prefetch: int = 0, process_index: int = 0, process_count: int = 1
    ) -> None:
        if curriculum.lag is not None and prefetch > curriculum.lag - 1:
            raise CurriculumError(
                f"prefetch = {prefetch}: must be at most lag - 1 = {curriculum.lag - 1}, as draws wait for "
                "feedback; lower prefetch or raise lag"
            )
        if count % process_count:
            raise CurriculumError(
                f"count = {count}: must be a multiple of the {process_count} processes; change count or the number of "
                "processes"
            )
        self._curriculum, self._count, self._prefetch = curriculum, count, prefetch
        part = count // process_count
        self._part = slice(process_index * part, (process_index + 1) * part)
        self._step = 0
        self._steps: _Steps | Prefetcher[Draws] | None = None
        self._closed = False

    def _start(self) -> "_Steps | Prefetcher[Draws]":
        dataset = _Dataset(self._curriculum, self._count, self._step, self._prefetch > 0)
        # The thread may wait in the curriculum for feedback, so closing wakes it first.
        return Prefetcher(dataset, self._prefetch, self._curriculum.close) if self._prefetch else iter(dataset)

    def __next__(self) -> Draws:
        if self._closed:
            raise CurriculumError("the loader is closed; make a new one and restore its state")
        # Nothing is drawn before the first request, so a state can be restored first.
        if self._steps is None:
            self._steps = self._start()
        draws = next(self._steps)
        self._step = draws.step + 1
        return draws

    def share(self, draws: Draws) -> Draws:
        """Return the part of a step's draws that this process trains on."""
        return Draws(draws.step, draws.ids[self._part], draws.sources[self._part])

    def update(self, draws: Draws, gaps: np.ndarray) -> None:
        """Send the centred gaps, float32 [draws, samples], of all draws of a step."""
        self._curriculum.update(Feedback(draws, gaps))

    def state(self) -> bytes:
        """Return the state after the last step that was handed out, with its feedback if it was sent."""
        return self._curriculum.state(self._step)

    def restore(self, state: bytes, step: int) -> None:
        """Continue with `step` from the state that was saved before it.

        Raises:
            CurriculumError: the loader was already read, so steps may have been drawn ahead.
        """
        if self._steps is not None:
            raise CurriculumError("the loader was read before it was restored; restore a new one")
        self._curriculum.restore(state)
        self._step = step

    def close(self) -> None:
        """Stop drawing ahead; the curriculum can then draw no more."""
        self._closed = True
        self._curriculum.close()
        if self._steps is not None:
            self._steps.close()

    def __enter__(self) -> "DrawLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
