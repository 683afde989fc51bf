"""The paper's curriculum: every example once per epoch, reference sources by weights that change with the step."""

import math
import threading
from collections.abc import Sequence

from pit.data import _core
from pit.data.curriculum.protocol import Draws, Feedback

_STATES = 1_024

Weights = tuple[int, int, int, int]
"""Integer weight of each `pit.types.Source`."""


def hand_over(before: Weights, after: Weights, first_step: int, steps: int) -> list[tuple[int, Weights]]:
    """Return the stages of a linear change from one set of source weights to another.

    Args:
        before: weights before `first_step`; at least one is positive.
        after: weights after the change; at least one is positive.
        first_step: first step of the change.
        steps: its length in steps; 0 or 1 changes at once.

    Example:
        >>> hand_over((0, 1, 0, 0), (0, 0, 0, 1), 4, 2)
        [(0, (0, 1, 0, 0)), (4, (0, 1, 0, 1)), (5, (0, 0, 0, 1))]
    """
    length, total_before, total_after = max(steps, 1), sum(before), sum(after)
    stages = [(0, before)] if first_step > 0 else []
    for i in range(1, length + 1):
        # Shares are mixed, so each side is brought to the same total first.
        kept, new = (length - i) * total_after, i * total_before
        none, worse, better, policy = (kept * b + new * a for b, a in zip(before, after, strict=True))
        common = math.gcd(none, worse, better, policy)
        stages.append((first_step + i - 1, (none // common, worse // common, better // common, policy // common)))
    return stages


class Staged:
    """Curriculum of uniform draws, with source weights by step.

    Args:
        stages: (first step, source weights), the first at step 0, increasing.
        seed: seed of the permutations, one per epoch.
        examples: number of examples.
    """

    lag = None

    def __init__(self, stages: Sequence[tuple[int, Weights]], *, seed: int, examples: int) -> None:
        self._core = _core.StagedCurriculum(seed, examples, [(step, list(weights)) for step, weights in stages])
        self._before: dict[int, bytes] = {}
        # One thread may draw ahead while another one reads the state.
        self._lock = threading.Lock()

    def draw(self, step: int, count: int, *, wait: bool = False) -> Draws:
        """See `Curriculum`."""
        with self._lock:
            self._before[step] = self._core.state()
            self._before.pop(step - _STATES, None)
            return Draws(step, *self._core.draw(step, count))

    def update(self, feedback: Feedback) -> None:
        """Ignore the feedback: it changes nothing here."""

    def state(self, step: int) -> bytes:
        """See `Curriculum`; available for the last 1,024 steps."""
        with self._lock:
            return self._before.get(step, self._core.state())

    def restore(self, state: bytes) -> None:
        """See `Curriculum`."""
        with self._lock:
            self._before.clear()
            self._core.restore(state)

    def close(self) -> None:
        """Do nothing: `draw` never waits."""
