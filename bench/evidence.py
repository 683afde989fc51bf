"""The evidence for PIT: does the improver improve, why, and by how much more than what the same tokens buy instead?

Run: `python bench/evidence.py --explore --plan`, then without `--plan`, and at last `--final`. What is said of each
prompt of one (family, seed, variant) is one file in bench/results/evidence, made once and committed: the same command
goes on where it was, on any machine, and tables, plots and bench/results/evidence.json are made of what is there.
`--final` has seeds, and so prompts and data, that no choice was made on. `--small` runs all code in minutes, shows
nothing, and writes nothing outside the work folder.
"""

import argparse
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from _evidence.gates import GATED, gates
from _evidence.markdown import each
from _evidence.markdown import tables as markdown
from _evidence.plots import plot, plot_curves
from _evidence.summary import summary, unshared
from _evidence.trials import trial
from _evidence.variants import (
    EXPLORE_SEEDS,
    FAMILIES,
    FINAL_SEEDS,
    MAIN,
    VARIANTS,
    config_of,
    identity,
    planned,
    stages_for,
)
from _measure import commit
from pit.config import digest
from pit.data.atomic import write_file
from pit.evaluate.collect import versions
from pit.stages.context import STAGES
from pit_kernels.microbench.tables import write_place

ROOT = Path(__file__).parents[1]
Trial = tuple[str, int, str]
"""Family, seed and variant."""

ANSWER_HOURS = {True: 0.10, False: 0.02}
"""A guess, until the first trial is timed: hours of sampling and scoring at 1,000 prompts, with rivals and without."""


def seconds_a_step() -> dict[str, float]:
    """Of each kind of stage, as bench/results/demo.json has it of its first seed, compiling included."""
    stages = json.loads((ROOT / "bench" / "results" / "demo.json").read_text(encoding="utf-8"))["runs"][0]["stages"]
    known = {name: record["seconds"] / record["steps"] for name, record in stages.items()}
    return {name: known.get(name, known["rl-second"]) for name in STAGES}


def plan(trials: Sequence[Trial], results: Path, *, small: bool) -> Table:
    """What will run and how long it may take; stages that two variants share count once."""
    seen: set[str] = set()
    rates, total = seconds_a_step(), 0.0
    table = Table("family", "seed", "variant", "trains", "hours", title="Evidence: what will run")
    for family, seed, variant in trials:
        config = config_of(family, variant, seed, small=small)
        new = {name: identity(config, name) for name in stages_for(config, variant)}
        new = {name: key for name, key in new.items() if key not in seen}
        seen |= set(new.values())
        if result_file(results, family, seed, variant).is_file():
            table.add_row(family, str(seed), variant, "done", "0")
            continue
        steps = {name: getattr(config, STAGES[name].section).steps for name in new}
        hours = sum(rates[name] * count for name, count in steps.items()) / 3600
        hours += ANSWER_HOURS[variant == MAIN[family]] * config.evaluate.prompts / 1000
        total += hours
        table.add_row(family, str(seed), variant, ", ".join(f"{n} {c}" for n, c in steps.items()), f"{hours:.2f}")
    table.caption = f"{total:.1f} hours one after another on the machine of bench/results/demo.json"
    return table


def result_file(results: Path, family: str, seed: int, variant: str) -> Path:
    """Where the result of one trial is kept."""
    return results / f"{family}-{seed}-{variant}.json.gz"


def result_of(file: Path) -> dict[str, Any]:
    """The result of a finished trial."""
    return dict(json.loads(gzip.decompress(file.read_bytes())))


def run_all(trials: Sequence[Trial], work: Path, results: Path, console: Console, *, small: bool) -> None:
    """Every trial that has no result yet; each says of which commit it is."""
    measured = commit()
    # Seeds run the same programs: the first one compiles them.
    jax.config.update("jax_compilation_cache_dir", str(work / "xla"))
    for family, seed, variant in trials:
        file, config = result_file(results, family, seed, variant), config_of(family, variant, seed, small=small)
        if file.is_file():
            if result_of(file)["config"] != digest(config):
                raise SystemExit(f"{file}: was made with another config; remove it to have it made anew")
            continue
        folder = work / family / str(seed) / variant
        folder.mkdir(parents=True, exist_ok=True)
        result = {"commit": measured, **trial(folder, family, variant, config, console.print)}
        file.parent.mkdir(parents=True, exist_ok=True)
        # No time of day in it: equal results are equal bytes.
        write_file(file, gzip.compress(json.dumps(result).encode(), mtime=0))


def gathered(results: Path, family: str, seeds: Sequence[int], *, small: bool) -> dict[tuple[int, str], Any]:
    """The results that are there, but for those of other settings than the variant has now."""
    found = {}
    for seed in seeds:
        for variant in VARIANTS:
            file = result_file(results, family, seed, variant)
            if file.is_file():
                result = result_of(file)
                if result["config"] == digest(config_of(family, variant, seed, small=small)):
                    found[seed, variant] = result
    return found


