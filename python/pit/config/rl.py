"""The section of an RL stage: what it draws, what it rewards, and how it stays near its anchor."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pit.config.rules import COUNT, POSITIVE, SHARE, UNSIGNED, Range, Section
from pit.config.sections import OptimizerConfig, PackingConfig, RolloutConfig

RewardForm = Literal["raw", "centred", "symmetric", "difference"]
KlEstimator = Literal["k1", "k2", "k3", "full"]
KlPlace = Literal["reward", "loss"]


@dataclass(frozen=True)
class CurriculumConfig(Section):
    """Which examples an RL stage draws, and when.

    strategy: "uniform", every example once an epoch; "staged", the same with a hand-over of reference sources;
        "learnability", what is neither won nor lost always first; "gap_band", what lies in a band of gaps that moves
        from easy to hard.
    sources_after, handover_step, handover_steps: "staged": weights of (worse, better, policy) after the hand-over, the
        step at which it begins, and its length (0: sharp).
    examples: only so many of the fold, the first ones; None means all.
    difficulty: how hard an example is before it was tried: by the tokens of its tree ("length"), by how alike its two
        answers are ("edit"), by the margin between them that R_PIT sees ("margin"), or by what the data say
        ("column": `data.difficulty_column`).
    lag: step s learns from the gaps of the steps up to s - lag; prefetch: steps drawn ahead, at most lag - 1.
    memory: trials of an entry at which its counts are halved, so that old ones fade.
    floor: share of the highest weight that every entry keeps.
    explore: "learnability": bonus of what was never tried.
    band, band_width: "gap_band": middle of the band at the first and the last step, and its width, as ranks among the
        gaps seen (1: won by most).
    """

    section: ClassVar[str] = "curriculum"
    strategy: Literal["uniform", "staged", "learnability", "gap_band"] = "uniform"
    sources_after: tuple[int, int, int] = (0, 0, 0)
    handover_step: Annotated[int, UNSIGNED] = 0
    handover_steps: Annotated[int, UNSIGNED] = 0
    examples: Annotated[int | None, COUNT] = None
    difficulty: Literal["none", "length", "edit", "margin", "column"] = "none"
    lag: Annotated[int, COUNT] = 1
    prefetch: Annotated[int, UNSIGNED] = 0
    memory: Annotated[int, Range(low=2.0, high=65_535.0)] = 32
    floor: Annotated[float, SHARE] = 0.05
    explore: Annotated[float, UNSIGNED] = 0.25
    band: tuple[float, float] = (0.8, 0.2)
    band_width: Annotated[float, Range(low=0.0, high=1.0, open_low=True)] = 0.4

    @property
    def adaptive(self) -> bool:
        """Whether draws depend on the gaps seen in training."""
        return self.strategy in ("learnability", "gap_band")

    def __post_init__(self) -> None:
        super().__post_init__()
        handed_over = sum(self.sources_after) > 0 and min(self.sources_after) >= 0
        self._require(
            handed_over if self.strategy == "staged" else self.sources_after == (0, 0, 0),
            "sources_after",
            f"must have a positive weight with strategy staged, and be 0,0,0 with others (here {self.strategy})",
            "set both together",
        )
        self._require(all(0 <= rank <= 1 for rank in self.band), "band", "must be ranks in [0, 1]", "choose such ranks")
        self._require(
            not self.adaptive or self.prefetch <= self.lag - 1,
            "prefetch",
            f"must be at most curriculum.lag - 1 = {self.lag - 1}, as what a step draws waits for feedback",
            "lower it or raise the lag",
        )
        self._require(
            self.adaptive or self.difficulty == "none",
            "difficulty",
            f"changes nothing with strategy {self.strategy}",
            "use learnability or gap_band, or none",
        )


@dataclass(frozen=True)
class KlConfig(Section):
    """How the KL to the anchor is estimated, charged and held; docs/rl.md says which gradient each choice has.

    estimator: from the sampled token ("k1", "k2", "k3") or over the whole vocabulary ("full").
    place: in the "reward" of a sample, before leave-one-out, or in the "loss", charged token by token.
    target: KL a sample, nats, that an adaptive coefficient holds; None keeps the coefficient at beta.
    gain: of the adaptive coefficient, which changes by at most a fifth of it a step.
    """

    section: ClassVar[str] = "kl"
    estimator: KlEstimator = "k1"
    place: KlPlace = "reward"
    target: Annotated[float | None, POSITIVE] = None
    gain: Annotated[float, Range(low=0.0, high=1.0, open_low=True)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.target is None or self.estimator != "k2",
            "target",
            "needs an estimate of the KL, and the expectation of k2 is another one",
            "use k1, k3 or full, or none",
        )


@dataclass(frozen=True)
class RlConfig(Section):
    """One reinforcement-learning stage: leave-one-out REINFORCE with a KL term to an anchor.

    prompts, samples: trees of a step and samples of a tree.
    beta: KL coefficient, in units of the reward model's score per nat (the paper leaves it open); the first one, where
        kl.target makes it adaptive.
    kl: how the KL is estimated and charged.
    entropy: bonus of each nat of the entropy of the answer, in units of the score.
    temperature: of sampling, and of every log-prob and KL in the loss.
    gap: form of the reward (improver stages only): of R_PIT "raw", "centred" or "symmetric"; or "difference", the
        ablation without a gap model, R_P(x, y) - R_P(x, y_ref).
    running_scale: divide scores by the standard deviation of all scores so far.
    normalise: divide advantages by their standard deviation over the step.
    no_eos_penalty: subtracted from the reward of a sample that did not end.
    length_cost, length_free: subtracted for each token beyond the free ones, in units of the score.
    sources: integer weights of reference sources (worse, better, policy) that the curriculum draws from.
    reference_temperature: of the policy's references, 0 is greedy; that of use (improve.temperature) gives those that
        the improver will meet. None: as `temperature`.
    passes: least and most times that the improver of the stage before rewrites such a reference, uniform between them.
    curriculum: which prompts come when.
    anchor: the model of the KL term: "sft", or "init" (the checkpoint that the stage starts from).
    rollout: how samples are drawn.
    """

    section: ClassVar[str] = "rl"
    steps: Annotated[int, COUNT] = 75
    prompts: Annotated[int, COUNT] = 32
    samples: int = 4
    beta: Annotated[float, UNSIGNED] = 0.4
    kl: KlConfig = field(default_factory=KlConfig)
    entropy: Annotated[float, UNSIGNED] = 0.0
    temperature: Annotated[float, POSITIVE] = 1.0
    gap: RewardForm = "raw"
    running_scale: bool = False
    normalise: bool = True
    no_eos_penalty: Annotated[float, UNSIGNED] = 1.0
    length_cost: Annotated[float, UNSIGNED] = 0.0
    length_free: Annotated[int, UNSIGNED] = 0
    sources: tuple[int, int, int] = (0, 0, 0)
    reference_temperature: Annotated[float | None, UNSIGNED] = None
    passes: tuple[int, int] = (0, 0)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    anchor: Literal["sft", "init"] = "sft"
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-4, warmup_steps=5))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluate_every: Annotated[int, UNSIGNED] = 25
    evaluate_prompts: Annotated[int, COUNT] = 128
    checkpoint_every: Annotated[int, UNSIGNED] = 25
    keep: Annotated[int, COUNT] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.samples >= 2, "samples", "leave-one-out needs at least 2", "raise it")
        self._require(min(self.sources) >= 0, "sources", "weights must be >= 0", "fix the weights")
        self._require(0 <= self.passes[0] <= self.passes[1], "passes", "must be least,most, from 0 up", "order them so")
        for name in ("reference_temperature", "passes"):
            self._require(
                self.policy_references or getattr(self, name) in (None, (0, 0)),
                name,
                f"is about references of the policy, and none are drawn (sources = {self.sources})",
                "give the policy a weight, or leave it out",
            )
        self._require(
            self.kl.target is None or self.beta > 0,
            "beta",
            "must be > 0 with kl.target, as the coefficient is adapted by factors",
            "raise it, or set kl.target to none",
        )
        self._require(
            not self.curriculum.adaptive or self.gap != "raw",
            "gap",
            f"has no zero if raw, and curriculum.strategy = {self.curriculum.strategy} asks which samples beat their "
            "reference",
            "use centred, symmetric or difference",
        )

    @property
    def policy_references(self) -> bool:
        """Whether some references are sampled from M_P^RL."""
        return self.sources[2] > 0 or self.curriculum.sources_after[2] > 0
