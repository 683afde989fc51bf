"""Anthropic's HH-RLHF with a model small enough for two CPU cores."""

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
    OptimizerConfig,
    PackingConfig,
    Passes,
    PolicyRlConfig,
    RefreshConfig,
    RewardConfig,
    RewrittenRlConfig,
    RunConfig,
    SftConfig,
    TokenizerConfig,
    WindowConfig,
)


def hh() -> RunConfig:
    """The whole loop on HH-RLHF as published, from random weights: a proof that it runs, not a helpful assistant.

    Needs: `--data FOLDER` with the published `*/train.jsonl.gz`, two CPU cores, about 15 minutes for 7,000 rows.
    Expect: a model of 1.2 million parameters learns little about helpfulness; its reward models stay near the length
    baseline, and the report says so.
    """
    model = ModelConfig(width=128, layers=3, heads=4, kv_heads=2, head_dim=32, mlp=320, matched_heads=1)
    packing = PackingConfig(row_length=2048, rows=2, window=512, trees=64)
    supervised: dict[str, Any] = {
        "packing": packing,
        "evaluate_every": 50,
        "evaluate_trees": 128,
        "checkpoint_every": 50,
    }
    sft = supervised | {"optimizer": OptimizerConfig(learning_rate=2e-3)}
    reward = supervised | {"optimizer": OptimizerConfig(learning_rate=1e-3), "init": "policy"}
    offline = supervised | {"optimizer": OptimizerConfig(learning_rate=2e-4, warmup_steps=10)}
    rl: dict[str, Any] = {
        "steps": 12,
        "prompts": 16,
        "samples": 4,
        "beta": 0.1,
        "packing": PackingConfig(row_length=4096, rows=1, window=64, trees=32),
        "optimizer": OptimizerConfig(learning_rate=2e-4, warmup_steps=3),
        "evaluate_every": 0,
        "evaluate_prompts": 16,
        "checkpoint_every": 6,
    }
    return RunConfig(
        name="hh",
        data=DataConfig(task=None),
        tokenizer=TokenizerConfig(vocab_size=4096),
        windows=WindowConfig(512, 512, 512),
        policy=model,
        reward_model=model,
        sft_policy=SftConfig(**sft),
        sft_improver=ImproverSftConfig(**sft),
        reward_quality=RewardConfig(**reward),
        reward_gap=GapConfig(**reward),
        reward_judge=RewardConfig(**reward),
        dpo=OfflineConfig(**offline),
        srpo=OfflineConfig(**offline),
        rl_policy=PolicyRlConfig(**rl),
        rl_improver_0=ImproverRlConfig(**rl),
        rl_improver_1=RewrittenRlConfig(**rl),
        rl_improver_2=RewrittenRlConfig(**rl, passes=Passes(1, 1)),
        refresh=RefreshConfig(steps=50, packing=packing, optimizer=OptimizerConfig(learning_rate=3e-4)),
        improve=ImproveConfig(iterations=2, batch=64),
        evaluate=EvaluateConfig(prompts=128, examples=4),
    )
