"""Rewards of samples: R_P, the forms of the gap model, R_P's difference, a function of the user, weighted sums.

Whatever has the same signature is a reward as well: adding one is a class with this `__call__`. A judge behind an API
is none: it compares texts after training (`pit.evaluate.llm_judge`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.config import GapForm, RewardForm, RewardMix
from pit.data.packing import Layout
from pit.data.template import Template, rollout
from pit.model.heads import RewardModel
from pit.model.model import Model
from pit.model.programs import Program
from pit.rl.function import FunctionReward, load
from pit.rl.records import Answers
from pit.rl.signals import agreement
from pit.rollout.score import ModelScorer, Scorer, gap_tree
from pit.types import Topology


@runtime_checkable
class Reward(Protocol):
    """A score of N answers to each of G inputs; higher is better."""

    def __call__(self, answers: Answers) -> Float32[np.ndarray, "G N"]:
        """Return the scores."""


@dataclass(frozen=True)
class Quality:
    """r_P(x, y), whatever the reference is."""

    scorer: ModelScorer

    def __call__(self, answers: Answers) -> Float32[np.ndarray, "G N"]:
        """Return the scores; see `Reward`."""
        # Trees with a reference hold other paths than x -> y.
        packed = answers.packed if answers.references is None else None
        return self.scorer.quality(answers.inputs, answers.outputs, packed)


@dataclass(frozen=True)
class Gap:
    """A form of the gap of an output over its reference: raw, centred or symmetric."""

    scorer: Scorer
    form: GapForm

    def __call__(self, answers: Answers) -> Float32[np.ndarray, "G N"]:
        """Return the gaps; see `Reward`."""
        assert answers.references is not None
        # The other forms read paths that the trees of a rollout do not hold.
        packed = answers.packed if self.form == "raw" else None
        return self.scorer.gap(answers.inputs, answers.references, answers.outputs, self.form, packed)


@dataclass(frozen=True)
class Difference:
    """r_P(x, y) - r_P(x, y_ref): the ablation of the gap model."""

    scorer: ModelScorer

    def __call__(self, answers: Answers) -> Float32[np.ndarray, "G N"]:
        """Return the differences; see `Reward`."""
        assert answers.references is not None
        return self.scorer.difference(answers.inputs, answers.references, answers.outputs)


@dataclass(frozen=True)
class Scaled:
    """A reward in another unit: its scores times a factor."""

    reward: Reward
    factor: float

    def __call__(self, answers: Answers) -> Float32[np.ndarray, "G N"]:
        """Return the scores; see `Reward`."""
        return self.reward(answers) * np.float32(self.factor)


def scored_tree(samples: int, form: RewardForm | None) -> Topology:
    """Return the tree in which a reward model scores the samples of a prompt; `form` is None for R_P's quality."""
    if form is None or form == "difference":
        return rollout(samples + (form is not None), with_reference=False)
    return gap_tree(samples, form)[0]


MODEL, FUNCTION = "model", "function"
"""Names of the parts of a sum."""


@dataclass(frozen=True)
class Sum:
    """A weighted sum of rewards: parts by name, each with its weight."""

    parts: Mapping[str, tuple[float, Reward]]

    def __call__(self, answers: Answers) -> Float32[np.ndarray, "G N"]:
        """Return the scores; see `Reward`."""
        return self.total(self.of_parts(answers))

    def of_parts(self, answers: Answers) -> dict[str, Float32[np.ndarray, "G N"]]:
        """Return the scores of each part, not weighted."""
        return {name: part(answers) for name, (_, part) in self.parts.items()}

    def total(self, scores: Mapping[str, Float32[np.ndarray, "G N"]]) -> Float32[np.ndarray, "G N"]:
        """Return the weighted sum of the scores of the parts."""
        weighted = [np.float32(weight) * scores[name] for name, (weight, _) in self.parts.items()]
        return sum(weighted[1:], start=weighted[0])

    def metrics(self, scores: Mapping[str, Float32[np.ndarray, "G N"]]) -> dict[str, float]:
        """Return mean and spread of the parts, and how often model and function rank two samples of a prompt alike."""
        values = {f"rewards/{name}": float(part.mean()) for name, part in scores.items()}
        values |= {f"rewards/{name}_std": float(part.std(axis=1).mean()) for name, part in scores.items()}
        if {MODEL, FUNCTION} <= scores.keys():
            alike = agreement(scores[MODEL], scores[FUNCTION].astype(np.float64))
            values |= {} if alike is None else {"rewards/agreement": alike}
        return values


FORMS: dict[RewardForm, Callable[[ModelScorer], Reward]] = {
    "raw": lambda scorer: Gap(scorer, "raw"),
    "centred": lambda scorer: Gap(scorer, "centred"),
    "symmetric": lambda scorer: Gap(scorer, "symmetric"),
    "difference": Difference,
}
"""The reward of each form that `gap` of an improver's RL stage can name."""


def model_programs(model: Model[RewardModel], layout: Layout, form: RewardForm | None, samples: int) -> list[Program]:
    """Return the programs of `model_reward`, for trees of so many samples; the model's weights are shapes."""
    return [ModelScorer(model, layout).program(scored_tree(samples, form))]


def model_reward(model: Model[RewardModel], layout: Layout, form: RewardForm | None) -> Reward:
    """Return the reward that a reward model gives: R_P without a form, otherwise that form of the gap."""
    scorer = ModelScorer(model, layout)
    return Quality(scorer) if form is None else FORMS[form](scorer)


# Six parameters: weights, and what the model and the function need.
def mixed(
    config: RewardMix,
    template: Template,
    layout: Layout,
    model: Model[RewardModel] | None,
    form: RewardForm | None,
    scale: float | None = None,
) -> Reward:
    """Return the reward of an RL stage: the reward model, a function, or their weighted sum.

    Args:
        config: the function, and the weights.
        template: layout of texts as tokens, from which the function gets its texts.
        layout: shape of the rows that the reward model reads.
        model: the reward model; None where its weight is 0.
        form: form of the gap; None for R_P.
        scale: factor of the model's scores; None leaves them as they are.

    Raises:
        FunctionError: the function cannot be found or imported.
    """
    parts: dict[str, tuple[float, Reward]] = {}
    if model is not None:
        scored = model_reward(model, layout, form)
        scored = scored if scale is None else Scaled(scored, scale)
        if replace(config, scale="none") == RewardMix():
            return scored
        parts[MODEL] = config.model_weight, scored
    if config.function is not None:
        parts[FUNCTION] = config.function_weight, FunctionReward(config.function, load(config.function), template)
    return Sum(parts)


def score(reward: Reward, answers: Answers) -> tuple[Float32[np.ndarray, "G N"], dict[str, float]]:
    """Return the scores of a reward, and metrics of its parts where it is a sum."""
    if not isinstance(reward, Sum):
        return reward(answers), {}
    parts = reward.of_parts(answers)
    return reward.total(parts), reward.metrics(parts)
