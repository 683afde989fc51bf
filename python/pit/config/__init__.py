"""Frozen configuration of a run, validated once, when it is built. Recipes are functions that return one.

Nothing here repairs a value: a value that cannot work is refused with its path, the rule and the remedy.
"""

from pit.config.adapter import AdapterConfig, BaseConfig
from pit.config.board import BoardConfig, Limit
from pit.config.improve import Accept, AcceptBy, Chains, ImproveConfig, Rank, Select
from pit.config.judge import JudgeConfig
from pit.config.model import ModelConfig, RopeScaling, gemma_like
from pit.config.plain import digest, from_dict, override, read_config, to_dict, to_yaml
from pit.config.references import Passes, SourceWeights
from pit.config.rl import (
    ClipConfig,
    CurriculumConfig,
    DrawConfig,
    ImproverRlConfig,
    KlConfig,
    KlEstimator,
    KlPlace,
    PolicyRlConfig,
    RatioLevel,
    RewardForm,
    RewardMix,
    RewrittenRlConfig,
    RlConfig,
)
from pit.config.rules import ConfigError, FieldError
from pit.config.run import FREE, TRACKERS, RunConfig
from pit.config.sections import (
    DataConfig,
    EvaluateConfig,
    FoldFractions,
    GapForm,
    MeshConfig,
    OptimizerConfig,
    PackingConfig,
    RolloutConfig,
    TemplateConfig,
    TokenizerConfig,
    WindowConfig,
)
from pit.config.supervised import (
    GapConfig,
    ImproverSftConfig,
    OfflineConfig,
    OrderedPairs,
    RefreshConfig,
    RewardConfig,
    SftConfig,
    SupervisedConfig,
)

__all__ = [
    "FREE",
    "TRACKERS",
    "Accept",
    "AcceptBy",
    "AdapterConfig",
    "BaseConfig",
    "BoardConfig",
    "Chains",
    "ClipConfig",
    "ConfigError",
    "CurriculumConfig",
    "DataConfig",
    "DrawConfig",
    "EvaluateConfig",
    "FieldError",
    "FoldFractions",
    "GapConfig",
    "GapForm",
    "ImproveConfig",
    "ImproverRlConfig",
    "ImproverSftConfig",
    "JudgeConfig",
    "KlConfig",
    "KlEstimator",
    "KlPlace",
    "Limit",
    "MeshConfig",
    "ModelConfig",
    "OfflineConfig",
    "OptimizerConfig",
    "OrderedPairs",
    "PackingConfig",
    "Passes",
    "PolicyRlConfig",
    "Rank",
    "RatioLevel",
    "RefreshConfig",
    "RewardConfig",
    "RewardForm",
    "RewardMix",
    "RewrittenRlConfig",
    "RlConfig",
    "RolloutConfig",
    "RopeScaling",
    "RunConfig",
    "Select",
    "SftConfig",
    "SourceWeights",
    "SupervisedConfig",
    "TemplateConfig",
    "TokenizerConfig",
    "WindowConfig",
    "digest",
    "from_dict",
    "gemma_like",
    "override",
    "read_config",
    "to_dict",
    "to_yaml",
]
