"""Metrics of an RL step, under the names that TRL's users know; `pit.train.catalogue` explains each."""

import numpy as np
from jaxtyping import Float32

from pit.config import ImproverRlConfig, RlConfig
from pit.rl.controllers import Controllers
from pit.rl.records import Measures, Rollout


def metrics(
    config: RlConfig,
    rollout: Rollout,
    scores: Float32[np.ndarray, "G N"],
    measures: Measures,
    control: Controllers,
) -> dict[str, float]:
    """Return the metrics of one rollout.

    Args:
        config: section of the stage.
        rollout: the samples.
        scores: their scores by the reward.
        measures: their KL, entropy and shaped rewards.
        control: KL coefficient and scale of the step.
    """
    samples, references = rollout.samples, rollout.prompts.references
    length, logp_gap = samples.length, measures.logp_gap_nats[rollout.sampled]
    deviation = scores.std(axis=1)
    values = {
        "objective/reward": scores.mean(),
        "objective/rlhf_reward": measures.reward.mean(),
        "objective/non_score_reward": (measures.reward - scores / np.float32(control.scores.deviation)).mean(),
        "objective/kl": measures.kl_nats.mean(),
        "objective/kl_penalty": measures.penalty_nats.mean(),
        "objective/kl_coef": control.beta,
        "objective/entropy": measures.entropy_nats.mean(),
        "rewards/std": deviation.mean(),
        "rewards/zero_std_ratio": (deviation == 0).mean(),
        "completions/mean_length": length.mean(),
        "completions/min_length": length.min(),
        "completions/max_length": length.max(),
        "completions/clipped_ratio": 1.0 - samples.finished.mean(),
        "rollout/slot_fill": samples.fill,
        "rollout/logp_gap_nats_mean": logp_gap.mean(),
        "rollout/logp_gap_nats_max": logp_gap.max(),
    }
    if references is not None:
        values["rollout/copy_rate"] = np.mean([column.equal(references) for column in rollout.outputs])
    if isinstance(config, ImproverRlConfig) and config.gap != "raw":
        values |= {"rewards/margin": scores.mean(), "rewards/accuracy": (scores > 0).mean()}
    return {name: float(value) for name, value in values.items()}
