"""The second synthetic family, on which a second look has a reason to help: each pass can go one hop further."""

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
    TrainConfig,
    WindowConfig,
)
from pit.recipes.demo import demo


def relay() -> RunConfig:
    """Every stage on 64,000 preferences of the relay, with RL,2 and a hidden oracle.

    A few layers can look up a hop or two a pass, so the policy cannot name the last person reached and the improver can
    go further than its draft. What the demo does not need: more fine-tuning steps, of fewer rows and at a higher rate,
    as the lookup is learned late; an R_PIT that starts from R_P; RL,2, as the passes after the first read the
    improver's own answers; as many updates of the policy as of the improver. Policy and improver have no heads that
    match equal words from the start: those find who passes to a name, and the way forward is to be learned; what
    leaving them out does was not measured apart.

    A starting point: the improver fine-tuned by it has been measured, docs/evidence.md says with what result; the whole
    recipe has not been run.

    Needs: two CPU cores, 3 GiB of memory, no download. Command: `pit run relay --out runs/relay`.
    """
    config = demo()
    rows = PackingConfig(row_length=512, rows=6, window=256, trees=128)

    def trained(section: TrainConfig, steps: int) -> TrainConfig:
        return dataclasses.replace(section, steps=steps, packing=rows)

    # An answer of the relay is short, and right ones often equal their reference: a copy is no sign of hacking here.
    return dataclasses.replace(
        config,
        name="relay",
        data=DataConfig(task="relay", synthetic_rows=64_000),
        windows=WindowConfig(input=36, reference=24, output=24),
        policy=dataclasses.replace(config.policy, layers=3, matched_heads=0),
        sft=dataclasses.replace(
            trained(config.sft, 4_000),
            packing=dataclasses.replace(rows, rows=3),
            optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=20),
        ),
        quality=trained(config.quality, 1_200),
        gap=trained(config.gap, 600),
        judge=trained(config.judge, 800),
        rl_policy=dataclasses.replace(config.rl_policy, steps=300),
        rl_first=dataclasses.replace(config.rl_first, steps=150),
        rl_second=dataclasses.replace(config.rl_second, steps=75),
        rl_third=dataclasses.replace(config.rl_third, steps=75),
        own_references=True,
        board=BoardConfig(copy_rate=Limit(0.95), similar_share=Limit(0.95)),
        improve=ImproveConfig(iterations=5, gap="symmetric", threshold=0.25, batch=250),
        evaluate=EvaluateConfig(prompts=1000, gate="warn"),
    )
