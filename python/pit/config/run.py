"""The config of a whole run: its sections, and the rules between them."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pit.config.adapter import BaseConfig
from pit.config.board import BoardConfig
from pit.config.improve import ImproveConfig
from pit.config.model import ModelConfig
from pit.config.references import Passes
from pit.config.rl import ImproverRlConfig, PolicyRlConfig, RewrittenRlConfig
from pit.config.rules import COUNT, LATER, UNSIGNED, Section, require
from pit.config.sections import (
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    TemplateConfig,
    TokenizerConfig,
    WindowConfig,
)
from pit.config.supervised import (
    GapConfig,
    ImproverSftConfig,
    OfflineConfig,
    RefreshConfig,
    RewardConfig,
    SftConfig,
)

FREE = ("workers", "board", "evaluate", "trackers")
"""Parts of a config that change nothing of what is trained, so that they may change while a run is on."""

TRACKERS = ("tensorboard", "wandb", "trackio")
"""Names that `trackers` may hold."""


@dataclass(frozen=True)
class RunConfig(Section):
    """Everything that a run depends on. `workers` and `mesh` change no result beyond rounding, `board` none at all.

    name: name of the run, such as that of its recipe.
    seed: root of all random numbers of the run.
    references: how far RL of the improver goes: "data" ends it after RL,0, whose references are the data's; "policy",
        the paper, adds RL,1, whose references M_P^RL writes; "own", beyond the paper, adds RL,2, whose references the
        improver of RL,1 rewrites.
    rlhf: "again" adds a second RL stage of the policy, with the settings of the first and from its weights: a rival of
        the improver in the evaluation. With rl_policy.anchor=init it is anchored there too (re-anchored RLHF).
    offline: adds rivals that are trained on pairs alone: a policy by "dpo", an improver by "srpo", or "both".
    workers: stages that run at a time; one where they would share an accelerator, and on several hosts.
    trackers: where metrics go besides metrics.jsonl: tensorboard, wandb, trackio, or several with commas between; or
        none. It changes nothing of what is trained.
    checkpoints: root for the checkpoints of all stages, an absolute path or gs://bucket/..., instead of the run's
        folder.
    """

    name: str = "custom"
    seed: Annotated[int, UNSIGNED] = 0
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    policy: ModelConfig = field(default_factory=ModelConfig)
    reward_model: ModelConfig = field(default_factory=ModelConfig)
    sft_policy: SftConfig = field(default_factory=SftConfig)
    sft_improver: ImproverSftConfig = field(default_factory=ImproverSftConfig)
    reward_quality: RewardConfig = field(default_factory=RewardConfig)
    reward_gap: GapConfig = field(default_factory=GapConfig)
    reward_judge: RewardConfig = field(default_factory=RewardConfig)
    rl_policy: PolicyRlConfig = field(default_factory=PolicyRlConfig)
    rl_improver_0: ImproverRlConfig = field(default_factory=ImproverRlConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    rl_improver_1: RewrittenRlConfig = field(default_factory=RewrittenRlConfig)
    rl_improver_2: RewrittenRlConfig = field(default_factory=lambda: RewrittenRlConfig(passes=Passes(1, 3)))
    references: Literal["data", "policy", "own"] = "policy"
    board: BoardConfig = field(default_factory=BoardConfig)
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    workers: Annotated[int, COUNT] = 2
    checkpoints: str | None = None
    trackers: str = field(default="tensorboard", metadata=LATER)
    rlhf: Literal["once", "again"] = field(default="once", metadata=LATER)
    offline: Literal["none", "dpo", "srpo", "both"] = field(default="none", metadata=LATER)
    dpo: OfflineConfig = field(default_factory=OfflineConfig, metadata=LATER)
    srpo: OfflineConfig = field(default_factory=OfflineConfig, metadata=LATER)

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The names in `trackers`; empty for none."""
        return () if self.trackers == "none" else tuple(name.strip() for name in self.trackers.split(","))

    def adds_rival(self, name: str) -> bool:
        """Return whether `offline` adds the rival of a name, "dpo" or "srpo"."""
        return self.offline in (name, "both")

    def __post_init__(self) -> None:
        super().__post_init__()
        windows = self.windows
        policy = windows.input + windows.output
        self.require_paths(policy, policy + windows.reference)
        self._check_stages()
        names = self.tracker_names
        require(
            {*names} <= {*TRACKERS} and len({*names}) == len(names),
            "trackers",
            self.trackers,
            f"must be none, or different ones of {', '.join(TRACKERS)} with commas between",
            "for example trackers=wandb,tensorboard",
        )
        root = self.checkpoints
        require(
            root is None or root.startswith("/") or re.fullmatch("gs://[^/]+(/.*)?", root) is not None,
            "checkpoints",
            root,
            "must be an absolute path or gs://bucket/folder",
            "write the whole path, or set checkpoints=none to keep checkpoints in the run's folder",
        )
        heads, kv, tensor = self.policy.heads, self.policy.kv_heads, self.mesh.tensor
        require(
            heads % tensor == 0 and kv % tensor == 0,
            "mesh.tensor",
            tensor,
            f"must divide the policy's heads = {heads} and kv_heads = {kv}",
            "set mesh.tensor=1, or another common divisor",
        )

    def require_paths(self, policy: int, improver: int, cause: str = "that windows allow") -> None:
        """Raise unless every row and every table of learned positions holds the longest path.

        Args:
            policy: most tokens of a path x -> y.
            improver: most tokens of a path x -> y_ref -> y.
            cause: what decides them.

        Raises:
            ConfigError: one does not.
        """
        sections = ["reward_gap", "sft_improver", *self._improver_sections()]
        paths = dict.fromkeys([*sections, *(["refresh"] if self.refresh.asked else [])], improver)
        paths |= dict.fromkeys(("sft_policy", "reward_quality", "reward_judge", "rl_policy"), policy)
        offline = {"dpo": policy, "srpo": improver}
        paths |= {name: path for name, path in offline.items() if self.adds_rival(name)}
        for section, path in paths.items():
            row = getattr(self, section).packing.row_length
            require(
                row >= path,
                f"{section}.packing.row_length",
                row,
                f"must hold the longest path of {path} tokens {cause}",
                f"set it to {path} or more, or lower the windows",
            )
        for name in ("policy", "reward_model"):
            size = getattr(self, name).learned_positions
            require(
                size == 0 or size >= improver,
                f"{name}.learned_positions",
                size,
                f"must be 0 or cover the longest path of {improver} tokens",
                f"set it to 0, or to {improver} or more, or lower the windows",
            )
            longest = getattr(self, name).longest_path
            require(
                longest is None or longest >= improver,
                f"{name}.longest_path",
                longest,
                f"must be none or cover the longest path of {improver} tokens {cause}",
                f"set it to none, or to {improver} or more, or lower the windows",
            )

    def _improver_sections(self) -> tuple[str, ...]:
        """Sections of the improver's RL stages that the run includes."""
        stages = {"data": 1, "policy": 2, "own": 3}[self.references]
        return ("rl_improver_0", "rl_improver_1", "rl_improver_2")[:stages]

    def _check_stages(self) -> None:
        """Rules between a stage and the data, or the stages after it."""
        for section in self._improver_sections():
            difficulty = getattr(self, section).curriculum.difficulty
            require(
                difficulty != "column" or self.data.difficulty_column is not None,
                f"{section}.curriculum.difficulty",
                difficulty,
                "needs data.difficulty_column",
                "set data.difficulty_column to the name of the column that holds it",
            )
        if self.reward_gap.ordered_pairs == "antisymmetric":
            forms = {section: getattr(self, section).gap for section in self._improver_sections()}
            if self.improve.accept_by == "gap_model":
                forms["improve"] = self.improve.gap
            for section, form in forms.items():
                require(
                    form not in ("raw", "centred"),
                    f"{section}.gap",
                    form,
                    "must not be raw or centred with reward_gap.ordered_pairs=antisymmetric, which trains no single "
                    "score",
                    "set {path}=symmetric",
                )
        field, off = ("refresh.prompts", "0") if self.refresh.path is None else ("refresh.path", "none")
        require(
            not self.refresh.asked or self.references != "data",
            field,
            self.refresh.prompts or self.refresh.path,
            "refreshes reward models that no later stage uses",
            f"set {field}={off}, or references=policy or own",
        )
