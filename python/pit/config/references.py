"""Sections of the references that an improver's RL stage reads: their sources, and the passes over them."""

from dataclasses import dataclass, field
from typing import Annotated

from pit.config.rules import LATER, UNSIGNED, Section


@dataclass(frozen=True)
class SourceWeights(Section):
    """Integer weights of the sources that references are drawn from.

    worse, better: the two answers of the data. policy: an answer of M_P^RL. own: such an answer after `passes` of the
    improver that the stage starts from; while its weight is 0, `passes` go over every answer of M_P^RL.
    """

    worse: Annotated[int, UNSIGNED] = 0
    better: Annotated[int, UNSIGNED] = 0
    policy: Annotated[int, UNSIGNED] = 0
    own: Annotated[int, UNSIGNED] = field(default=0, metadata=LATER)

    @property
    def total(self) -> int:
        """Sum of the weights."""
        return self.worse + self.better + self.written

    @property
    def written(self) -> int:
        """Weight of the answers that M_P^RL begins."""
        return self.policy + self.own

    @property
    def by_source(self) -> tuple[int, int, int, int]:
        """Weight of each `pit.types.Source`, in their order; none is drawn without a reference.

        Own answers are drawn as the policy's; which of these go through passes follows from seed and example.
        """
        return 0, self.worse, self.better, self.written


@dataclass(frozen=True)
class Passes(Section):
    """Number of passes, uniform from `least` to `most`.

    least, most: bounds, both included.
    threshold: gap over the answer before that a pass must exceed to be kept, as `improve.threshold` at inference, in
        the form of the stage's `gap`; None keeps every pass.
    """

    least: Annotated[int, UNSIGNED] = 0
    most: Annotated[int, UNSIGNED] = 0
    threshold: float | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"must be at most `most` = {self.most}"
        self._require(self.least <= self.most, "least", rule, f"set {{path}}={self.most}, or raise `most`")
        self._require(
            self.threshold is None or self.most > 0,
            "threshold",
            "has no effect without passes",
            "set `most` above 0, or {path}=none",
        )
