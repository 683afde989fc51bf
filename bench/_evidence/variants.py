"""What the evidence compares: families, and variants of a run that share all checkpoints they can."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pit.config import RunConfig, WindowConfig, digest, override
from pit.recipes import recipe
from pit.stages.context import STAGES, needs_of, stages_of

Trials = Mapping[tuple[int, str], Mapping[str, Any]]
"""Results by (seed, variant), of one family."""

FAMILIES = {"describe": "demo", "relay": "relay"}
"""Recipe of each family."""

EXPLORE_SEEDS = (100, 101, 102)
FINAL_SEEDS = {"describe": (*range(205, 210), *range(235, 275)), "relay": tuple(range(225, 235))}
"""A seed names data, prompts, initialisation and sampling: what was explored on is not what is reported of. Describe
ran on 200 to 204 with KL coefficients of .4 and .1; those of now were settled on before 205 to 209 ran. Seeds 235 on
were added in order, with nothing else changed, for the variants that those five left open, until the standard errors
of the best of 2, the best of 6 and more RLHF were at most 1.5 points, read off the standard errors alone: 274 was the
last.
Of relay seeds 200 to 202, 210 and 220 to 223 have been looked at, and its recipe was changed for what they showed; that
of seeds 225 to 234 is what was settled on before any of them ran."""


@dataclass(frozen=True)
class Variant:
    """One way to spend the improver's training.

    what: in words, for the table.
    improver: stage whose model improves; None where only the policy is measured.
    settings: changes of the family's config; {n} stands for all RL steps of the improver, {first} and {half},
        {rest} and twice {third} for its parts, {policy} for the policy's own steps and those together, {few} for so
        many examples that each is seen four times.
    of: the variant of which it changes one thing, held against it beside the family's main one; None for no other.
    """

    what: str
    improver: str | None
    settings: tuple[str, ...] = ()
    of: str | None = None


MAIN = {"describe": "staged", "relay": "first_only"}
"""Of each family the variant whose rivals at inference are measured too: the one that its recipe trains."""

IMPROVER_STAGES = ("rl-first", "rl-second", "rl-third")

_HALVES = ("references=policy", "rl_first.steps={first}", "rl_second.steps={half}")
_MIXED = ("references=data", "rl_first.steps={n}", "rl_first.sources=1,1,2")

VARIANTS: dict[str, Variant] = {
    "staged": Variant("RL,0 then RL,1 (the paper)", "rl-second", _HALVES),
    "first_only": Variant("RL,0 alone", "rl-first", ("references=data", "rl_first.steps={n}")),
    "second_only": Variant(
        "RL,1 alone, from the fine-tuned improver",
        "rl-first",
        ("references=data", "rl_first.steps={n}", "rl_first.sources=0,0,1"),
    ),
    "own": Variant(
        "RL,0, RL,1, RL,2 (own answers as references)",
        "rl-third",
        ("references=own", "rl_first.steps={rest}", "rl_second.steps={third}", "rl_third.steps={third}"),
    ),
    "uniform": Variant("all references from the start", "rl-first", _MIXED),
    "adaptive": Variant(
        "the same, drawn by learnability",
        "rl-first",
        (*_MIXED, "rl_first.curriculum.strategy=learnability", "rl_first.curriculum.examples={few}"),
    ),
    "difference": Variant(
        "staged, rewarded by R_P's difference",
        "rl-second",
        (*_HALVES, "rl_first.gap=difference", "rl_second.gap=difference"),
        of="staged",
    ),
    "one_pair": Variant(
        "staged, with a gap model of its own that learned (w,l) > (l,w) alone",
        "rl-second",
        (*_HALVES, "gap.ordered_pairs=one"),
        of="staged",
    ),
    "more_rlhf": Variant("no improver: its steps go to the policy", None, ("rl_policy.steps={policy}",)),
}


def base_config(family: str, seed: int, *, small: bool) -> RunConfig:
    """The config that a family's variants change; `small` runs all code and shows nothing.

    RL of an improver keeps all its checkpoints: steps to a target are counted by them.
    """
    full = recipe(FAMILIES[family])
    kept = [f"{STAGES[name].section}.keep=100" for name in IMPROVER_STAGES]
    if not small:
        return override(full, [f"seed={seed}", "evaluate.gate=warn", *kept])
    gap = ["rl_first.gap=symmetric", "rl_second.gap=symmetric", "rl_third.gap=symmetric"]
    steps = [f"{section}.steps=3" for section in ("rl_first", "rl_second", "rl_third")]
    tiny = override(recipe("tiny"), [f"seed={seed}", f"data.task={family}", *kept, *gap, *steps])
    windows = WindowConfig(full.windows.input, full.windows.reference, full.windows.output)
    return dataclasses.replace(tiny, windows=windows)


def config_of(family: str, variant: str, seed: int, *, small: bool = False) -> RunConfig:
    """The config of one variant: as many RL steps of the improver as the family's recipe has, however spent."""
    base = base_config(family, seed, small=small)
    steps = sum(getattr(base, STAGES[name].section).steps for name in stages_of(base) if name in IMPROVER_STAGES)
    words = {
        "n": steps,
        "first": steps - steps // 2,
        "half": steps // 2,
        "rest": steps - 2 * (steps // 3),
        "third": steps // 3,
        "policy": base.rl_policy.steps + steps,
        "few": steps * base.rl_first.prompts // 4,
    }
    return override(base, [setting.format(**words) for setting in VARIANTS[variant].settings])


def stages_for(config: RunConfig, variant: str) -> tuple[str, ...]:
    """Stages that a variant needs, in order: its improver's and all that those need, the policy and both rewards."""
    wanted = ["sft-policy", "sft-improver", "reward-quality", "reward-gap", "rl-policy"]
    improver = VARIANTS[variant].improver
    wanted += [improver] if improver else []
    needed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed.add(name)
            wanted += needs_of(name, config)
    return tuple(name for name in STAGES if name in needed)


def identity(config: RunConfig, stage: str) -> str:
    """Equal for stages of two variants that are the same training, so that it is done once."""
    spec = STAGES[stage]
    needs = [identity(config, need) for need in needs_of(stage, config)]
    return digest(
        stage,
        config.seed,
        getattr(config, spec.section),
        getattr(config, spec.model),
        config.data,
        config.windows,
        needs,
    )


def planned(seeds: Mapping[str, Sequence[int]], variants: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Every (family, seed, variant), the main one of a seed first: the others take over its checkpoints."""
    for family, own in seeds.items():
        for seed in own:
            for variant in sorted(variants, key=[MAIN[family], *VARIANTS].index):
                yield family, seed, variant