def tables_of(family: str, found: dict[str, Any]) -> list[Table]:
    """Of a family: what must hold, every comparison by seed and over all of them, and steps to the target."""
    judged = Table("must hold", "rule", "mean", "t-interval", "held", title=f"{family}: gates, points")
    for row in found["gates"]:
        held = {None: "needs two seeds", True: "yes", False: "no"}[row["held"]]
        judged.add_row(row["gate"], row["rule"], *figures(row), held)
    table = Table("comparison", "seeds", "mean", "t-interval", "SE", title=f"{family}: win rate minus lose rate")
    for text, row in found["comparisons"].items():
        seeds = each([value["value"] for value in row["seeds"].values()], "{:+.1f}".format)
        over = row.get("over_seeds", {})
        table.add_row(text, seeds, *figures(over), f"{over['standard_error']:.1f}" if over else "")
    aimed = found["steps_to_target"]
    steps = Table("variant", "each seed", title=f"{family}: RL steps to quality {aimed.get('target')}")
    for variant, by_seed in aimed.get("steps", {}).items():
        steps.add_row(variant, ", ".join("not reached" if step is None else str(step) for step in by_seed.values()))
    return [judged, table, steps] if found["gates"] else [table, steps]


def figures(row: dict[str, Any]) -> tuple[str, str]:
    """Mean and interval as a table has them, nothing where there are none."""
    return (f"{row['value']:+.1f}", f"[{row['low']:+.1f}, {row['high']:+.1f}]") if "value" in row else ("", "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, run what is missing, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--explore", dest="kind", action="store_const", const="explore", help="seeds to choose by")
    kind.add_argument("--final", dest="kind", action="store_const", const="final", help="fresh seeds, run once")
    parser.add_argument("--plan", action="store_true", help="only say what would run")
    parser.add_argument("--tables", action="store_true", help="run nothing, make tables and plots of what is there")
    parser.add_argument("--small", action="store_true", help="all code, nothing learned; two seeds")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these; one command a core, say")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "evidence", help="folder of the runs")
    options = parser.parse_args(arguments)
    console = Console(width=140)
    seeds: dict[str, tuple[int, ...]] = {
        family: EXPLORE_SEEDS if options.kind == "explore" else FINAL_SEEDS[family] for family in options.families
    }
    seeds = {family: own[:2] if options.small else own for family, own in seeds.items()}
    chosen = seeds
    if options.seeds is not None:
        chosen = {family: tuple(seed for seed in own if seed in options.seeds) for family, own in seeds.items()}
        if unknown := sorted(set(options.seeds).difference(*chosen.values())):
            parser.error(f"--seeds: {unknown} are none of --{options.kind}'s, which are {seeds}")
    trials = list(planned(chosen, options.variants))
    out = options.work if options.small else ROOT / "bench" / "results"
    results = out / "evidence"
    console.print(plan(trials, results, small=options.small))
    if options.plan:
        return
    if not options.tables:
        run_all(trials, options.work, results, console, small=options.small)
    publish(options, out, results, seeds, console)


def rounded(value: Any) -> Any:
    """Plain data with floats to four decimals: more is noise here."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def fill(page: Path, made: Mapping[str, str]) -> None:
    """Puts tables into those of their places that a page has."""
    for name, text in made.items():
        if f"<!-- {name}: begin -->" in page.read_text(encoding="utf-8"):
            write_place(page, name, text)


def publish(
    options: argparse.Namespace, out: Path, results: Path, seeds: Mapping[str, Sequence[int]], console: Console
) -> None:
    """Tables, plots and the summary: in the repository, or in the work folder where the run was small."""
    plots = options.work if options.small else ROOT / "docs"
    file = out / "evidence.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    measured: dict[str, Any] = {"versions": versions(), "device": device}
    found = dict(saved.get(options.kind, {}))  # families that were not asked for stay as they are
    for family in options.families:
        trials = gathered(results, family, seeds[family], small=options.small)
        if not trials:
            console.print(f"{family}: no results of these settings in {results}")
            continue
        if mixed := unshared(trials):
            raise SystemExit(
                f"{family}, seeds {mixed}: variants improve answers of different policies, so they do not share "
                "checkpoints as they should; remove those made elsewhere and run them anew beside the others' --work"
            )
        main = MAIN[family]
        passes = config_of(family, main, seeds[family][0], small=options.small).improve.iterations
        said = summary(trials, passes, main, gates(passes) if family == GATED else ())
        found[family] = rounded({**measured, "seeds": sorted({seed for seed, _ in trials}), **said})
        for table in tables_of(family, said):
            console.print(table)
        if any(variant == main for _, variant in trials):
            plot(trials, passes, main, plots / f"evidence-{family}-{options.kind}.png")
            plot_curves(trials, main, plots / f"evidence-{family}-{options.kind}-training.png")
        if options.kind == "final" and not options.small:
            fill(ROOT / "docs" / "evidence.md", markdown(family, found[family], passes))
    if found:
        saved[options.kind] = found
        write_file(file, (json.dumps(saved, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
