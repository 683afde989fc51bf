"""Recipes that start from a pretrained chat model, sized by the model and by the preferences."""

import dataclasses
import math
from typing import Any

from pit.config import (
    AdapterConfig,
    BaseConfig,
    DataConfig,
    EvaluateConfig,
    GapConfig,
    ImproveConfig,
    ImproverRlConfig,
    ImproverSftConfig,
    OfflineConfig,
    OptimizerConfig,
    PackingConfig,
    Passes,
    PolicyRlConfig,
    RefreshConfig,
    RewardConfig,
    RewrittenRlConfig,
    RolloutConfig,
    RunConfig,
    SftConfig,
    TokenizerConfig,
)
from pit.model.pretrained import Pretrained
from pit.model.token_facts import TOKENIZER
from pit.recipes.lengths import Sizes
from pit.rl.reward import scored_tree
from pit.run.base import has_role_tokens

FULL_BELOW = 50_000_000
"""Parameters below which all weights are trained; from there on, adapters."""

ROW_TOKENS = 4_096
"""Tokens of a microbatch, about; a row holds the longest path at least."""


def chat(model: Pretrained, sizes: Sizes) -> RunConfig:
    """Any pretrained chat model on any preferences, with LoRA from 50 million parameters on.

    Needs: `--model` and `--data`; memory of about one model and its activations. Command: `pit run chat --model FOLDER
    --data FILE`. On a slice, set `mesh.fsdp` (and `mesh.tensor`): every shard takes the rows of this config.
    """
    adapter = AdapterConfig(rank=16, alpha=32.0) if parameters(model) >= FULL_BELOW else None
    # Low-rank updates bear and need about ten times the learning rate of full ones.
    rate = 1.0 if adapter is not None else 0.1
    row = sizes.row_length
    packing = PackingConfig(row_length=row, rows=max(1, ROW_TOKENS // row), microbatches=2, window=256, trees=64)
    supervised: dict[str, Any] = {
        "packing": packing,
        "adapter": adapter,
        "evaluate_every": 50,
        "evaluate_trees": 64,
        "checkpoint_every": 25,
    }
    sft = supervised | {"optimizer": OptimizerConfig(learning_rate=2e-4 * rate, warmup_steps=10)}
    reward = supervised | {"optimizer": OptimizerConfig(learning_rate=1e-4 * rate, warmup_steps=10), "init": "policy"}
    offline = supervised | {"optimizer": OptimizerConfig(learning_rate=5e-5 * rate, warmup_steps=10)}
    rl: dict[str, Any] = {
        "steps": 100,
        "prompts": 16,
        "samples": 4,
        "beta": 0.05,
        "packing": dataclasses.replace(packing, microbatches=1),
        "adapter": adapter,
        "optimizer": OptimizerConfig(learning_rate=5e-5 * rate, warmup_steps=5),
        "rollout": RolloutConfig(slots=64, prefill_tokens=ROW_TOKENS),
        "evaluate_every": 25,
        "evaluate_prompts": 16,
        "checkpoint_every": 10,
    }
    # A group holds all trees in which the samples of a prompt are scored.
    rows = sizes.rows(scored_tree(rl["samples"], "symmetric"))
    wide = dataclasses.replace(rl["packing"], rows=max(rl["packing"].rows, rows))
    improver = rl | {"gap": "symmetric", "beta": 0.025, "packing": wide}
    # A sliding window that no path outgrows costs nothing, if it is known.
    shape = model.config if model.config.window is None else dataclasses.replace(model.config, longest_path=sizes.path)
    return RunConfig(
        name="chat",
        data=DataConfig(task=None),
        windows=sizes.windows,
        base=BaseConfig(path=str(model.path)),
        policy=shape,
        reward_model=shape,
        sft_policy=SftConfig(**sft),
        sft_improver=ImproverSftConfig(**sft),
        reward_quality=RewardConfig(**reward),
        reward_gap=GapConfig(**reward),
        reward_judge=RewardConfig(**reward),
        dpo=OfflineConfig(**offline),
        srpo=OfflineConfig(**offline),
        rl_policy=PolicyRlConfig(**rl),
        rl_improver_0=ImproverRlConfig(**improver),
        rl_improver_1=RewrittenRlConfig(**improver, anchor="init"),
        rl_improver_2=RewrittenRlConfig(**improver, anchor="init", passes=Passes(1, 1)),
        refresh=RefreshConfig(steps=50, packing=packing, adapter=adapter, optimizer=reward["optimizer"]),
        improve=ImproveConfig(gap="symmetric", batch=64, rollout=rl["rollout"]),
        evaluate=EvaluateConfig(prompts=200),
        workers=1,
    )


def smollm2(model: Pretrained, sizes: Sizes) -> RunConfig:
    """SmolLM2-135M-Instruct, or a model of its size, on two CPU cores: hours, resumable at any step.

    Needs: `--model` and `--data`, two CPU cores, 10 GiB of memory. Command: `pit run smollm2 --model FILE.gguf --data
    FOLDER`. Expect: every stage of the method on a pretrained model, not a helpful assistant.
    """
    config = chat(model, sizes.within(prompt=224, answer=128))
    # Products of bfloat16 take a fifth of the time where the processor has AMX; activations take half the memory.
    shape = dataclasses.replace(config.policy, compute_dtype="bfloat16")
    packing = dataclasses.replace(config.sft_policy.packing, rows=4, microbatches=2)
    supervised: dict[str, Any] = {
        "packing": packing,
        "evaluate_every": 20,
        "evaluate_trees": 32,
        "checkpoint_every": 10,
    }
    rl: dict[str, Any] = {
        "steps": 6,
        "evaluate_every": 3,
        "evaluate_prompts": 8,
        "checkpoint_every": 1,
    }
    steps = {"sft_policy": 40, "sft_improver": 40, "reward_quality": 60, "reward_gap": 60, "reward_judge": 30}
    sections: dict[str, Any] = {
        name: dataclasses.replace(getattr(config, name), steps=count, **supervised) for name, count in steps.items()
    }
    for name in ("rl_policy", "rl_improver_0", "rl_improver_1", "rl_improver_2"):
        sections[name] = dataclasses.replace(getattr(config, name), **rl)
    own = dataclasses.replace(packing, microbatches=1)
    sections["rl_policy"] = dataclasses.replace(sections["rl_policy"], packing=own)
    sections["refresh"] = dataclasses.replace(config.refresh, packing=packing)
    return dataclasses.replace(
        config,
        name="smollm2",
        base=dataclasses.replace(config.base, dtype="bfloat16"),
        policy=shape,
        reward_model=shape,
        **sections,
        improve=dataclasses.replace(config.improve, iterations=2),
        evaluate=dataclasses.replace(config.evaluate, prompts=96, examples=4),
    )


def parameters(model: Pretrained) -> int:
    """Return the number of parameters of a model."""
    return sum(math.prod(weight.shape) for weight in model.shape.weights)


def from_model(config: RunConfig, model: Pretrained) -> RunConfig:
    """Return a config whose models start from a pretrained one, in the place of random weights.

    A model that was exported from a run with PIT's own tokenizer brings that tokenizer.
    """
    shape = dataclasses.replace(
        model.config, compute_dtype=config.policy.compute_dtype, remat=config.policy.remat, longest_path=None
    )
    base = dataclasses.replace(config.base, path=str(model.path))
    tokenizer = config.tokenizer
    if has_role_tokens(model):
        tokenizer = TokenizerConfig(str(model.path / TOKENIZER))
    return dataclasses.replace(config, base=base, policy=shape, reward_model=shape, tokenizer=tokenizer)
