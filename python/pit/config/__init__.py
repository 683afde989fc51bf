"""Frozen configuration of a run, validated once, when it is made; recipes are functions that return one.

Nothing here repairs a value; what cannot work is refused with field, value, rule and remedy.
"""

from pit.config.board import BoardConfig, Limit
from pit.config.plain import derived_seed, digest, from_dict, override, to_dict
from pit.config.rl import CurriculumConfig, KlConfig, KlEstimator, KlPlace, RewardForm, RlConfig
from pit.config.rules import ConfigError
from pit.config.run import RunConfig
from pit.config.sections import (
    AcceptBy,
    DataConfig,
    EvaluateConfig,
    GapForm,
    GapPairs,
    ImproveConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    RefreshConfig,
    RolloutConfig,
    TokenizerConfig,
    TrainConfig,
    WindowConfig,
    gemma_like,
)

__all__ = [
    "AcceptBy",
    "BoardConfig",
    "ConfigError",
    "CurriculumConfig",
    "DataConfig",
    "EvaluateConfig",
    "GapForm",
    "GapPairs",
    "ImproveConfig",
    "KlConfig",
    "KlEstimator",
    "KlPlace",
    "Limit",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PackingConfig",
    "RefreshConfig",
    "RewardForm",
    "RlConfig",
    "RolloutConfig",
    "RunConfig",
    "TokenizerConfig",
    "TrainConfig",
    "WindowConfig",
    "derived_seed",
    "digest",
    "from_dict",
    "gemma_like",
    "override",
    "to_dict",
]
