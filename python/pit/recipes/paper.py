"""PIT's published settings, for a TPU slice."""

from typing import Any

from pit.config import (
    DataConfig,
    FoldFractions,
    GapConfig,
    ImproveConfig,
    ImproverRlConfig,
    ImproverSftConfig,
    MeshConfig,
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
    gemma_like,
)


def paper() -> RunConfig:
    """The paper's settings (arXiv 2310.00898): one epoch, windows of 512, three learning rates.

    Stated there: fine-tuning at 3e-5, reward models at 3e-4, RL at 1e-5, windows 512 + 512 + 512, equal thirds.
    Open there, chosen here: the model (PaLM 2 is not public; a Gemma-like shape of about 2 billion parameters),
    AdamW, batch sizes, RL steps, beta 0.1, leave-one-out REINFORCE, KL to the fine-tuned model.
    Needs: `--data FOLDER` and a TPU v4 slice of 32 chips or its like. `--dry-run` works anywhere.
    """
    model = gemma_like(
        ModelConfig(
            width=2304,
            layers=26,
            heads=8,
            kv_heads=4,
            head_dim=256,
            mlp=9216,
            attention_soft_cap=50.0,
            final_soft_cap=30.0,
            compute_dtype="bfloat16",
            remat="save_attention",
        )
    )
    packing = PackingConfig(row_length=4096, rows=2, microbatches=2, window=1024, trees=64)
    supervised: dict[str, Any] = {"packing": packing, "evaluate_every": 500, "checkpoint_every": 500, "keep": 3}
    sft = supervised | {"optimizer": OptimizerConfig(learning_rate=3e-5, b2=0.95, warmup_steps=100)}
    reward = supervised | {
        "optimizer": OptimizerConfig(learning_rate=3e-4, b2=0.95, warmup_steps=100),
        "init": "policy",
    }
    offline = supervised | {"optimizer": OptimizerConfig(learning_rate=5e-6, b2=0.95, warmup_steps=50)}
    rl: dict[str, Any] = {
        "steps": 1000,
        "prompts": 256,
        "samples": 4,
        "beta": 0.1,
        "packing": PackingConfig(row_length=4096, rows=2, window=1024, trees=64),
        "optimizer": OptimizerConfig(learning_rate=1e-5, b2=0.95, warmup_steps=50),
        "evaluate_every": 100,
        "evaluate_prompts": 512,
        "checkpoint_every": 100,
        "keep": 3,
    }
    return RunConfig(
        name="paper",
        data=DataConfig(task=None, folds=FoldFractions(sft=0.31, reward=0.31, rl=0.31, judge=0.05, eval=0.02)),
        tokenizer=TokenizerConfig(vocab_size=32_000),
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
        rl_improver_2=RewrittenRlConfig(**rl, passes=Passes(1, 4)),
        refresh=RefreshConfig(
            steps=500,
            pairs=256,
            packing=packing,
            optimizer=OptimizerConfig(learning_rate=1e-4, b2=0.95, warmup_steps=50),
        ),
        improve=ImproveConfig(iterations=5),
        mesh=MeshConfig(data=1, fsdp=8, tensor=4),
    )
