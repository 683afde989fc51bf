"""The synthetic task, from scratch, on two CPU cores: what `make demo` runs, and its smallest version for tests."""

import dataclasses

from pit.config import (
    BoardConfig,
    DataConfig,
    EvaluateConfig,
    ImproveConfig,
    Limit,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    RefreshConfig,
    RlConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    WindowConfig,
)


def demo() -> RunConfig:
    """Every stage on 64,000 synthetic preferences, with a hidden oracle to judge the result.

    Needs: two CPU cores, 3 GiB of memory, no download. Command: `pit run demo --out runs/demo`.
    """
    model = ModelConfig(
        width=64,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=32,
        mlp=128,
        # A reward model must learn whether a word of the answer stands in the prompt. Two heads of a layer begin with
        # keys equal to queries, so that equal words meet; the table of positions tells where they met. Without either,
        # "wrong value" is not learned in these steps.
        rotary_fraction=0.0,
        learned_positions=128,
        matched_heads=2,
    )
    rows = PackingConfig(row_length=512, rows=4, window=256, trees=128)
    train = TrainConfig(
        steps=500,
        packing=rows,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        evaluate_every=250,
        checkpoint_every=250,
    )
    rl = RlConfig(
        steps=100,
        prompts=32,
        samples=4,
        beta=0.8,
        packing=PackingConfig(row_length=512, rows=8, window=64, trees=40),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=5),
        evaluate_every=25,
        checkpoint_every=25,
    )
    # The symmetric gap is half a difference of scores: at half the coefficient a nat costs the improver what it costs
    # the policy. At .4 instead of .8, M_P^RL is nearly always right and little is left to improve.
    gap_rl = dataclasses.replace(
        rl,
        gap="symmetric",
        beta=0.4,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5),
    )
    return RunConfig(
        name="demo",
        data=DataConfig(synthetic_rows=64_000),
        tokenizer=TokenizerConfig(vocab_size=512),
        windows=WindowConfig(input=24, reference=28, output=28),
        policy=model,
        reward_model=model,
        sft_policy=train,
        sft_improver=train,
        quality=train,
        gap=dataclasses.replace(train, packing=dataclasses.replace(rows, rows=6), init="quality"),
        judge=dataclasses.replace(train, steps=400),
        rl_policy=rl,
        rl_first=dataclasses.replace(gap_rl, sources=(1, 1, 0)),
        refresh=RefreshConfig(
            steps=150,
            packing=dataclasses.replace(rows, rows=6),
            optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=10),
            evaluate_every=25,
            checkpoint_every=50,
        ),
        # The fine-tuned improver copies the writers' noise: RL,1 stays near what RL,0 has made of it instead.
        rl_second=dataclasses.replace(gap_rl, sources=(0, 0, 1), anchor="init"),
        rl_third=dataclasses.replace(gap_rl, sources=(0, 0, 1), anchor="init", passes=(1, 3)),
        improve=ImproveConfig(iterations=5, gap="symmetric", threshold=0.25, batch=250),
        evaluate=EvaluateConfig(prompts=1000, gate="stop", sensitivity_floor=0.8),
        # A right answer is best handed back, and what is left to mend is often a word too many.
        board=BoardConfig(copy_rate=Limit(0.95), length_within=Limit(0.98)),
    )


def tiny() -> RunConfig:
    """The demo made as small as it can be: all stages run, nothing is learned. For tests and for looking around.

    Needs: a minute of two CPU cores. Command: `pit run tiny --out runs/tiny`.
    """
    config = demo()
    small = ModelConfig(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=32)
    train = TrainConfig(
        steps=4,
        packing=PackingConfig(row_length=128, rows=2, window=16, trees=16),
        evaluate_every=0,
        evaluate_trees=16,
        checkpoint_every=2,
    )
    rl = dataclasses.replace(
        config.rl_policy,
        steps=2,
        prompts=4,
        samples=2,
        packing=PackingConfig(row_length=256, rows=4, window=16, trees=16),
        evaluate_every=0,
        evaluate_prompts=4,
        checkpoint_every=1,
    )
    return dataclasses.replace(
        config,
        name="tiny",
        data=DataConfig(synthetic_rows=400),
        policy=small,
        reward_model=small,
        sft_policy=train,
        sft_improver=train,
        quality=train,
        gap=train,
        judge=train,
        rl_policy=rl,
        rl_first=dataclasses.replace(rl, sources=(1, 1, 0)),
        refresh=RefreshConfig(
            steps=4,
            pairs=8,
            packing=train.packing,
            evaluate_every=0,
            checkpoint_every=2,
        ),
        rl_second=dataclasses.replace(rl, sources=(0, 0, 1)),
        rl_third=dataclasses.replace(rl, sources=(0, 0, 1), passes=(1, 2)),
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
