"""Families and variants that the evidence compares; variants of a run share all checkpoints they can."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pit.config import RunConfig, WindowConfig, digest, override
from pit.recipes import recipe
from pit.run.stage import Stage
from pit.stages import reward, rl, rl_iterated, sft
from pit.stages.graph import IMPROVERS, stages_of

Trials = Mapping[tuple[int, str], Mapping[str, Any]]
"""Results by (seed, variant), of one family."""

FAMILIES = ("describe", "relay")
"""Families; the recipe of each has its name."""

EXPLORE_SEEDS = (100, 101, 102)
FINAL_SEEDS = {"describe": (*range(205, 210), *range(235, 275)), "relay": tuple(range(225, 235))}
"""Seeds that are reported; a seed names data, prompts, initialisation and sampling, and none of them was explored on.

describe: seeds 200 to 204 ran with KL coefficients of .4 and .1; the present ones were fixed before 205 to 209 ran.
Seeds from 235 were added in order, with nothing else changed, for the variants that those five left open, until the
standard errors of the best of 2, the best of 6 and more RLHF were at most 1.5 points. Only standard errors were read
for that, and 274 was the last.
relay: seeds 200 to 202, 210 and 220 to 223 were looked at, and the recipe was changed for what they showed. The present
recipe was fixed before any of seeds 225 to 234 ran."""


@dataclass(frozen=True)
class Variant:
    """One way to spend the improver's training.

    what: description in words, for the table.
    improver: stage whose model improves; None where only the policy is measured.
    settings: changes of the family's config. {n} stands for all RL steps of the improver, which {first} and {half}, or
        {rest} and twice {third}, divide; {policy} for the policy's steps plus {n}; {few} for the number of examples
        that makes training use each of them four times.
    of: variant that this one changes in one point; it is compared with that one too, not only with the family's main
        variant. None for no other.
    """

    what: str
    improver: Stage | None
    settings: tuple[str, ...] = ()
    of: str | None = None


MAIN = {"describe": "staged", "relay": "first_only"}
"""Main variant of each family: the one that its recipe trains, whose rivals at inference are measured too."""

_POLICY_ONLY = tuple(f"rl_improver_0.sources.{source}" for source in ("worse=0", "better=0", "policy=1"))
_HALVES = ("references=policy", "rl_improver_0.steps={first}", "rl_improver_1.steps={half}")
_MIXED = ("references=data", "rl_improver_0.steps={n}", "rl_improver_0.sources.policy=2")

VARIANTS: dict[str, Variant] = {
    "staged": Variant("RL,0 then RL,1 (the paper)", rl_iterated.IMPROVER_1, _HALVES),
    "first_only": Variant("RL,0 alone", rl.IMPROVER_0, ("references=data", "rl_improver_0.steps={n}")),
    "second_only": Variant(
        "RL,1 alone, from the fine-tuned improver",
        rl.IMPROVER_0,
        ("references=data", "rl_improver_0.steps={n}", *_POLICY_ONLY),
    ),
    "own": Variant(
        "RL,0, RL,1, RL,2 (own answers as references)",
        rl_iterated.IMPROVER_2,
        ("references=own", "rl_improver_0.steps={rest}", "rl_improver_1.steps={third}", "rl_improver_2.steps={third}"),
    ),
    "uniform": Variant("all references from the start", rl.IMPROVER_0, _MIXED),
    "adaptive": Variant(
        "the same, drawn by learnability",
        rl.IMPROVER_0,
        (*_MIXED, "rl_improver_0.curriculum.strategy=learnability", "rl_improver_0.curriculum.examples={few}"),
    ),
    "difference": Variant(
        "staged, rewarded by R_P's difference",
        rl_iterated.IMPROVER_1,
        (*_HALVES, "rl_improver_0.gap=difference", "rl_improver_1.gap=difference"),
        of="staged",
    ),
    "one_pair": Variant(
        "staged, with a gap model of its own that learned (w,l) > (l,w) alone",
        rl_iterated.IMPROVER_1,
        (*_HALVES, "reward_gap.ordered_pairs=one"),
        of="staged",
    ),
    "more_rlhf": Variant("no improver: its steps go to the policy", None, ("rl_policy.steps={policy}",)),
}


def base_config(family: str, seed: int, *, small: bool) -> RunConfig:
    """Return the config that a family's variants change; `small` runs all code and shows nothing."""
    full = recipe(family)
    if not small:
        return override(full, [f"seed={seed}", "evaluate.gate=warn"])
    settings = [f"{stage.section}.{setting}" for stage in IMPROVERS for setting in ("gap=symmetric", "steps=3")]
    tiny = override(recipe("tiny"), [f"seed={seed}", f"data.task={family}", *settings])
    windows = WindowConfig(full.windows.input, full.windows.reference, full.windows.output)
    return dataclasses.replace(tiny, windows=windows)


def config_of(family: str, variant: str, seed: int, *, small: bool = False) -> RunConfig:
    """Return the config of one variant: as many RL steps of the improver as the family's recipe has, however spent."""
    base = base_config(family, seed, small=small)
    steps = sum(stage.settings(base).steps for stage in IMPROVERS if stage.included(base))
    words = {
        "n": steps,
        "first": steps - steps // 2,
        "half": steps // 2,
        "rest": steps - 2 * (steps // 3),
        "third": steps // 3,
        "policy": base.rl_policy.steps + steps,
        "few": steps * base.rl_improver_0.prompts // 4,
    }
    return override(base, [setting.format(**words) for setting in VARIANTS[variant].settings])


def stages_for(config: RunConfig, variant: str) -> tuple[Stage, ...]:
    """Return the stages of a variant in order: its improver's with all that they need, the policy and both rewards."""
    wanted: list[Stage] = [sft.POLICY, sft.IMPROVER, reward.QUALITY, reward.GAP, rl.POLICY]
    improver = VARIANTS[variant].improver
    wanted += [improver] if improver else []
    needed: set[Stage] = set()
    while wanted:
        stage = wanted.pop()
        if stage not in needed:
            needed.add(stage)
            wanted += [job for job in stage.needs(config) if isinstance(job, Stage)]
    return tuple(stage for stage in stages_of(config) if stage in needed)


def identity(config: RunConfig, stage: Stage) -> str:
    """Return a digest that two variants of a stage share exactly when they train the same; it is then trained once."""
    needs = {role: identity(config, need) for role, need in stage.inputs(config).items()}
    return digest(
        stage.name,
        config.seed,
        stage.settings(config),
        stage.trains.config(config),
        config.data,
        config.windows,
        needs,
    )


def planned(seeds: Mapping[str, Sequence[int]], variants: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yield every (family, seed, variant), the main one of a seed first: the others take over its checkpoints."""
    for family, chosen in seeds.items():
        for seed in chosen:
            for variant in sorted(variants, key=[MAIN[family], *VARIANTS].index):
                yield family, seed, variant
