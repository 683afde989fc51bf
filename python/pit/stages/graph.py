"""The stages of a run in order: Algorithm 1 of the paper, a judge that no other stage uses, and optional stages.

The pipeline, the plan and the command line follow this tuple; adding a stage is a file and a line here.
"""

from pit.config import RunConfig
from pit.run.stage import Job, Stage
from pit.stages import offline, refresh, reward, rl, rl_again, rl_iterated, sft

GRAPH: tuple[Job, ...] = (
    sft.POLICY,
    sft.IMPROVER,
    reward.QUALITY,
    reward.GAP,
    reward.JUDGE,
    rl.POLICY,
    rl.IMPROVER_0,
    refresh.PAIRS,
    refresh.QUALITY,
    refresh.GAP,
    rl_iterated.IMPROVER_1,
    rl_iterated.IMPROVER_2,
    rl_again.POLICY_AGAIN,
    offline.POLICY,
    offline.IMPROVER,
)

STAGES = tuple(job for job in GRAPH if isinstance(job, Stage))
"""The training stages of the graph, whether or not a run includes them."""

IMPROVERS = (rl.IMPROVER_0, rl_iterated.IMPROVER_1, rl_iterated.IMPROVER_2)
"""The RL stages of the improver in order."""


def jobs_of(config: RunConfig) -> tuple[Job, ...]:
    """Return the jobs that a run includes, in order."""
    return tuple(job for job in GRAPH if job.included(config))


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Return the training stages that a run includes, in order."""
    return tuple(stage for stage in STAGES if stage.included(config))


def stage_named(name: str) -> Stage | None:
    """Return the stage of a name, as commands and folders have it; None if there is none."""
    return next((stage for stage in STAGES if stage.name == name), None)


def improver_of(config: RunConfig) -> Stage:
    """Return the last RL stage of the improver: the one that answers at inference."""
    return [stage for stage in IMPROVERS if stage.included(config)][-1]
