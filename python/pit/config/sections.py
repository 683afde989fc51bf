"""The sections of a run's config, one for each thing there is to choose."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pit.config.rules import COUNT, DECAY, FINITE, POSITIVE, SHARE, UNSIGNED, Range, Section

GapForm = Literal["raw", "centred", "symmetric"]
GapPairs = Literal["five", "one"]

KEPT = Range(low=0.0, high=1.0, open_low=True)
"""A share of probability that a filter keeps."""

WINDOW = Range(low=3.0)
"""Room for a token of each side of a cut, and the closing role token."""


@dataclass(frozen=True)
class DataConfig(Section):
    """Which preferences, and how they are cut into folds.

    path: folder or file of preferences; None means a synthetic task.
    task: which: "describe", the demonstration's, or "relay", in which a second look at an answer has a reason to help.
    format: reader, "auto" looks at the content.
    synthetic_rows: rows of it to make when `path` is None.
    fold_fractions: shares of sft, reward, rl (the paper's thirds), judge and eval.
    fold_key: key of the stable hash that assigns a conversation to a fold.
    difficulty_column: column of the data with a number for each row, larger is harder, for a curriculum to begin with.
    strict: refuse dirty rows instead of counting and dropping them.
    """

    section: ClassVar[str] = "data"
    path: str | None = None
    task: Literal["describe", "relay"] = "describe"
    format: str = "auto"
    synthetic_rows: Annotated[int, Range(low=100.0)] = 48_000
    fold_fractions: tuple[float, float, float, float, float] = (0.28, 0.28, 0.28, 0.10, 0.06)
    fold_key: str = "pit"
    difficulty_column: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            abs(sum(self.fold_fractions) - 1.0) < 1e-9 and min(self.fold_fractions) > 0,
            "fold_fractions",
            "must be five positive shares that sum to 1",
            "set sft,reward,rl,judge,eval",
        )


@dataclass(frozen=True)
class TokenizerConfig(Section):
    """A `tokenizer.json` to load, or the size of a byte-level BPE vocabulary to train on the sft fold."""

    section: ClassVar[str] = "tokenizer"
    path: str | None = None
    vocab_size: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.path is not None or self.vocab_size >= 264,
            "vocab_size",
            "must hold 256 bytes and the role tokens",
            "use at least 264",
        )


@dataclass(frozen=True)
class WindowConfig(Section):
    """Token windows of the three segments, closing role tokens counted (paper: 512 each)."""

    section: ClassVar[str] = "windows"
    input: Annotated[int, WINDOW] = 512
    reference: Annotated[int, WINDOW] = 512
    output: Annotated[int, WINDOW] = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.reference == self.output,
            "reference",
            f"must equal windows.output = {self.output}: an output becomes the next reference",
            "set both to the same value",
        )


@dataclass(frozen=True)
class ModelConfig(Section):
    """Shape of a decoder. The defaults are Llama-like; `gemma_like` lists what Gemma changes.

    rotary_fraction: share of each head's width that is rotated by position; the rest compares content alone.
    learned_positions: size of a learned table of positions that is added to the embedding (GPT-2); 0 for none.
    matched_heads: KV heads of each layer whose key projection starts equal to the query projection, so that equal
        tokens find each other from the first step (a small model trained from scratch otherwise learns a lookup late).
    """

    section: ClassVar[str] = "model"
    width: Annotated[int, COUNT] = 64
    layers: Annotated[int, COUNT] = 2
    heads: Annotated[int, COUNT] = 2
    kv_heads: Annotated[int, COUNT] = 2
    head_dim: Annotated[int, COUNT] = 32
    mlp: Annotated[int, COUNT] = 128
    norm_eps: Annotated[float, POSITIVE] = 1e-5
    rope_theta: Annotated[float, POSITIVE] = 10_000.0
    rotary_fraction: float = 1.0
    learned_positions: Annotated[int, UNSIGNED] = 0
    tied: bool = True
    activation: Literal["silu", "gelu"] = "silu"
    norm_offset: bool = False
    embed_scale: bool = False
    post_norm: bool = False
    attention_soft_cap: Annotated[float | None, POSITIVE] = None
    final_soft_cap: Annotated[float | None, POSITIVE] = None
    query_scale: Annotated[float | None, POSITIVE] = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    matched_heads: Annotated[int, UNSIGNED] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.heads % self.kv_heads == 0,
            "kv_heads",
            f"must divide model.heads = {self.heads}",
            "choose a divisor",
        )
        self._require(self.head_dim % 2 == 0, "head_dim", "must be even (rotary pairs)", "add or take one")
        self._require(
            0 <= self.rotary_fraction <= 1 and self.head_dim * self.rotary_fraction % 2 == 0,
            "rotary_fraction",
            f"must be in [0, 1] and rotate an even part of head_dim = {self.head_dim}",
            "choose such a fraction",
        )
        self._require(
            self.matched_heads <= self.kv_heads,
            "matched_heads",
            f"must be at most kv_heads = {self.kv_heads}",
            "lower it",
        )


def gemma_like(config: ModelConfig) -> ModelConfig:
    """The same shape with Gemma's choices: GELU, norms scaled by 1 + w, scaled embedding, norms after blocks too."""
    return dataclasses.replace(
        config, activation="gelu", norm_offset=True, embed_scale=True, post_norm=True, tied=True, norm_eps=1e-6
    )


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW with linear warm-up, cosine decay to `end_fraction` of the peak, and global norm clipping.

    refusals: steps in a row whose loss or gradient is not finite after which a stage stops; each is refused, so that
        weights and optimizer stay as they were.
    """

    section: ClassVar[str] = "optimizer"
    learning_rate: Annotated[float, POSITIVE] = 2e-3
    warmup_steps: Annotated[int, UNSIGNED] = 20
    end_fraction: Annotated[float, SHARE] = 0.1
    b1: Annotated[float, DECAY] = 0.9
    b2: Annotated[float, DECAY] = 0.98
    weight_decay: Annotated[float, UNSIGNED] = 0.0
    clip_norm: Annotated[float, POSITIVE] = 1.0
    refusals: Annotated[int, COUNT] = 3


@dataclass(frozen=True)
class PackingConfig(Section):
    """How trees become rows: `rows` rows of `row_length` tokens per shard and microbatch.

    window: trees the planner may look ahead to fill a row.
    trees: most trees of one microbatch and shard (the static size of its leaf table).
    """

    section: ClassVar[str] = "packing"
    row_length: Annotated[int, COUNT] = 512
    rows: Annotated[int, COUNT] = 8
    microbatches: Annotated[int, COUNT] = 1
    window: Annotated[int, COUNT] = 256
    trees: Annotated[int, COUNT] = 128


@dataclass(frozen=True)
class TrainConfig(Section):
    """A supervised stage (fine-tuning or reward model).

    steps: optimizer steps; None means one pass over the fold, counted by planning it.
    evaluate_every, checkpoint_every: in steps; 0 means only at the end.
    keep: checkpoints kept.
    init: where a model starts: "random", as the policy does; the fine-tuned "policy" (the improver, or a reward model,
        which must have its shape); or (R_PIT) "quality", R_P.
    ordered_pairs: of the four orders of a pair, what R_PIT's loss ranks: the paper's "five", or "one", (w,l) > (l,w).
    """

    steps: Annotated[int | None, COUNT] = None
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate_every: Annotated[int, UNSIGNED] = 200
    evaluate_trees: Annotated[int, COUNT] = 512
    checkpoint_every: Annotated[int, UNSIGNED] = 200
    keep: Annotated[int, COUNT] = 2
    init: Literal["random", "policy", "quality"] = "random"
    ordered_pairs: GapPairs = "five"


@dataclass(frozen=True)
class RolloutConfig(Section):
    """How samples are drawn: what decides speed and memory, and no result beyond rounding.

    slots: samples that decode at a time; a slot takes the next sample when its own has ended.
    prefill_tokens: tokens of prefixes that are read at once.
    """

    section: ClassVar[str] = "rollout"
    slots: Annotated[int, COUNT] = 256
    prefill_tokens: Annotated[int, COUNT] = 8192


@dataclass(frozen=True)
class RefreshConfig(TrainConfig):
    """Reward models trained on with labelled samples of the models, between RL,0 and RL,1 (see `pit.stages.refresh`).

    prompts: of the rl fold that are answered, two pairs each; 0: no reward model is refreshed.
    temperature: of the answers; 0 is greedy, and two answers of the policy are then the same.
    pairs: of a step, of the data and new ones together; data_share: share of the data among them.
    held_out_every: each so-manyth new pair is held out to measure by (`eval/`).
    rollout: how answers are sampled.
    """

    section: ClassVar[str] = "refresh"
    steps: Annotated[int, COUNT] = 100
    prompts: Annotated[int, UNSIGNED] = 0
    temperature: Annotated[float, UNSIGNED] = 1.0
    pairs: Annotated[int, COUNT] = 32
    data_share: Annotated[float, SHARE] = 0.5
    held_out_every: Annotated[int, Range(low=2.0)] = 10
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.init == "random",
            "init",
            "a refreshed model starts from the one that it refreshes",
            "leave it as it is",
        )
        self._require(
            self.ordered_pairs == "five",
            "ordered_pairs",
            "a refreshed R_PIT keeps the loss of the one that it refreshes",
            "set gap.ordered_pairs",
        )


AcceptBy = Literal["gap_model", "likelihood"]
"""Whose gap decides whether a candidate replaces the answer."""


@dataclass(frozen=True)
class ImproveConfig(Section):
    """Iterated improvement at inference (the paper's Algorithm 2, with an acceptance rule of ours).

    iterations: improver passes.
    temperature: of y0 and of every pass; 0 is greedy.
    top_k, top_p, min_p: keep the most likely tokens only, if given (see `pit.rollout.strategy`).
    accept_by: whose gap decides: that of the gap model, or the log-likelihood gap of the fine-tuned improver, in nats,
        which sees what the improver can see, where a reward model has not learned to.
    gap: form of the gap that decides.
    threshold: a candidate replaces the answer only if its gap over it exceeds this.
    batch: prompts sampled at once.
    rollout: how they are sampled.
    """

    section: ClassVar[str] = "improve"
    iterations: Annotated[int, COUNT] = 3
    temperature: Annotated[float, UNSIGNED] = 1.0
    top_k: Annotated[int | None, COUNT] = None
    top_p: Annotated[float | None, KEPT] = None
    min_p: Annotated[float | None, KEPT] = None
    accept_by: AcceptBy = "gap_model"
    gap: GapForm = "centred"
    threshold: Annotated[float, FINITE] = 0.0
    batch: Annotated[int, COUNT] = 128
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.gap != "raw", "gap", "a raw gap has no zero", "use centred or symmetric")


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """What is measured at the end of a run.

    prompts: most prompts of the eval fold used; examples: how many the report shows.
    resamples: bootstrap samples behind each interval.
    gate: what the gates before RL do where a reward model is below a floor: nothing ("off": it is not looked at), a
        line in the log ("warn"), or an end of the run ("stop").
    sensitivity_prompts: prompts, or pairs, of each check.
    sensitivity_floor: how often a clean answer must be ranked above its copy with one fault, for each aspect of the
        synthetic task; progress_floor: an answer above its copy that is one step further from the clean one;
        pairs_floor: the better answer of a held-out pair above the worse one.
    """

    section: ClassVar[str] = "evaluate"
    prompts: Annotated[int, Range(low=2.0)] = 1000
    resamples: Annotated[int, COUNT] = 2000
    examples: Annotated[int, UNSIGNED] = 8
    sensitivity_prompts: Annotated[int, COUNT] = 256
    gate: Literal["off", "warn", "stop"] = "warn"
    sensitivity_floor: Annotated[float, SHARE] = 0.8
    progress_floor: Annotated[float, SHARE] = 0.8
    pairs_floor: Annotated[float, SHARE] = 0.55


@dataclass(frozen=True)
class MeshConfig(Section):
    """One device mesh (data, fsdp, tensor); 1, 1, 1 is a single device."""

    section: ClassVar[str] = "mesh"
    data: Annotated[int, COUNT] = 1
    fsdp: Annotated[int, COUNT] = 1
    tensor: Annotated[int, COUNT] = 1

    @property
    def shards(self) -> int:
        """Shards of the batch: rows are split over data x fsdp."""
        return self.data * self.fsdp
