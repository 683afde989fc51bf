"""Config section of inference: how many answers are made for a prompt, from what, and which of them is kept."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pit.config.rules import COUNT, FINITE, LATER, UNSIGNED, Section
from pit.config.sections import KEPT, GapForm, RolloutConfig

AcceptBy = Literal["gap_model", "likelihood"]
"""Model whose gap decides whether a candidate replaces the answer."""

Rank = Literal["quality", "gap", "both"]
"""Order of several answers: by R_P, by a round-robin of symmetric gaps, or by the sum of both, each standardised."""

Select = Literal["kept", "all"]
"""Answers among which the last choice is made: those that chains have kept, or all that were made."""

Chains = Literal["best", "each"]
"""Answers that passes begin with: the best draw, or every draw."""

Accept = Literal["threshold", "calibrated"]
"""Rule that replaces an answer: by its gap, or by the probability of being better that was fitted to it."""


@dataclass(frozen=True)
class ImproveConfig(Section):
    """Improvement at inference, a small search: draws of the policy, passes of the improver over them, and a choice.

    With the defaults it is the paper's Algorithm 2 with an acceptance rule added: one draw, a chain of passes.

    iterations: number of improver passes.
    temperature: temperature of y0 and of every pass; 0 is greedy.
    top_k, top_p, min_p: filters of unlikely tokens, if given (see `pit.rollout.strategy`).
    accept_by: the gap that decides: of the gap model, or the log-likelihood gap, in nats, of the fine-tuned improver,
        which can look where a reward model has not learned to.
    gap: form of that gap.
    threshold: a candidate replaces the answer only if its gap over the answer exceeds this.
    batch: prompts per batch.
    rollout: how answers are decoded.
    draws: answers of the policy per prompt; the best of them is improved, or every one (`chains`).
    width: candidates that a pass makes of an answer, of which the best is taken.
    chains: answers that passes begin with: "best" draw, or "each" draw.
    rank: order of several answers: "quality" is R_P, "gap" a round-robin of symmetric gaps, "both" the sum of the two,
        each standardised over the answers to a prompt.
    select: answers among which the last choice is made: "kept" by the chains, or "all" that were made.
    accept: rule that replaces an answer: "threshold" of the gap, or the "calibrated" probability of being better.
    restart: number of refused passes in a row after which the candidates of a chain are new draws of the policy, until
        one is accepted; 0: all are, which resamples and never improves; none: never.
    """

    iterations: Annotated[int, UNSIGNED] = 3
    temperature: Annotated[float, UNSIGNED] = 1.0
    top_k: Annotated[int | None, COUNT] = None
    top_p: Annotated[float | None, KEPT] = None
    min_p: Annotated[float | None, KEPT] = None
    accept_by: AcceptBy = "gap_model"
    gap: GapForm = "centred"
    threshold: Annotated[float, FINITE] = 0.0
    batch: Annotated[int, COUNT] = 128
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    draws: Annotated[int, COUNT] = field(default=1, metadata=LATER)
    width: Annotated[int, COUNT] = field(default=1, metadata=LATER)
    chains: Chains = field(default="best", metadata=LATER)
    rank: Rank = field(default="both", metadata=LATER)
    select: Select = field(default="kept", metadata=LATER)
    accept: Accept = field(default="threshold", metadata=LATER)
    restart: Annotated[int | None, UNSIGNED] = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.gap != "raw", "gap", "must not be raw, because a raw gap has no zero", "set it to centred or symmetric"
        )
        self._require(
            self.iterations > 0 or self.draws > 1,
            "iterations",
            "leaves the answer as it is with draws = 1",
            "set {path} to 1 or more, or draws to 2 or more",
        )

    @property
    def roots(self) -> int:
        """Number of chains of passes."""
        return self.draws if self.chains == "each" else 1

    @property
    def answers(self) -> int:
        """Number of answers that are made for a prompt, y0 included."""
        return self.draws + self.iterations * self.roots * self.width

    @property
    def rounds(self) -> int:
        """Number of times that the answer may change: among the draws where there are several, and in every pass."""
        return (self.draws > 1) + self.iterations

    @property
    def ranks(self) -> bool:
        """Whether several answers are ranked, instead of one being kept or replaced."""
        return self.draws > 1 or self.select == "all"

    @property
    def weighs_quality(self) -> bool:
        """Whether R_P takes part in a choice."""
        return self.accept == "calibrated" or (self.ranks and self.rank != "gap")

    def chain(self) -> "ImproveConfig":
        """Return the plain chain of this config: one draw, one candidate per pass, accepted by the threshold."""
        plain: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self) if f.name in SEARCH}
        return dataclasses.replace(self, **plain, iterations=max(1, self.iterations))


SEARCH = ("draws", "width", "chains", "rank", "select", "accept", "restart")
"""Fields of `ImproveConfig` that make a search of the plain chain."""

SPLIT = ("iterations", *SEARCH)
"""Fields of it that say how a budget is spent."""
