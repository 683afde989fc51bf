"""The first two RL stages: M_P against R_P, and the improver over references from the data (PIT, algorithm 1)."""

from pit.config import ImproverRlConfig, PolicyRlConfig, RewrittenRlConfig
from pit.run.stage import Role, Stage
from pit.stages import reward, sft
from pit.stages.reinforced import rl_stage


def policy_inputs(settings: PolicyRlConfig, start: Stage, quality: Stage) -> dict[Role, Stage]:
    """Return the inputs of an RL stage of the policy.

    Args:
        settings: its config section.
        start: stage that it starts from, its anchor where the config says "init".
        quality: R_P, the reward where it has a weight.
    """
    inputs: dict[Role, Stage] = {"start": start, "anchor": sft.POLICY if settings.anchor == "sft" else start}
    return {**inputs, "reward": quality} if settings.reward.model_weight else inputs


POLICY = rl_stage(
    name="rl-policy",
    title="M_P^RL against R_P",
    section="rl_policy",
    inputs=lambda config: policy_inputs(config.rl_policy, sft.POLICY, reward.QUALITY),
)


def improver_inputs(settings: ImproverRlConfig, start: Stage, quality: Stage, gap: Stage) -> dict[Role, Stage]:
    """Return the inputs of an RL stage of the improver.

    Args:
        settings: its config section.
        start: stage that it starts from, its anchor where the config says "init", and the rewriter of its references.
        quality: R_P, the reward of the ablation without a gap model, and the judge of drafts.
        gap: R_PIT, the reward otherwise.
    """
    inputs: dict[Role, Stage] = {
        "start": start,
        "anchor": sft.IMPROVER if settings.anchor == "sft" else start,
    }
    if settings.reward.model_weight:
        inputs["reward"] = quality if settings.gap == "difference" else gap
    if settings.policy_references:
        inputs["writer"] = POLICY
    if isinstance(settings, RewrittenRlConfig) and settings.passes.most:
        inputs["rewriter"] = start
    if settings.drafts > 1:
        inputs["ranker"] = quality
    return inputs


IMPROVER_0 = rl_stage(
    name="rl-improver-0",
    title="RL,0: references from the data",
    section="rl_improver_0",
    inputs=lambda config: improver_inputs(config.rl_improver_0, sft.IMPROVER, reward.QUALITY, reward.GAP),
)
