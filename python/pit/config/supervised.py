"""Sections of the supervised stages: fine-tuning, offline rivals, reward models, their refreshment by own samples."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pit.config.adapter import AdapterConfig
from pit.config.rules import COUNT, LATER, POSITIVE, SHARE, UNSIGNED, Range, Section
from pit.config.sections import OptimizerConfig, PackingConfig, RolloutConfig

OrderedPairs = Literal["five", "one", "antisymmetric"]


@dataclass(frozen=True)
class SupervisedConfig(Section):
    """Fields of every supervised stage.

    steps: optimizer steps; None means one pass over the fold, counted by planning it.
    evaluate_every, checkpoint_every: interval in steps; 0 means only at the end.
    evaluate_trees: most held-out trees of an evaluation.
    keep: number of checkpoints kept.
    adapter: adapters to train on the run's base; None trains all weights.
    """

    steps: Annotated[int | None, COUNT] = None
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate_every: Annotated[int, UNSIGNED] = 200
    evaluate_trees: Annotated[int, COUNT] = 512
    checkpoint_every: Annotated[int, UNSIGNED] = 200
    keep: Annotated[int, COUNT] = 2
    adapter: AdapterConfig | None = None


@dataclass(frozen=True)
class SftConfig(SupervisedConfig):
    """Fine-tuning of the policy, from the pretrained model that `base.path` names, or from random weights."""


@dataclass(frozen=True)
class ImproverSftConfig(SupervisedConfig):
    """Fine-tuning of the improver.

    init: where it starts: the run's "base" (the pretrained model, or random weights), or the fine-tuned "policy".
    """

    init: Literal["base", "policy"] = "base"


@dataclass(frozen=True)
class OfflineConfig(SupervisedConfig):
    """Training of a decoder on labelled pairs alone: no reward model, no samples. Its anchor is where it starts.

    beta: unit of the log-ratio of decoder and anchor, per nat; the larger, the nearer the decoder stays to the anchor.
    """

    beta: Annotated[float, POSITIVE] = 0.1


@dataclass(frozen=True)
class RewardConfig(SupervisedConfig):
    """Training of a reward model of single answers: R_P, or the judge.

    init: where it starts, with a fresh head: the run's "base" (the pretrained model, or random weights), or the
        fine-tuned "policy", which must have its shape.
    """

    init: Literal["base", "policy"] = "base"


@dataclass(frozen=True)
class GapConfig(SupervisedConfig):
    """Training of the gap model, R_PIT.

    init: where it starts: the run's "base" (the pretrained model, or random weights) or the fine-tuned "policy", both
        with a fresh head, or R_P ("quality").
    ordered_pairs: pairs that the loss ranks, of the four orders of a preference: the paper's "five", or "one",
        (w,l) > (l,w); or "antisymmetric", which trains the symmetric gap itself as the log-odds of the label.
    """

    init: Literal["base", "policy", "quality"] = "base"
    ordered_pairs: OrderedPairs = "five"


@dataclass(frozen=True)
class RefreshConfig(SupervisedConfig):
    """Further training of R_P and R_PIT on labelled samples of the models, between RL,0 and RL,1.

    prompts: prompts of the rl fold that are answered, two pairs each; 0: no reward model is refreshed, but for `path`.
    path: file of preferences between answers of the policy and the improver, labelled by whoever knows, in the place of
        sampling and labelling; None: no file.
    temperature: temperature of the answers; at 0 they are greedy, and two answers of the policy are the same.
    pairs: pairs per step, of the data and new ones together.
    data_share: share of the data among them.
    held_out_every: hold out every n-th new pair, to measure by (`eval/`).
    rollout: how answers are sampled.
    """

    steps: Annotated[int, COUNT] = 100
    prompts: Annotated[int, UNSIGNED] = 0
    temperature: Annotated[float, UNSIGNED] = 1.0
    pairs: Annotated[int, COUNT] = 32
    data_share: Annotated[float, SHARE] = 0.5
    held_out_every: Annotated[int, Range(low=2.0)] = 10
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    path: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.path is None or self.prompts == 0,
            "path",
            f"takes the place of sampling, and prompts = {self.prompts} asks for samples",
            "set prompts=0, or {path}=none",
        )

    @property
    def asked(self) -> bool:
        """Whether the reward models are refreshed."""
        return self.prompts > 0 or self.path is not None
