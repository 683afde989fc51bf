"""A pretrained language model that writes under verifiable constraints, which a hidden checker judges."""

import dataclasses
from typing import Any

from pit.config import DataConfig, ImproveConfig, OptimizerConfig, RunConfig
from pit.model.pretrained import Pretrained
from pit.recipes.chat_model import chat
from pit.recipes.lengths import LARGEST, Sizes
from pit.rl.reward import scored_tree

DATA = DataConfig(task="instruct", synthetic_rows=8_000)
"""The preferences of the recipe."""

ANSWER = 96
"""Largest window of an answer; the drafts of the family have at most 93 tokens of SmolLM2."""

IMPROVERS = ("rl_improver_0", "rl_improver_1", "rl_improver_2")
"""Sections of the RL stages of the improver."""


def instruct(model: Pretrained, sizes: Sizes) -> RunConfig:
    """Every stage of the method on a pretrained model under adapters, with labelled samples of its own before RL,1.

    Needs: `--model`, SmolLM2-135M-Instruct or a model of its size, two CPU cores, 10 GiB of memory, no data. Command:
    `pit run instruct --model FILE.gguf --out runs/instruct`. Steps are chosen for at most four hours at 400 tokens
    trained and 98 sampled per second; a whole run has not been timed. Expected score: not known yet.
    """
    sizes = sizes.within(prompt=LARGEST, answer=ANSWER)
    config = chat(model, sizes)
    # Products of bfloat16 take a fifth of the time where the processor has AMX; activations take half the memory.
    shape = dataclasses.replace(config.policy, compute_dtype="bfloat16")
    packing = dataclasses.replace(config.sft_policy.packing, rows=4, microbatches=2)
    supervised: dict[str, Any] = {
        "packing": packing,
        "evaluate_every": 30,
        "evaluate_trees": 32,
        "checkpoint_every": 15,
    }
    # The oracle judges; the judge model only has to exist.
    steps = {"sft_policy": 40, "sft_improver": 60, "reward_quality": 80, "reward_gap": 80, "reward_judge": 5}
    sections: dict[str, Any] = {
        name: dataclasses.replace(getattr(config, name), steps=count, **supervised) for name, count in steps.items()
    }
    # Few steps need high rates: after ten steps at 2e-3 SmolLM2's loss was 1.9 nats, at 4e-4 3.9; others are not tuned.
    for name in steps:
        rate = (10 if name.startswith("sft") else 5) * sections[name].optimizer.learning_rate
        optimizer = OptimizerConfig(learning_rate=rate, warmup_steps=5)
        sections[name] = dataclasses.replace(sections[name], optimizer=optimizer)
    rl: dict[str, Any] = {"prompts": 8, "evaluate_every": 15, "evaluate_prompts": 16, "checkpoint_every": 5}
    # The policy gets as many steps as the improver.
    steps = {"rl_policy": 60, "rl_improver_0": 30, "rl_improver_1": 30, "rl_improver_2": 30}
    rows = {"rl_policy": 4, **dict.fromkeys(IMPROVERS, max(4, sizes.rows(scored_tree(4, "symmetric"))))}
    for name, count in steps.items():
        own = getattr(config, name)
        sections[name] = dataclasses.replace(
            own,
            steps=count,
            packing=dataclasses.replace(own.packing, rows=rows[name]),
            optimizer=dataclasses.replace(own.optimizer, learning_rate=2 * own.optimizer.learning_rate),
            **rl,
        )
    sections["refresh"] = dataclasses.replace(config.refresh, prompts=256, steps=20, pairs=16, **supervised)
    improve = ImproveConfig(iterations=5, temperature=0.8, gap="symmetric", batch=64, rollout=config.rl_policy.rollout)
    return dataclasses.replace(
        config,
        name="instruct",
        data=DATA,
        base=dataclasses.replace(config.base, dtype="bfloat16"),
        policy=shape,
        reward_model=shape,
        **sections,
        improve=improve,
        evaluate=dataclasses.replace(config.evaluate, prompts=200, sensitivity_prompts=16, gate="warn"),
    )
