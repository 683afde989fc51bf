"""What every curriculum speaks of: draws, the gaps that come back, and the face that the RL loop sees."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pit.data.errors import DataError


class CurriculumError(DataError):
    """A curriculum that was asked for what it cannot do."""


class Draws(NamedTuple):
    """What one step trains on. ids: rows of the fold; sources: `pit.types.Source` of each reference."""

    step: int
    ids: Int64[np.ndarray, " n"]
    sources: UInt8[np.ndarray, " n"]


class Feedback(NamedTuple):
    """Centred gaps of the samples of each draw of a step over its reference; above 0, the sample beat it."""

    draws: Draws
    gaps: Float32[np.ndarray, "n samples"]


@runtime_checkable
class Curriculum(Protocol):
    """Steps are drawn one after another; the feedback of each is sent once, after it was drawn."""

    @property
    def lag(self) -> int | None:
        """Step s sees the feedback of all steps <= s - lag; None where feedback changes nothing."""

    def draw(self, step: int, count: int, *, wait: bool = False) -> Draws:
        """The draws of the next step.

        Args:
            step: it must be the next one.
            count: how many.
            wait: block until the feedback that the step must see has arrived, instead of refusing.

        Raises:
            CoreError: not the next step, or its feedback has not arrived.
        """

    def update(self, feedback: Feedback) -> None:
        """Take the gaps of a drawn step.

        Raises:
            CoreError: a step skipped, sent twice or not drawn, or a gap that is not finite.
        """

    def state(self, step: int) -> bytes:
        """What `restore` needs to go on from `step` as if nothing had been drawn after it."""

    def restore(self, state: bytes) -> None:
        """Go on from a state.

        Raises:
            CoreError: damaged, or of other settings or data.
        """

    def close(self) -> None:
        """Wake and refuse whoever waits in `draw`."""
