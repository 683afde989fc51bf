"""Rewards of samples: R_P, the forms of the gap model, R_P's difference, and whatever else has the same signature.

The oracle of a synthetic task, a function of the user or another judge are rewards as well: adding one is a class with
this `__call__`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.config import GapForm, RewardForm
from pit.data.packing import Layout
from pit.data.tokens import Tokens
from pit.model.heads import RewardModel
from pit.model.model import Model
from pit.rollout.score import ModelScorer, Scorer
from pit.types import Batch


@runtime_checkable
class Reward(Protocol):
    """A score of N outputs of each input, float32 [G, N]; higher is better."""

    def __call__(
        self,
        inputs: Tokens,
        references: Tokens | None,
        outputs: Sequence[Tokens],
        packed: Sequence[Batch] | None = None,
    ) -> Float32[np.ndarray, "G N"]:
        """Return the scores.

        Args:
            inputs: contents of x.
            references: contents of the references; None where there are none.
            outputs: contents of the answers, `outputs[n][g]`.
            packed: the trees x -> [reference ->] outputs, packed; a reward that scores these very trees reads them.
        """


@dataclass(frozen=True)
class Quality:
    """r_P(x, y), whatever the reference is."""

    scorer: ModelScorer

    def __call__(
        self,
        inputs: Tokens,
        references: Tokens | None,
        outputs: Sequence[Tokens],
        packed: Sequence[Batch] | None = None,
    ) -> Float32[np.ndarray, "G N"]:
        """Return the scores; see `Reward`."""
        return self.scorer.quality(inputs, outputs, packed if references is None else None)


@dataclass(frozen=True)
class Gap:
    """A form of the gap of an output over its reference: raw, centred or symmetric."""

    scorer: Scorer
    form: GapForm

    def __call__(
        self,
        inputs: Tokens,
        references: Tokens | None,
        outputs: Sequence[Tokens],
        packed: Sequence[Batch] | None = None,
    ) -> Float32[np.ndarray, "G N"]:
        """Return the gaps; see `Reward`."""
        assert references is not None
        return self.scorer.gap(inputs, references, outputs, self.form, packed if self.form == "raw" else None)


@dataclass(frozen=True)
class Difference:
    """r_P(x, y) - r_P(x, y_ref): the ablation of the gap model."""

    scorer: ModelScorer

    def __call__(
        self,
        inputs: Tokens,
        references: Tokens | None,
        outputs: Sequence[Tokens],
        packed: Sequence[Batch] | None = None,
    ) -> Float32[np.ndarray, "G N"]:
        """Return the differences; see `Reward`."""
        assert references is not None
        return self.scorer.difference(inputs, references, outputs)


FORMS: dict[RewardForm, Callable[[ModelScorer], Reward]] = {
    "raw": lambda scorer: Gap(scorer, "raw"),
    "centred": lambda scorer: Gap(scorer, "centred"),
    "symmetric": lambda scorer: Gap(scorer, "symmetric"),
    "difference": Difference,
}
"""The reward of each form that `gap` of an improver's RL stage can name."""


def model_reward(model: Model[RewardModel], layout: Layout, form: RewardForm | None) -> Reward:
    """Return the reward that a reward model gives: R_P without a form, otherwise that form of the gap."""
    scorer = ModelScorer(model, layout)
    return Quality(scorer) if form is None else FORMS[form](scorer)
