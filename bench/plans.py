"""Plans of the recipe `paper` for slices of 32 chips, and of Llama-3-8B with adapters: does every stage fit?

    python bench/plans.py [--full]

`--full` compiles all stages for every slice and writes bench/results/plan-GENERATION.json, about ten minutes of one
core each, then those of Llama-3-8B on 16 chips of 16 GB. Otherwise one stage of `tiny` is planned. `table` and
`adapters_table` make the rows of docs/guides/plan.md from the files.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from pit.cli import main as pit

RESULTS = Path(__file__).parent / "results"

SHAPES = Path(__file__).parent / "shapes"

SLICES = ("v4:2x4x4", "v5e:4x8", "v5p:2x4x4", "v6e:4x8")
"""Slices of 32 chips, as the recipe's mesh of 1 x 8 x 4 has."""

LLAMA = "llama-3-8b"
"""Name of the plan with adapters, and of its shape: the fields of the model's config.json that a shape needs."""

LLAMA_SETTINGS = (
    "mesh.fsdp=4",
    "mesh.tensor=4",
    "base.dtype=bfloat16",
    *(f"{model}.compute_dtype=bfloat16" for model in ("policy", "reward_model")),
    *(f"{model}.remat=save_attention" for model in ("policy", "reward_model")),
)

SHOWN = ("reward-gap", "rl-improver-1")
"""Stages of the table: the gap model's, and the one that needs most."""


def file_of(target: str) -> Path:
    """Return the file of the plan for a slice."""
    return RESULTS / f"plan-{target.partition(':')[0]}.json"


def table() -> list[str]:
    """Return a row of Markdown per committed plan and shown stage."""
    rows = []
    for target in SLICES:
        if file_of(target).exists():
            plan = json.loads(file_of(target).read_text(encoding="utf-8"))
            limit = plan["chip"]["hbm_bytes"] / 2**30
            rows += [_row(target, limit, stage) for stage in plan["stages"] if stage["name"] in SHOWN]
    return rows


def adapters_table() -> list[str]:
    """Return a row of Markdown per stage of the committed plan with adapters."""
    plan = json.loads(file_of(LLAMA).read_text(encoding="utf-8"))
    return [_row(plan["target"], plan["chip"]["hbm_bytes"] / 2**30, stage) for stage in plan["stages"]]


def _row(target: str, limit: float, stage: dict[str, Any]) -> str:
    update = next(program for program in stage["programs"] if program["name"].startswith("gradient"))
    cells = (
        f"`{target}`",
        f"`{stage['name']}`",
        f"{stage['peak'] / 2**30:.1f} of {limit:.1f} GiB ({stage['during']})",
        f"{stage['spare']:.0%}",
        f"{stage['code'] / 2**20:.0f} MiB",
        f"{update['sent'] / 2**30:.1f} GiB",
        f"{update['floor_s'] * 1e3:.0f} ms ({update['bound']})",
    )
    return f"| {' | '.join(cells)} |"


def seconds(plan: dict[str, Any]) -> float:
    """Return the time of a plan's compilations; programs of several stages were compiled once."""
    programs = (program for stage in plan["stages"] for program in stage["programs"])
    return float(sum(program["compile_s"] for program in programs if program["same_as"] is None))


def main() -> None:
    """Plan, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the recipe paper on every slice")
    parser.add_argument("--slices", nargs="+", choices=(*SLICES, LLAMA), help="plans of --full [all]")
    options = parser.parse_args()
    if options.full:
        for target in options.slices or (*SLICES, LLAMA):
            which = ["paper", "--target", target]
            if target == LLAMA:
                settings = [word for setting in LLAMA_SETTINGS for word in ("--set", setting)]
                which = ["chat", "--model", str(SHAPES / LLAMA), "--target", "v5e:4x4", *settings]
            pit(["plan", *which, "--json", str(file_of(target))])
        print(*table(), *adapters_table(), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        mesh = ["--set", "mesh.fsdp=4"]
        pit(["plan", "tiny", "--target", "v5e:2x2", *mesh, "--stage", "reward-gap", "--json", str(path)])
        plan = json.loads(path.read_text(encoding="utf-8"))
    (stage,) = plan["stages"]
    print(f"reward-gap of tiny on v5e:2x2: {stage['peak'] / 2**20:.0f} MiB per chip, compiled in {seconds(plan):.0f} s")


if __name__ == "__main__":
    main()
