"""The second synthetic family, in which a second look has a reason to help: each pass can get a few names further."""

import dataclasses

from pit.config import (
    BoardConfig,
    DataConfig,
    EvaluateConfig,
    ImproveConfig,
    Limit,
    OptimizerConfig,
    PackingConfig,
    RunConfig,
    WindowConfig,
)
from pit.recipes.describe import describe


def relay() -> RunConfig:
    """RL,0 on 160,000 preferences of the relay, with a hidden oracle.

    A model of three layers looks up a pass or two at once, so the policy's answers are right in their last pair only,
    and the improver gets a name or two further than its draft. Differences from `describe`: three layers, heads half
    rotated by position, and more steps, because looking up takes long to learn; the improver and R_P start from the
    fine-tuned policy, which looks up already; the policy gets twice as many updates as the improver. The reward models
    do not look at the map, but the fine-tuned improver does: its likelihood accepts. There is no RL,1: all answers of
    M_P^RL have the same fault, and a reward that does not look at the map leads from there to worse ones;
    `--set references=policy` adds it.

    Needs: two CPU cores, 3 GiB of memory, no download. Command: `pit run relay --out runs/relay`.
    """
    config = describe()
    rows = PackingConfig(row_length=512, rows=6, window=256, trees=128)

    # The gap model does not see the route: one nat of KL sharpens the passes, two begin to unlearn the look-up.
    gentle = OptimizerConfig(learning_rate=1.5e-4, warmup_steps=5)

    # Right answers often equal their reference, so a copy is not a sign of hacking here.
    return dataclasses.replace(
        config,
        name="relay",
        data=DataConfig(task="relay", synthetic_rows=160_000),
        windows=WindowConfig(input=36, reference=28, output=28),
        policy=dataclasses.replace(config.policy, layers=3, matched_heads=0, rotary_fraction=0.5),
        reward_model=dataclasses.replace(config.reward_model, layers=3, rotary_fraction=0.5),
        sft_policy=dataclasses.replace(config.sft_policy, steps=1_200, packing=rows),
        # The look-up is learned all at once, late on some seeds: at half the rate or in half the steps not on all.
        sft_improver=dataclasses.replace(
            config.sft_improver,
            steps=2_400,
            packing=rows,
            init="policy",
            optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=20),
        ),
        reward_quality=dataclasses.replace(
            config.reward_quality,
            steps=1_500,
            packing=rows,
            init="policy",
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
        ),
        reward_gap=dataclasses.replace(config.reward_gap, steps=600, packing=rows),
        reward_judge=dataclasses.replace(config.reward_judge, steps=800, packing=rows),
        rl_policy=dataclasses.replace(config.rl_policy, steps=300, beta=0.4),
        rl_improver_0=dataclasses.replace(config.rl_improver_0, steps=150, beta=0.1, optimizer=gentle),
        rl_improver_1=dataclasses.replace(config.rl_improver_1, beta=0.1, optimizer=gentle),
        rl_improver_2=dataclasses.replace(config.rl_improver_2, beta=0.1, optimizer=gentle),
        references="data",
        board=BoardConfig(copy_rate=Limit(0.95), similar_share=Limit(0.95)),
        improve=ImproveConfig(iterations=5, accept_by="likelihood", gap="symmetric", batch=250),
        evaluate=EvaluateConfig(prompts=1000, gate="warn"),
    )
