"""RL of the improver over answers of the models: M_P^RL's own (RL,1), and those rewritten by RL,1 (RL,2)."""

from pit.stages import refresh
from pit.stages.reinforced import rl_stage
from pit.stages.rl import IMPROVER_0, improver_inputs

IMPROVER_1 = rl_stage(
    name="rl-improver-1",
    title="RL,1: references sampled from M_P^RL",
    section="rl_improver_1",
    inputs=lambda config: improver_inputs(
        config.rl_improver_1, IMPROVER_0, refresh.last_quality(config), refresh.last_gap(config)
    ),
    included=lambda config: config.references != "data",
    option="references=policy",
)

IMPROVER_2 = rl_stage(
    name="rl-improver-2",
    title="RL,2: references rewritten by RL,1",
    section="rl_improver_2",
    inputs=lambda config: improver_inputs(
        config.rl_improver_2, IMPROVER_1, refresh.last_quality(config), refresh.last_gap(config)
    ),
    included=lambda config: config.references == "own",
    option="references=own",
)
