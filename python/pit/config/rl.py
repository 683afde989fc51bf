"""Sections of the RL stages: what they draw, what they reward, and how they stay near their anchor."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pit.config.adapter import AdapterConfig
from pit.config.references import Passes, SourceWeights
from pit.config.rules import COUNT, FINITE, LATER, POSITIVE, SHARE, UNSIGNED, FieldError, Range, Section
from pit.config.sections import OptimizerConfig, PackingConfig, RolloutConfig

RewardForm = Literal["raw", "centred", "symmetric", "difference"]
KlEstimator = Literal["k1", "k2", "k3", "full"]
KlPlace = Literal["reward", "loss"]
RatioLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class DrawConfig(Section):
    """Draws of an RL stage: every example once per epoch.

    examples: number of examples of the fold that are used, the first ones; None means all.
    """

    examples: Annotated[int | None, COUNT] = None


@dataclass(frozen=True)
class CurriculumConfig(DrawConfig):
    """Order in which an RL stage of the improver draws its examples.

    strategy: "uniform", every example once per epoch; "staged", the same with a hand-over of reference sources;
        "learnability", first the examples that are neither always won nor always lost; "gap_band", examples in a band
        of gaps that moves from easy to hard.
    sources_after, handover_step, handover_steps: "staged": weights after the hand-over, the step at which it begins,
        and its length in steps (0: sharp).
    difficulty: prior difficulty of an example: tokens of its tree ("length"), edit similarity of its two answers
        ("edit"), margin between them by the reward model ("margin"), or a column of the data ("column",
        `data.difficulty_column`).
    lag: step s learns from the gaps of the steps up to s - lag; prefetch: steps drawn ahead, at most lag - 1.
    memory: trials of an entry at which its counts are halved, so that old ones fade.
    floor: share of the highest weight that every entry keeps.
    explore: "learnability": bonus of entries that were never tried.
    band_start, band_end, band_width: "gap_band": middle of the band at the first and at the last step, and its width,
        as ranks among the gaps seen (1: won most often).
    """

    strategy: Literal["uniform", "staged", "learnability", "gap_band"] = "uniform"
    sources_after: SourceWeights = field(default_factory=SourceWeights)
    handover_step: Annotated[int, UNSIGNED] = 0
    handover_steps: Annotated[int, UNSIGNED] = 0
    difficulty: Literal["none", "length", "edit", "margin", "column"] = "none"
    lag: Annotated[int, COUNT] = 1
    prefetch: Annotated[int, UNSIGNED] = 0
    memory: Annotated[int, Range(low=2.0, high=65_535.0)] = 32
    floor: Annotated[float, SHARE] = 0.05
    explore: Annotated[float, UNSIGNED] = 0.25
    band_start: Annotated[float, SHARE] = 0.8
    band_end: Annotated[float, SHARE] = 0.2
    band_width: Annotated[float, Range(low=0.0, high=1.0, open_low=True)] = 0.4

    @property
    def adaptive(self) -> bool:
        """Whether draws depend on the gaps seen in training."""
        return self.strategy in ("learnability", "gap_band")

    def __post_init__(self) -> None:
        super().__post_init__()
        handed_over = self.sources_after.total > 0
        self._require(
            handed_over == (self.strategy == "staged"),
            "strategy",
            "needs a positive weight in sources_after if it is staged, and none otherwise",
            "set {path} together with sources_after.policy (or .worse, .better)",
        )
        self._require(
            not self.adaptive or self.prefetch <= self.lag - 1,
            "prefetch",
            f"must be at most lag - 1 = {self.lag - 1}, because draws wait for feedback",
            f"set it to {self.lag - 1}, or raise the lag",
        )
        self._require(
            self.adaptive or self.difficulty == "none",
            "difficulty",
            f"has no effect with strategy {self.strategy}",
            "set {path}=none, or the strategy to learnability or gap_band",
        )


@dataclass(frozen=True)
class KlConfig(Section):
    """Estimate, place and control of the KL to the anchor; docs/concepts/rl.md lists the gradient of each choice.

    estimator: from the sampled token ("k1", "k2", "k3") or over the whole vocabulary ("full").
    place: charged in the "reward" of a sample, before leave-one-out, or in the "loss", token by token.
    target: KL per sample, nats, that an adaptive coefficient holds; None keeps the coefficient at beta.
    gain: gain of the adaptive coefficient, which changes by at most a fifth of it per step.
    """

    estimator: KlEstimator = "k1"
    place: KlPlace = "reward"
    target: Annotated[float | None, POSITIVE] = None
    gain: Annotated[float, Range(low=0.0, high=1.0, open_low=True)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.target is None or self.estimator != "k2",
            "target",
            "needs an estimate of the KL, and the expectation of k2 is another quantity",
            "set the estimator to k1, k3 or full, or {path}=none",
        )


@dataclass(frozen=True)
class ClipConfig(Section):
    """Several updates per rollout, by `algorithm=clipped`; docs/concepts/rl.md has the objective.

    epochs: passes over the samples of a rollout.
    minibatches: optimizer steps per epoch, each on as many trees as every other.
    ratio: probability that is compared with that of the rollout: of each "token", or of the whole answer ("sequence").
    low, high: the ratio is clipped to [1 - low, 1 + high].
    kl_limit: KL of the rollout's policy to the current one, nats per answer; no update of a rollout follows one that
        measured more. None: no limit.
    """

    epochs: Annotated[int, COUNT] = 2
    minibatches: Annotated[int, COUNT] = 2
    ratio: RatioLevel = "token"
    low: Annotated[float, Range(low=0.0, high=1.0, open_low=True, open_high=True)] = 0.2
    high: Annotated[float, POSITIVE] = 0.2
    kl_limit: Annotated[float | None, POSITIVE] = 0.5


@dataclass(frozen=True)
class RewardMix(Section):
    """Reward of an RL stage: model_weight x score of the reward model + function_weight x score of a function.

    function: a Python function of your own, MODULE:NAME or FILE.py:NAME (docs/guides/your-own-reward.md).
    model_weight: weight of the reward model's score; 0 leaves the model out, and the stage then needs none.
    function_weight: weight of the function's score.
    scale: unit of the reward model's score: its own ("none"), or log-odds ("log_odds"): the score is multiplied by the
        slope of a logistic regression on pairs of the rl fold, which no reward model is trained on.
    """

    function: str | None = None
    model_weight: Annotated[float, UNSIGNED] = 1.0
    function_weight: Annotated[float, FINITE] = 1.0
    scale: Literal["none", "log_odds"] = field(default="none", metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.function is None or re.fullmatch(r"[^:]+:[^\W\d]\w*", self.function) is not None,
            "function",
            "must name a module or a file, and a function in it",
            "for example {path}=my_rewards:score or {path}=/home/me/rewards.py:score",
        )
        self._require(
            self.model_weight > 0 or self.function is not None,
            "model_weight",
            "must be > 0 without a function, because nothing else is rewarded",
            "set it to 1, or name a function",
        )
        self._require(
            self.function_weight != 0 or self.function is None,
            "function_weight",
            "must not be 0 with a function, which would count for nothing",
            "set it to 1, or the function to none",
        )
        self._require(
            self.scale == "none" or self.model_weight > 0,
            "scale",
            "scales the reward model's score, and model_weight = 0 leaves that model out",
            "set {path}=none, or model_weight above 0",
        )


@dataclass(frozen=True)
class RlConfig(Section):
    """Fields of every RL stage.

    algorithm: name of the policy-gradient algorithm, one of `pit.rl.algorithms.ALGORITHMS`.
    steps: rollouts of the stage, an update each; `algorithm=clipped` makes several.
    prompts, samples: trees per step, and samples per tree.
    beta: KL coefficient, score per nat (the paper leaves it open); the first one where kl.target makes it adaptive.
    kl: how the KL is estimated and charged.
    entropy: bonus per nat of the entropy of the answer, in units of the score.
    temperature: temperature of sampling, and of every log-prob and KL in the loss.
    running_scale: divide scores by the standard deviation of all scores so far.
    normalise: divide advantages by their standard deviation over the step.
    no_eos_penalty: subtracted from the reward of a sample that did not end.
    length_cost, length_free: cost per token beyond the free ones, in units of the score.
    curriculum: which prompts come when.
    anchor: model of the KL term: the fine-tuned model ("sft"), or the checkpoint that the stage starts from ("init").
    rollout: how samples are decoded.
    evaluate_every: interval, in steps, of metrics of held-out prompts (`eval/`); 0: only at the end.
    evaluate_prompts: number of these prompts.
    checkpoint_every: interval, in steps, of checkpoints; 0: only at the end.
    keep: number of checkpoints that are kept.
    reward: weights of the reward model and of a function of your own.
    clip: updates per rollout of `algorithm=clipped`.
    adapter: adapters to train on the run's base, those of the stage that it starts from; None trains all weights.
    """

    algorithm: str = "rloo"
    steps: Annotated[int, COUNT] = 75
    prompts: Annotated[int, COUNT] = 32
    samples: Annotated[int, Range(low=2.0)] = 4
    beta: Annotated[float, UNSIGNED] = 0.4
    kl: KlConfig = field(default_factory=KlConfig)
    entropy: Annotated[float, UNSIGNED] = 0.0
    temperature: Annotated[float, POSITIVE] = 1.0
    running_scale: bool = False
    normalise: bool = True
    no_eos_penalty: Annotated[float, UNSIGNED] = 1.0
    length_cost: Annotated[float, UNSIGNED] = 0.0
    length_free: Annotated[int, UNSIGNED] = 0
    curriculum: DrawConfig = field(default_factory=DrawConfig)
    anchor: Literal["sft", "init"] = "sft"
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-4, warmup_steps=5))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluate_every: Annotated[int, UNSIGNED] = 25
    evaluate_prompts: Annotated[int, COUNT] = 128
    checkpoint_every: Annotated[int, UNSIGNED] = 25
    keep: Annotated[int, COUNT] = 2
    adapter: AdapterConfig | None = None
    reward: RewardMix = field(default_factory=RewardMix, metadata=LATER)
    clip: ClipConfig = field(default_factory=ClipConfig, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.kl.target is None or self.beta > 0,
            "beta",
            "must be > 0 with kl.target, because the coefficient is adapted by factors",
            "raise it, or set kl.target to none",
        )
        if self.adapter is not None and self.adapter.dropout:
            raise FieldError(
                "adapter.dropout",
                self.adapter.dropout,
                "must be 0 in reinforcement learning, whose samples come from the model without dropout",
                "set {path}=0",
                type(self).__name__,
            )


@dataclass(frozen=True)
class PolicyRlConfig(RlConfig):
    """RL of the policy against R_P; it sees no reference."""


@dataclass(frozen=True)
class ImproverRlConfig(RlConfig):
    """RL of the improver against a gap over references.

    gap: form of the reward: of R_PIT "raw", "centred" or "symmetric"; or "difference", the ablation without a gap
        model, R_P(x, y) - R_P(x, y_ref).
    sources: weights of the reference sources that the curriculum draws from.
    reference_temperature: temperature of the policy's references, 0 is greedy; `improve.temperature` gives those that
        the improver will meet. None: as `temperature`.
    drafts: answers of M_P^RL per reference, of which the best by R_P is taken (iGRPO, arXiv 2602.09000, takes the best
        of the trained model's own).
    against: answer over which a sample is scored: the "reference" that the improver read, or a random "peer", one of
        the samples of the same prompt (BRPO, arXiv 2506.00103).
    """

    gap: RewardForm = "raw"
    sources: SourceWeights = field(default_factory=lambda: SourceWeights(worse=1, better=1))
    reference_temperature: Annotated[float | None, UNSIGNED] = None
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    drafts: Annotated[int, COUNT] = field(default=1, metadata=LATER)
    against: Literal["reference", "peer"] = field(default="reference", metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.sources.total > 0,
            "sources",
            "must have a positive weight, because an improver needs references",
            "set {path}.worse, {path}.better or {path}.policy",
        )
        before, after = self.sources, self.curriculum.sources_after
        self._require(
            before.written * after.own == after.written * before.own,
            "sources",
            "must have as large a share of own among the references of M_P^RL as curriculum.sources_after",
            "give {path}.own and curriculum.sources_after.own the same proportion to .policy",
        )
        self._require(
            not self.own_references or isinstance(self, RewrittenRlConfig),
            "sources",
            "must have own = 0 in RL,0, which starts from an improver that RL has not trained",
            "set {path}.own=0, or weigh own answers in rl_improver_1 or rl_improver_2",
        )
        self._require(
            self.policy_references or self.reference_temperature is None,
            "reference_temperature",
            "applies to references of the policy, and none are drawn",
            "set sources.policy above 0, or {path}=none",
        )
        self._require(
            self.policy_references or self.drafts == 1,
            "drafts",
            "applies to references of the policy, and none are drawn",
            "set sources.policy above 0, or {path}=1",
        )
        greedy = (self.temperature if self.reference_temperature is None else self.reference_temperature) == 0
        self._require(
            self.drafts == 1 or not greedy,
            "drafts",
            "must be 1 at reference_temperature 0, where all drafts are the same",
            "set {path}=1, or raise reference_temperature",
        )
        self._require(
            not self.curriculum.adaptive or self.against == "reference",
            "against",
            f"must be reference with strategy {self.curriculum.strategy}, which learns from gaps over references",
            "set {path}=reference, or curriculum.strategy=uniform",
        )
        self._require(
            not self.curriculum.adaptive or self.gap != "raw",
            "gap",
            f"must not be raw with strategy {self.curriculum.strategy}, which asks which samples beat their reference",
            "set it to centred, symmetric or difference",
        )
        if self.curriculum.difficulty == "margin" and not self.reward.model_weight:
            raise FieldError(
                "curriculum.difficulty",
                "margin",
                "is the reward model's margin, and reward.model_weight = 0 leaves that model out",
                "set {path} to length or edit, or reward.model_weight above 0",
                type(self).__name__,
            )

    @property
    def policy_references(self) -> bool:
        """Whether some references are sampled from M_P^RL."""
        return self.sources.written > 0 or self.curriculum.sources_after.written > 0

    @property
    def own_references(self) -> bool:
        """Whether answers after passes have a weight of their own."""
        return self.sources.own > 0 or self.curriculum.sources_after.own > 0

    @property
    def own_share(self) -> float:
        """Share of the references of M_P^RL that go through passes: all, unless own answers have a weight."""
        written = self.sources if self.sources.written else self.curriculum.sources_after
        return written.own / written.written if self.own_references else 1.0


@dataclass(frozen=True)
class RewrittenRlConfig(ImproverRlConfig):
    """RL of the improver from RL,1 on, where an improver that RL has trained may rewrite the policy's references.

    passes: passes of the improver of the stage before over each reference of the policy.
    """

    sources: SourceWeights = field(default_factory=lambda: SourceWeights(policy=1))
    passes: Passes = field(default_factory=Passes)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.policy_references or self.passes.most == 0,
            "passes",
            "apply to references of the policy, and none are drawn",
            "set sources.policy above 0, or {path}.most=0",
        )
        self._require(
            not self.own_references or self.passes.most > 0,
            "passes",
            "must have a positive `most` with sources.own, whose answers are those after passes",
            "set {path}.most=1 or more, or sources.own=0",
        )
        has_gap = self.gap != "raw" and self.gap != "difference" and self.reward.model_weight > 0
        self._require(
            self.passes.threshold is None or has_gap,
            "gap",
            "must be symmetric or centred with passes.threshold, and reward.model_weight above 0: the gap model keeps "
            "passes",
            "set {path}=symmetric, or passes.threshold=none",
        )
