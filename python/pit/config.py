"""Frozen configuration of a run, validated once, when it is made; recipes are functions that return one.

A config is plain data: it turns into JSON and back without loss, and `--set section.field=value` edits go through
the same checks. Nothing here repairs a value; what cannot work is refused with field, value, rule and remedy.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")
GapForm = Literal["raw", "centred", "symmetric"]


class ConfigError(ValueError):
    """A config field that is unknown, out of range or contradicts another one."""


def _require(ok: bool, name: str, value: object, rule: str, remedy: str) -> None:
    if not ok:
        raise ConfigError(f"{name} = {value!r}: {rule}; {remedy}")


@dataclass(frozen=True)
class DataConfig:
    """Which preferences, and how they are cut into folds.

    path: folder or file of preferences; None means the synthetic task.
    format: reader, "auto" looks at the content.
    synthetic_rows: rows of the synthetic task to make when `path` is None.
    fold_fractions: shares of sft, reward, rl (the paper's thirds), judge and eval.
    fold_key: key of the stable hash that assigns a conversation to a fold.
    strict: refuse dirty rows instead of counting and dropping them.
    """

    path: str | None = None
    format: str = "auto"
    synthetic_rows: int = 48_000
    fold_fractions: tuple[float, float, float, float, float] = (0.28, 0.28, 0.28, 0.10, 0.06)
    fold_key: str = "pit"
    strict: bool = False

    def __post_init__(self) -> None:
        total = sum(self.fold_fractions)
        _require(
            abs(total - 1.0) < 1e-9 and min(self.fold_fractions) > 0,
            "data.fold_fractions",
            self.fold_fractions,
            "must be five positive shares that sum to 1",
            "set sft,reward,rl,judge,eval",
        )
        _require(self.synthetic_rows >= 100, "data.synthetic_rows", self.synthetic_rows, "must be >= 100", "raise it")


@dataclass(frozen=True)
class TokenizerConfig:
    """A `tokenizer.json` to load, or the size of a byte-level BPE vocabulary to train on the sft fold."""

    path: str | None = None
    vocab_size: int = 4096

    def __post_init__(self) -> None:
        _require(
            self.path is not None or self.vocab_size >= 264,
            "tokenizer.vocab_size",
            self.vocab_size,
            "must hold 256 bytes and the role tokens",
            "use at least 264",
        )


@dataclass(frozen=True)
class WindowConfig:
    """Token windows of the three segments, closing role tokens counted (paper: 512 each)."""

    input: int = 512
    reference: int = 512
    output: int = 512

    def __post_init__(self) -> None:
        for name in ("input", "reference", "output"):
            value = getattr(self, name)
            _require(value >= 2, f"windows.{name}", value, "must hold a token and its closing role token", "use >= 2")
        _require(
            self.reference == self.output,
            "windows.reference",
            self.reference,
            f"must equal windows.output = {self.output}: an output becomes the next reference",
            "set both to the same value",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. The defaults are Llama-like; `gemma_like` lists what Gemma changes.

    rotary_fraction: share of each head's width that is rotated by position; the rest compares content alone.
    learned_positions: size of a learned table of positions that is added to the embedding (GPT-2); 0 for none.
    matched_heads: KV heads of each layer whose key projection starts equal to the query projection, so that equal
        tokens find each other from the first step (a small model trained from scratch otherwise learns a lookup late).
    """

    width: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 128
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rotary_fraction: float = 1.0
    learned_positions: int = 0
    tied: bool = True
    activation: Literal["silu", "gelu"] = "silu"
    norm_offset: bool = False
    embed_scale: bool = False
    post_norm: bool = False
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    query_scale: float | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    matched_heads: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be positive", "raise it")
        _require(
            self.heads % self.kv_heads == 0,
            "model.kv_heads",
            self.kv_heads,
            f"must divide model.heads = {self.heads}",
            "choose a divisor",
        )
        _require(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "must be even (rotary pairs)", "use an even")
        _require(
            0 <= self.rotary_fraction <= 1 and self.head_dim * self.rotary_fraction % 2 == 0,
            "model.rotary_fraction",
            self.rotary_fraction,
            f"must be in [0, 1] and rotate an even part of head_dim = {self.head_dim}",
            "choose such a fraction",
        )
        _require(
            0 <= self.matched_heads <= self.kv_heads,
            "model.matched_heads",
            self.matched_heads,
            f"must be within 0..kv_heads = {self.kv_heads}",
            "lower it",
        )


def gemma_like(config: ModelConfig) -> ModelConfig:
    """The same shape with Gemma's choices: GELU, norms scaled by 1 + w, scaled embedding, norms after blocks too."""
    return dataclasses.replace(
        config, activation="gelu", norm_offset=True, embed_scale=True, post_norm=True, tied=True, norm_eps=1e-6
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, cosine decay to `end_fraction` of the peak, and global norm clipping."""

    learning_rate: float = 2e-3
    warmup_steps: int = 20
    end_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "must be > 0", "raise it")
        _require(0 <= self.end_fraction <= 1, "optimizer.end_fraction", self.end_fraction, "must be in [0, 1]", "fix")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "must be >= 0", "raise it")


@dataclass(frozen=True)
class PackingConfig:
    """How trees become rows: `rows` rows of `row_length` tokens per shard and microbatch.

    window: trees the planner may look ahead to fill a row.
    trees: most trees of one microbatch and shard (the static size of its leaf table).
    """

    row_length: int = 512
    rows: int = 8
    microbatches: int = 1
    window: int = 256
    trees: int = 128

    def __post_init__(self) -> None:
        for name in ("row_length", "rows", "microbatches", "window", "trees"):
            _require(getattr(self, name) >= 1, f"packing.{name}", getattr(self, name), "must be positive", "raise it")


@dataclass(frozen=True)
class TrainConfig:
    """A supervised stage (fine-tuning or reward model).

    steps: optimizer steps; None means one pass over the fold, counted by planning it.
    evaluate_every, checkpoint_every: in steps; 0 means only at the end.
    keep: checkpoints kept.
    init: where a reward model starts: "random", the fine-tuned "policy" of the same shape, or (R_PIT) "quality", R_P.
    """

    steps: int | None = None
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate_every: int = 200
    evaluate_trees: int = 512
    checkpoint_every: int = 200
    keep: int = 2
    init: Literal["random", "policy", "quality"] = "random"

    def __post_init__(self) -> None:
        _require(self.steps is None or self.steps >= 1, "steps", self.steps, "must be >= 1 or None", "raise it")
        _require(self.keep >= 1, "keep", self.keep, "must be >= 1", "raise it")


@dataclass(frozen=True)
class RlConfig:
    """One reinforcement-learning stage: leave-one-out REINFORCE with a KL term to an anchor.

    prompts, samples: trees of a step and samples of a tree.
    beta: KL coefficient, in units of the reward model's score per nat (the paper leaves it open).
    temperature: of sampling, and of every log-prob and KL in the loss.
    gap: form of the gap reward (improver stages only).
    normalise: divide advantages by their standard deviation over the step.
    no_eos_penalty: subtracted from the reward of a sample that did not end.
    sources: integer weights of reference sources (worse, better, policy) that the curriculum draws from.
    anchor: the model of the KL term: "sft", or "init" (the checkpoint that the stage starts from).
    """

    steps: int = 75
    prompts: int = 32
    samples: int = 4
    beta: float = 0.4
    temperature: float = 1.0
    gap: GapForm = "raw"
    normalise: bool = True
    no_eos_penalty: float = 1.0
    sources: tuple[int, int, int] = (0, 0, 0)
    anchor: Literal["sft", "init"] = "sft"
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-4, warmup_steps=5))
    evaluate_every: int = 25
    evaluate_prompts: int = 128
    checkpoint_every: int = 25
    keep: int = 2

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "rl.steps", self.steps, "must be >= 1", "raise it")
        _require(self.samples >= 2, "rl.samples", self.samples, "leave-one-out needs at least 2", "raise it")
        _require(self.prompts >= 1, "rl.prompts", self.prompts, "must be >= 1", "raise it")
        _require(self.beta >= 0, "rl.beta", self.beta, "must be >= 0", "raise it")
        _require(self.temperature > 0, "rl.temperature", self.temperature, "must be > 0 in training", "raise it")
        _require(min(self.sources) >= 0, "rl.sources", self.sources, "weights must be >= 0", "fix the weights")


@dataclass(frozen=True)
class ImproveConfig:
    """Iterated improvement at inference (the paper's Algorithm 2, with an acceptance rule of ours).

    iterations: improver passes; temperature: of y0 and of every pass.
    gap: form of the gap that decides. threshold: a candidate replaces the answer only if its gap over it exceeds this.
    """

    iterations: int = 3
    temperature: float = 1.0
    gap: GapForm = "centred"
    threshold: float = 0.0
    batch: int = 128

    def __post_init__(self) -> None:
        _require(self.iterations >= 1, "improve.iterations", self.iterations, "must be >= 1", "raise it")
        _require(self.temperature >= 0, "improve.temperature", self.temperature, "must be >= 0 (0 is greedy)", "raise")
        _require(self.batch >= 1, "improve.batch", self.batch, "must be >= 1", "raise it")
        _require(self.gap != "raw", "improve.gap", self.gap, "a raw gap has no zero", "use centred or symmetric")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured at the end of a run.

    prompts: most prompts of the eval fold used; examples: how many the report shows.
    sensitivity_floor: a run stops before RL if a reward model ranks a clean answer above its corrupted copy less often
        than this, for any aspect of the synthetic task.
    """

    prompts: int = 1000
    resamples: int = 2000
    examples: int = 8
    sensitivity_prompts: int = 256
    sensitivity_floor: float = 0.8

    def __post_init__(self) -> None:
        _require(self.prompts >= 2, "evaluate.prompts", self.prompts, "must be >= 2", "raise it")
        _require(
            0.0 <= self.sensitivity_floor <= 1.0,
            "evaluate.sensitivity_floor",
            self.sensitivity_floor,
            "in [0, 1]",
            "fix",
        )


@dataclass(frozen=True)
class MeshConfig:
    """One device mesh (data, fsdp, tensor); 1, 1, 1 is a single device."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            _require(getattr(self, name) >= 1, f"mesh.{name}", getattr(self, name), "must be positive", "use >= 1")

    @property
    def shards(self) -> int:
        """Shards of the batch: rows are split over data x fsdp."""
        return self.data * self.fsdp


def _rl_first() -> RlConfig:
    return RlConfig(sources=(1, 1, 0))


def _rl_second() -> RlConfig:
    return RlConfig(sources=(0, 0, 1))


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on. `workers` and `mesh` change how, never what, up to rounding."""

    name: str = "custom"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    policy: ModelConfig = field(default_factory=ModelConfig)
    reward_model: ModelConfig = field(default_factory=ModelConfig)
    sft: TrainConfig = field(default_factory=TrainConfig)
    quality: TrainConfig = field(default_factory=TrainConfig)
    gap: TrainConfig = field(default_factory=TrainConfig)
    judge: TrainConfig = field(default_factory=TrainConfig)
    rl_policy: RlConfig = field(default_factory=RlConfig)
    rl_first: RlConfig = field(default_factory=_rl_first)
    rl_second: RlConfig = field(default_factory=_rl_second)
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    workers: int = 2

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "must be >= 0", "use a non-negative integer")
        _require(self.workers >= 1, "workers", self.workers, "must be >= 1", "raise it")
        windows = self.windows
        improver_path = windows.input + windows.reference + windows.output
        paths = {"gap": improver_path, "rl_first": improver_path, "rl_second": improver_path, "sft": improver_path}
        paths |= dict.fromkeys(("quality", "judge", "rl_policy"), windows.input + windows.output)
        for section, path in paths.items():
            row = getattr(self, section).packing.row_length
            _require(
                row >= path,
                f"{section}.packing.row_length",
                row,
                f"must hold the longest path of {path} tokens that windows allow",
                "raise row_length or lower the windows",
            )
        for name in ("policy", "reward_model"):
            size = getattr(self, name).learned_positions
            _require(
                size == 0 or size >= improver_path,
                f"{name}.learned_positions",
                size,
                f"must be 0 or cover the longest path of {improver_path} tokens",
                "raise it or lower the windows",
            )
        for section in ("sft", "quality", "judge"):
            init = getattr(self, section).init
            allowed = ("random",) if section == "sft" else ("random", "policy")
            _require(init in allowed, f"{section}.init", init, f"must be one of {allowed} here", "choose one")
        for section in ("rl_first", "rl_second"):
            sources = getattr(self, section).sources
            _require(sum(sources) > 0, f"{section}.sources", sources, "an improver needs references", "give a weight")
        _require(
            sum(self.rl_policy.sources) == 0,
            "rl_policy.sources",
            self.rl_policy.sources,
            "the policy sees no reference",
            "use 0,0,0",
        )
        heads, kv, tensor = self.policy.heads, self.policy.kv_heads, self.mesh.tensor
        _require(
            heads % tensor == 0 and kv % tensor == 0,
            "mesh.tensor",
            tensor,
            f"must divide the policy's heads = {heads} and kv_heads = {kv}",
            "lower it",
        )


def to_dict(config: object) -> dict[str, Any]:
    """Nested plain values of a config, ready for JSON."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(cast(Any, config)))))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a config from nested plain values; unknown fields are refused with the nearest known one."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cast(Any, cls))]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"{where}{key}: no such config field; {hint}")
        arguments[key] = _typed(hints[key], value, f"{where}{key}")
    return cls(**arguments)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check one plain value against its annotation; strings from the command line are read as that type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r}: is a section; set one of its fields, {where}.FIELD=VALUE")
        return from_dict(cast(type, hint), value, f"{where}.")
    if origin is types.UnionType:
        if value is None or value == "none":
            return None
        return _typed(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r}: must be one of {', '.join(map(str, args))}; choose one")
        return value
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if len(parts) != len(args):
            raise ConfigError(f"{where} = {value!r}: needs {len(args)} values; separate them by commas")
        return tuple(_typed(a, p, where) for a, p in zip(args, parts, strict=True))
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, str) and re.fullmatch("-?[0-9]+(_[0-9]+)*", value):
            return int(value)
    elif hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is str and isinstance(value, str):
        return value
    raise ConfigError(f"{where} = {value!r}: must be of type {hint.__name__}; give such a value")


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Apply `section.field=value` settings, in order, and validate the whole again."""
    values = to_dict(config)
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {setting}: must have the form section.field=value; write it so")
        node, *parents = values, *path.split(".")[:-1]
        for part in parents:
            if not isinstance(node.get(part), dict):
                raise ConfigError(f"--set {setting}: {part!r} is no config section; known: {', '.join(node)}")
            node = node[part]
        node[path.split(".")[-1]] = value
    return from_dict(RunConfig, values)


def digest(*parts: object) -> str:
    """Short stable hash of plain values and configs, for stamps that say what a result was made from."""
    plain = [to_dict(p) if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
