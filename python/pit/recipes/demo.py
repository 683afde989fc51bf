"""The recipe of `make demo`, a shorter `describe`, and its smallest version for tests."""

import dataclasses
from typing import Any

from pit.config import (
    DataConfig,
    EvaluateConfig,
    GapConfig,
    ImproveConfig,
    ImproverRlConfig,
    ImproverSftConfig,
    ModelConfig,
    OfflineConfig,
    PackingConfig,
    Passes,
    PolicyRlConfig,
    RefreshConfig,
    RewardConfig,
    RewrittenRlConfig,
    RunConfig,
    SftConfig,
)
from pit.recipes.describe import describe


def demo() -> RunConfig:
    """The first synthetic family in fewer steps and prompts than `describe`, with the same hidden oracle.

    Needs: two CPU cores, 3 GiB of memory, no download, four to five minutes. Command: `pit run demo --out runs/demo`.
    """
    config = describe()
    # Held-out samples of an RL stage have the sizes of its steps, so that they need no programs of their own.
    rl: dict[str, Any] = {"steps": 32, "evaluate_every": 16, "evaluate_prompts": config.rl_policy.prompts}
    return dataclasses.replace(
        config,
        name="demo",
        data=DataConfig(synthetic_rows=30_000),
        sft_policy=dataclasses.replace(config.sft_policy, steps=240, evaluate_every=120),
        sft_improver=dataclasses.replace(config.sft_improver, steps=240, evaluate_every=120),
        reward_quality=dataclasses.replace(config.reward_quality, steps=360, evaluate_every=180),
        reward_gap=dataclasses.replace(config.reward_gap, steps=300, evaluate_every=150),
        reward_judge=dataclasses.replace(config.reward_judge, steps=100, evaluate_every=50),
        dpo=dataclasses.replace(config.dpo, steps=240, evaluate_every=120),
        srpo=dataclasses.replace(config.srpo, steps=240, evaluate_every=120),
        rl_policy=dataclasses.replace(config.rl_policy, **rl),
        rl_improver_0=dataclasses.replace(config.rl_improver_0, **rl),
        rl_improver_1=dataclasses.replace(config.rl_improver_1, **rl),
        rl_improver_2=dataclasses.replace(config.rl_improver_2, **rl),
        evaluate=dataclasses.replace(config.evaluate, prompts=200, sensitivity_prompts=128, sensitivity_floor=0.65),
    )


def tiny() -> RunConfig:
    """The demo made as small as it can be: all stages run, nothing is learned. For tests and for looking around.

    Needs: a minute of two CPU cores. Command: `pit run tiny --out runs/tiny`.
    """
    small = ModelConfig(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=32)
    supervised: dict[str, Any] = {
        "steps": 4,
        "packing": PackingConfig(row_length=128, rows=2, window=16, trees=16),
        "evaluate_every": 0,
        "checkpoint_every": 2,
    }
    rl: dict[str, Any] = {
        "steps": 2,
        "prompts": 4,
        "samples": 2,
        "beta": 0.8,
        "packing": PackingConfig(row_length=256, rows=4, window=16, trees=16),
        "evaluate_every": 0,
        "evaluate_prompts": 4,
        "checkpoint_every": 1,
    }
    return dataclasses.replace(
        demo(),
        name="tiny",
        data=DataConfig(synthetic_rows=400),
        policy=small,
        reward_model=small,
        sft_policy=SftConfig(**supervised, evaluate_trees=16),
        sft_improver=ImproverSftConfig(**supervised, evaluate_trees=16),
        reward_quality=RewardConfig(**supervised, evaluate_trees=16),
        reward_gap=GapConfig(**supervised, evaluate_trees=16),
        reward_judge=RewardConfig(**supervised, evaluate_trees=16),
        dpo=OfflineConfig(**supervised, evaluate_trees=16),
        srpo=OfflineConfig(**supervised, evaluate_trees=16),
        rl_policy=PolicyRlConfig(**rl),
        rl_improver_0=ImproverRlConfig(**rl),
        refresh=RefreshConfig(**supervised, pairs=8),
        rl_improver_1=RewrittenRlConfig(**rl),
        rl_improver_2=RewrittenRlConfig(**rl, passes=Passes(1, 2)),
        improve=ImproveConfig(iterations=2, batch=8),
        evaluate=EvaluateConfig(
            prompts=16,
            resamples=100,
            examples=2,
            sensitivity_prompts=8,
            sensitivity_floor=0.0,
            progress_floor=0.0,
            pairs_floor=0.0,
        ),
    )
