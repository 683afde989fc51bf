"""The whole of a run: its sections, and what one of them asks of another."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pit.config.board import BoardConfig
from pit.config.rl import RlConfig
from pit.config.rules import COUNT, UNSIGNED, Section, require
from pit.config.sections import (
    DataConfig,
    EvaluateConfig,
    ImproveConfig,
    MeshConfig,
    ModelConfig,
    RefreshConfig,
    TokenizerConfig,
    TrainConfig,
    WindowConfig,
)


def _rl_first() -> RlConfig:
    return RlConfig(sources=(1, 1, 0))


def _rl_second() -> RlConfig:
    return RlConfig(sources=(0, 0, 1))


def _rl_third() -> RlConfig:
    return RlConfig(sources=(0, 0, 1), passes=(1, 3))


@dataclass(frozen=True)
class RunConfig(Section):
    """Everything a run depends on. `workers` and `mesh` change how, never what, up to rounding; `board` only looks.

    references: how far RL of the improver goes: "data" ends it after RL,0, whose references are the data's; "policy",
    the paper, adds RL,1, whose references M_P^RL wrote; "own", beyond the paper, RL,2, whose references the improver
    wrote.
    checkpoints: root for the checkpoints of all stages, an absolute path or gs://bucket/..., instead of the run's
    folder.
    """

    name: str = "custom"
    seed: Annotated[int, UNSIGNED] = 0
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    policy: ModelConfig = field(default_factory=ModelConfig)
    reward_model: ModelConfig = field(default_factory=ModelConfig)
    sft_policy: TrainConfig = field(default_factory=TrainConfig)
    sft_improver: TrainConfig = field(default_factory=TrainConfig)
    quality: TrainConfig = field(default_factory=TrainConfig)
    gap: TrainConfig = field(default_factory=TrainConfig)
    judge: TrainConfig = field(default_factory=TrainConfig)
    rl_policy: RlConfig = field(default_factory=RlConfig)
    rl_first: RlConfig = field(default_factory=_rl_first)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    rl_second: RlConfig = field(default_factory=_rl_second)
    board: BoardConfig = field(default_factory=BoardConfig)
    rl_third: RlConfig = field(default_factory=_rl_third)
    references: Literal["data", "policy", "own"] = "policy"
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    workers: Annotated[int, COUNT] = 2
    checkpoints: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_lengths()
        self._check_stages()
        root = self.checkpoints
        require(
            root is None or root.startswith("/") or re.fullmatch("gs://[^/]+(/.*)?", root) is not None,
            "checkpoints",
            root,
            "must be an absolute path or gs://bucket/folder",
            "write it so, or leave it out to keep checkpoints in the run's folder",
        )
        heads, kv, tensor = self.policy.heads, self.policy.kv_heads, self.mesh.tensor
        require(
            heads % tensor == 0 and kv % tensor == 0,
            "mesh.tensor",
            tensor,
            f"must divide the policy's heads = {heads} and kv_heads = {kv}",
            "lower it",
        )

    def _check_lengths(self) -> None:
        """Every path of a tree that the windows allow fits into a row and under the learned positions."""
        windows = self.windows
        improver_path = windows.input + windows.reference + windows.output
        paths = dict.fromkeys(("gap", "sft_improver", *self._improver_stages()), improver_path)
        paths |= dict.fromkeys(("sft_policy", "quality", "judge", "rl_policy"), windows.input + windows.output)
        if self.refresh.prompts:
            paths["refresh"] = improver_path
        for section, path in paths.items():
            row = getattr(self, section).packing.row_length
            require(
                row >= path,
                f"{section}.packing.row_length",
                row,
                f"must hold the longest path of {path} tokens that windows allow",
                "raise row_length or lower the windows",
            )
        for name in ("policy", "reward_model"):
            size = getattr(self, name).learned_positions
            require(
                size == 0 or size >= improver_path,
                f"{name}.learned_positions",
                size,
                f"must be 0 or cover the longest path of {improver_path} tokens",
                "raise it or lower the windows",
            )

    def _improver_stages(self) -> tuple[str, ...]:
        """Sections of the RL stages of the improver that the run has."""
        stages = {"data": 1, "policy": 2, "own": 3}[self.references]
        return ("rl_first", "rl_second", "rl_third")[:stages]

    def _check_stages(self) -> None:
        """Models start from models that exist; the policy sees no reference, an improver does."""
        for section in ("sft_policy", "sft_improver", "quality", "judge"):
            init, pairs = getattr(self, section).init, getattr(self, section).ordered_pairs
            allowed = ("random",) if section == "sft_policy" else ("random", "policy")
            starts = f"must be {' or '.join(map(repr, allowed))} here"
            require(init in allowed, f"{section}.init", init, starts, "change it")
            rule = "only R_PIT ranks the orders of a pair"
            require(pairs == "five", f"{section}.ordered_pairs", pairs, rule, "set gap.ordered_pairs")
        for section in self._improver_stages():
            sources = getattr(self, section).sources
            require(sum(sources) > 0, f"{section}.sources", sources, "an improver needs references", "give a weight")
        require(
            sum(self.rl_policy.sources) == 0,
            "rl_policy.sources",
            self.rl_policy.sources,
            "the policy sees no reference",
            "use 0,0,0",
        )
        for section in self._improver_stages():
            difficulty = getattr(self, section).curriculum.difficulty
            require(
                difficulty != "column" or self.data.difficulty_column is not None,
                f"{section}.curriculum.difficulty",
                difficulty,
                "needs data.difficulty_column",
                "name the column of the data that holds it",
            )
        require(
            self.rl_first.passes == (0, 0),
            "rl_first.passes",
            self.rl_first.passes,
            "the improver before it is the fine-tuned one, which no RL has seen",
            "use 0,0; rl_second and rl_third can have passes",
        )
        require(
            self.refresh.prompts == 0 or self.references != "data",
            "refresh.prompts",
            self.refresh.prompts,
            "no stage comes after RL,0 that would use the refreshed reward models",
            "use 0, or references=policy or own",
        )
        strategy = self.rl_policy.curriculum.strategy
        require(
            strategy == "uniform",
            "rl_policy.curriculum.strategy",
            strategy,
            "the policy has no reference, so neither gaps nor sources to choose by",
            "use uniform",
        )
