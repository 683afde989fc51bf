"""More RLHF for the policy, a rival of the improver: it takes RL,1's extra steps, and with anchor=init its new anchor.

From RL,0 to RL,1 the improver trains longer, and may get a new anchor on the way. What that is worth without references
and gaps shows a policy that has the same.
"""

from pit.stages import refresh, rl
from pit.stages.reinforced import rl_stage

POLICY_AGAIN = rl_stage(
    name="rl-policy-again",
    title="M_P^RL once more against R_P, a rival of the improver",
    section="rl_policy",
    inputs=lambda config: rl.policy_inputs(config.rl_policy, rl.POLICY, refresh.last_quality(config)),
    included=lambda config: config.rlhf == "again",
    option="rlhf=again",
)
