"""Types that all curricula share: draws, their feedback, and the interface that the RL loop uses."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pit.data.errors import DataError


class CurriculumError(DataError):
    """A curriculum, or a request to it, breaks a rule; the message gives name, value, rule and remedy."""


class Draws(NamedTuple):
    """The examples of one step.

    step: the step that trains on them.
    ids: rows of the fold.
    sources: `pit.types.Source` of each reference.
    """

    step: int
    ids: Int64[np.ndarray, " n"]
    sources: UInt8[np.ndarray, " n"]


class Feedback(NamedTuple):
    """Feedback of one step.

    draws: all draws of the step.
    gaps: centred gap of each sample over the reference of its draw; above 0, the sample is better.
    """

    draws: Draws
    gaps: Float32[np.ndarray, "n samples"]


@runtime_checkable
class Curriculum(Protocol):
    """Source of the draws of every step. Steps are drawn in order, and the feedback of each is sent once, in order."""

    @property
    def lag(self) -> int | None:
        """Delay of feedback: step s sees the feedback of all steps <= s - lag. None if feedback changes nothing."""

    def draw(self, step: int, count: int, *, wait: bool = False) -> Draws:
        """Return the draws of the next step.

        Args:
            step: the next step.
            count: number of draws.
            wait: block until the feedback that the step must see has arrived, instead of raising.

        Raises:
            CoreError: not the next step, or its feedback has not arrived.
        """

    def update(self, feedback: Feedback) -> None:
        """Accept the feedback of a drawn step.

        Raises:
            CoreError: a step that was skipped, sent twice or not drawn, or a gap that is not finite.
        """

    def state(self, step: int) -> bytes:
        """Return the state from which `restore` continues at `step`, as if no later step had been drawn."""

    def restore(self, state: bytes) -> None:
        """Continue from a state.

        Raises:
            CoreError: the state is damaged, or belongs to other settings or data.
        """

    def close(self) -> None:
        """Wake every thread that waits in `draw`; its call raises."""
