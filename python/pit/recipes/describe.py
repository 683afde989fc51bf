"""The first synthetic family, from scratch, on two CPU cores: describe a thing by the facts that are asked for."""

import dataclasses
from typing import Any

from pit.config import (
    BoardConfig,
    DataConfig,
    EvaluateConfig,
    GapConfig,
    ImproveConfig,
    ImproverRlConfig,
    ImproverSftConfig,
    Limit,
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


def describe() -> RunConfig:
    """Every stage on 64,000 synthetic preferences, with a hidden oracle to judge the result: the recipe of the study.

    Needs: two CPU cores, 3 GiB of memory, no download, eight to ten minutes. Command: `pit run describe`.
    """
    model = ModelConfig(
        width=64,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=32,
        mlp=128,
        # A reward model must learn whether a word of the answer stands in the prompt. Two heads per layer begin with
        # keys equal to queries, so that equal words meet; the table of positions tells where they met. Without either,
        # "wrong value" is not learned in these steps.
        rotary_fraction=0.0,
        learned_positions=128,
        matched_heads=2,
    )
    rows = PackingConfig(row_length=512, rows=4, window=256, trees=128)
    large = dataclasses.replace(rows, rows=6)
    supervised: dict[str, Any] = {
        "steps": 500,
        "packing": rows,
        "optimizer": OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        "evaluate_every": 250,
        "checkpoint_every": 250,
    }
    rl: dict[str, Any] = {
        "steps": 100,
        "prompts": 32,
        "samples": 4,
        "packing": PackingConfig(row_length=512, rows=8, window=64, trees=40),
        "evaluate_every": 25,
        "checkpoint_every": 25,
    }
    # The symmetric gap is half a difference of scores, so it is charged half the policy's coefficient. At .4 instead of
    # .8, M_P^RL is nearly always right and little is left to improve.
    improver = rl | {
        "gap": "symmetric",
        "beta": 0.4,
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=5),
    }
    return RunConfig(
        name="describe",
        data=DataConfig(synthetic_rows=64_000),
        tokenizer=TokenizerConfig(vocab_size=512),
        windows=WindowConfig(input=24, reference=28, output=28),
        policy=model,
        reward_model=model,
        sft_policy=SftConfig(**supervised),
        sft_improver=ImproverSftConfig(**supervised),
        reward_quality=RewardConfig(**supervised),
        reward_gap=GapConfig(**supervised | {"packing": large}, init="quality"),
        reward_judge=RewardConfig(**supervised | {"steps": 400}),
        dpo=OfflineConfig(**supervised | {"optimizer": OptimizerConfig(learning_rate=5e-4, warmup_steps=20)}),
        srpo=OfflineConfig(
            **supervised | {"packing": large, "optimizer": OptimizerConfig(learning_rate=5e-4, warmup_steps=20)}
        ),
        rl_policy=PolicyRlConfig(**rl, beta=0.8, optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=5)),
        rl_improver_0=ImproverRlConfig(**improver),
        refresh=RefreshConfig(
            steps=150,
            packing=large,
            optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=10),
            evaluate_every=25,
            checkpoint_every=50,
        ),
        # The fine-tuned improver copies the writers' noise: RL,1 stays near the improver that RL,0 made instead.
        rl_improver_1=RewrittenRlConfig(**improver, anchor="init"),
        rl_improver_2=RewrittenRlConfig(**improver, anchor="init", passes=Passes(1, 3)),
        improve=ImproveConfig(iterations=5, gap="symmetric", threshold=0.25, batch=250),
        evaluate=EvaluateConfig(prompts=1000, gate="stop", sensitivity_floor=0.8),
        # A right answer is best handed back, and the last fault to mend is often a word too many.
        board=BoardConfig(copy_rate=Limit(0.95), length_within=Limit(0.98)),
    )
