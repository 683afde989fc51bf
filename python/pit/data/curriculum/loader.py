"""Draws through Grain: made ahead of the training step, resumable at any step, cut to the share of a process."""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from pit.data.curriculum.words import Curriculum, CurriculumError, Draws, Feedback


class _Steps(grain.DatasetIterator[Draws]):
    """Grain's view of a curriculum; its state is the next step, the rest is the curriculum's own."""

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
    """The draws of step after step; every process makes all of them and trains on its own `share`.

    Args:
        curriculum: what draws.
        count: draws of a step, over all processes.
        prefetch: steps that are drawn ahead, at most lag - 1 where feedback counts.
        process_index, process_count: this process among those that share each step.

    Raises:
        CurriculumError: `prefetch` is too deep for the lag, or `count` cannot be shared.
    """

    def __init__(
        self, curriculum: Curriculum, count: int, *, prefetch: int = 0, process_index: int = 0, process_count: int = 1
    ) -> None:
        if curriculum.lag is not None and prefetch > curriculum.lag - 1:
            raise CurriculumError(
                f"prefetch = {prefetch}: must be at most lag - 1 = {curriculum.lag - 1}, as draws wait for "
                "feedback; lower it or raise the lag"
            )
        if count % process_count:
            raise CurriculumError(f"count = {count}: must be a multiple of the {process_count} processes; change it")
        self._curriculum, self._count, self._prefetch = curriculum, count, prefetch
        part = count // process_count
        self._part = slice(process_index * part, (process_index + 1) * part)
        self._step = 0
        self._iterator: Iterator[Draws] | None = None

    def _start(self) -> Iterator[Draws]:
        dataset: Any = _Dataset(self._curriculum, self._count, self._step, self._prefetch > 0)
        if self._prefetch:
            dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=self._prefetch)
        iterator: Iterator[Draws] = iter(dataset)
        return iterator

    def __next__(self) -> Draws:
        # Nothing is drawn before it is asked for, so that a state can be restored first.
        if self._iterator is None:
            self._iterator = self._start()
        draws = next(self._iterator)
        self._step = draws.step + 1
        return draws

    def share(self, draws: Draws) -> Draws:
        """The part of a step's draws that this process trains on."""
        return Draws(draws.step, draws.ids[self._part], draws.sources[self._part])

    def update(self, draws: Draws, gaps: np.ndarray) -> None:
        """Send back the centred gaps, float32 [draws, samples], of all of a step's draws."""
        self._curriculum.update(Feedback(draws, gaps))

    def state(self) -> bytes:
        """State after the last step that was handed out, its feedback included if it was sent."""
        return self._curriculum.state(self._step)

    def restore(self, state: bytes, step: int) -> None:
        """Go on with `step` from the state that was saved before it.

        Raises:
            CurriculumError: the loader was read already, so that steps may be drawn ahead.
        """
        if self._iterator is not None:
            raise CurriculumError("the loader was read before it was restored; restore a new one")
        self._curriculum.restore(state)
        self._step = step

    def close(self) -> None:
        """Stop drawing ahead."""
        self._curriculum.close()
