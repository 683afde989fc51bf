"""The evidence for PIT: does the improver improve answers, and by how much more than the same tokens buy otherwise?

    python bench/study_evidence.py plan                     # what would run, with hours
    python bench/study_evidence.py run --families relay     # train and measure what is missing; may be interrupted
    python bench/study_evidence.py tables                   # print all figures; write them to WORK/evidence.json
    python bench/study_evidence.py pack                     # move finished trials into the archives and the CSV file
    python bench/study_evidence.py pages                    # tables and plots of the pages, from the CSV file alone

This is a study of days, so `make bench` does not run it. A trial is one (family, seed, variant). Its result stays in
WORK/results until `pack` adds it to bench/results/evidence/FAMILY.tar.xz; bench/results/evidence.csv has the figures
per seed that the pages need. `--explore` uses the seeds on which recipes were chosen, other commands the fresh ones.
`--small` runs all code in minutes, shows nothing, and writes nothing outside WORK.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from _evidence import markdown, pages, per_seed
from _evidence.archive import add_members, archive_of, member_name, read_trials
from _evidence.gates import GATED, gates
from _evidence.plots import plot
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
from pit.atomic import write_file
from pit.config import digest
from pit.evaluate.collect import versions
from pit.stages.graph import STAGES
from pit_kernels.microbench.tables import write_place

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
STUDIES = ROOT / "docs" / "studies"
Trial = tuple[str, int, str]
"""Family, seed and variant."""

Results = dict[tuple[int, str], dict[str, Any]]
"""Results of one family by (seed, variant)."""

ANSWER_HOURS = {True: 0.10, False: 0.02}
"""Hours of sampling and scoring at 1,000 prompts, with rivals (True) and without: an estimate."""


def seconds_per_step() -> dict[str, float]:
    """Return seconds per step of each stage in the first run of bench/results/demo.json, compilation included."""
    stages = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))["runs"][0]["stages"]
    known = {name: record["seconds"] / record["steps"] for name, record in stages.items()}
    slowest = max(known.values())
    return {stage.name: known.get(stage.name, slowest) for stage in STAGES}


def plan(trials: Sequence[Trial], finished: Mapping[str, Results], *, small: bool) -> Table:
    """Return the trials with an estimate of their hours; stages that variants share count once."""
    counted: set[str] = set()
    rates, total = seconds_per_step(), 0.0
    table = Table("family", "seed", "variant", "trains", "hours", title="Evidence: trials")
    for family, seed, variant in trials:
        config = config_of(family, variant, seed, small=small)
        new = {stage: identity(config, stage) for stage in stages_for(config, variant)}
        new = {stage: key for stage, key in new.items() if key not in counted}
        counted |= set(new.values())
        if (seed, variant) in finished[family]:
            table.add_row(family, str(seed), variant, "finished", "0")
            continue
        steps = {stage.name: stage.settings(config).steps for stage in new}
        hours = sum(rates[name] * count for name, count in steps.items()) / 3600
        hours += ANSWER_HOURS[variant == MAIN[family]] * config.evaluate.prompts / 1000
        total += hours
        table.add_row(family, str(seed), variant, ", ".join(f"{n} {c}" for n, c in steps.items()), f"{hours:.2f}")
    table.caption = f"{total:.1f} hours in sequence, on the machine of bench/results/demo.json"
    return table


def loose_of(work: Path, family: str) -> dict[str, bytes]:
    """Return the results of a work folder that are not packed yet, by member name."""
    return {path.name: path.read_bytes() for path in sorted((work / "results").glob(f"{family}-*.json"))}


def results_of(work: Path, family: str, seeds: Sequence[int], *, small: bool) -> Results:
    """Return all results of the chosen seeds: the archive's, unless the run is small, and the work folder's.

    Raises:
        SystemExit: variants of a seed do not share the checkpoints that they should share, or a result of the work
            folder was made with another config than its variant has now.
    """
    results = {} if small else read_trials(archive_of(RESULTS / "evidence", family))
    for name, content in loose_of(work, family).items():
        result = json.loads(content)
        seed, variant = result["seed"], result["variant"]
        if seed in seeds and result["config"] != digest(config_of(family, variant, seed, small=small)):
            raise SystemExit(f"{work / 'results' / name}: was made with another config; remove it to run it again")
        results[seed, variant] = result
    chosen = {key: result for key, result in results.items() if key[0] in seeds}
    if mixed := unshared(chosen):
        raise SystemExit(
            f"{family}, seeds {mixed}: variants improve answers of different policies, so they do not share "
            f"checkpoints as they should; remove those made elsewhere and run them again in one folder, --work {work}"
        )
    return chosen


def run_missing(
    trials: Sequence[Trial], finished: Mapping[str, Results], work: Path, console: Console, *, small: bool
) -> None:
    """Train and measure every trial that has no result yet."""
    measured = commit()
    # Seeds run the same programs: the first one compiles them.
    jax.config.update("jax_compilation_cache_dir", str(work / "xla"))
    for family, seed, variant in trials:
        if (seed, variant) in finished[family]:
            continue
        config = config_of(family, variant, seed, small=small)
        folder = work / family / str(seed) / variant
        folder.mkdir(parents=True, exist_ok=True)
        result = {"commit": measured, **trial(folder, family, variant, config, console.print)}
        # No time of day in it: equal results are equal bytes.
        write_file(work / "results" / member_name(family, seed, variant), json.dumps(result).encode())


def tables_of(family: str, figures: dict[str, Any]) -> list[Table]:
    """Return a family's gates, and its comparisons by seed and over all seeds."""
    judged = Table("must hold", "rule", "mean", "t-interval", "held", title=f"{family}: gates, points")
    for row in figures["gates"]:
        held = {None: "needs two seeds", True: "yes", False: "no"}[row["held"]]
        judged.add_row(row["gate"], row["rule"], *mean_and_interval(row), held)
    table = Table("comparison", "seeds", "mean", "t-interval", "SE", title=f"{family}: win rate minus lose rate")
    for text, row in figures["comparisons"].items():
        seeds = markdown.per_seed([value["value"] for value in row["seeds"].values()], "{:+.1f}".format)
        over = row.get("over_seeds", {})
        table.add_row(text, seeds, *mean_and_interval(over), f"{over['standard_error']:.1f}" if over else "")
    return [judged, table] if figures["gates"] else [table]


def mean_and_interval(row: dict[str, Any]) -> tuple[str, str]:
    """Return mean and interval in two cells, empty ones where there are no figures."""
    return (f"{row['value']:+.1f}", f"[{row['low']:+.1f}, {row['high']:+.1f}]") if "value" in row else ("", "")


def rounded(value: Any) -> Any:
    """Return plain data with floats rounded to four decimals; more would be noise."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def fill(page: Path, texts: Mapping[str, str]) -> None:
    """Write tables into their marked places of a page; tables without a place there are left out."""
    for name, text in texts.items():
        if f"<!-- {name}: begin -->" in page.read_text(encoding="utf-8"):
            write_place(page, name, text)


def passes_of(family: str, *, small: bool) -> int:
    """Return the passes of a family's main variant."""
    return config_of(family, MAIN[family], FINAL_SEEDS[family][0], small=small).improve.iterations


def tell_tables(results: Mapping[str, Results], work: Path, console: Console, *, small: bool, final: bool) -> None:
    """Print all figures, write them to WORK/evidence.json, and fill the detailed tables of the history page."""
    summaries: dict[str, Any] = {"versions": versions()}
    for family, trials in results.items():
        if not trials:
            console.print(
                f"{family}: no results; make them with python bench/study_evidence.py run --families {family}"
            )
            continue
        passes = passes_of(family, small=small)
        figures = rounded(summary(trials, passes, MAIN[family], gates(passes) if family == GATED else ()))
        summaries[family] = figures
        for table in tables_of(family, figures):
            console.print(table)
        if final and not small:
            fill(STUDIES / "history.md", markdown.tables(family, figures, passes))
    write_file(work / "evidence.json", (json.dumps(summaries, indent=1) + "\n").encode())


def pack(families: Sequence[str], work: Path, console: Console) -> None:
    """Add the loose results of fresh seeds to the archives, and count the CSV file again."""
    by_family = {}
    for family in FAMILIES:
        archive = archive_of(RESULTS / "evidence", family)
        if family in families:
            loose = loose_of(work, family)
            chosen = {name: text for name, text in loose.items() if json.loads(text)["seed"] in FINAL_SEEDS[family]}
            console.print(f"{archive.relative_to(ROOT)}: {add_members(archive, chosen)} new results")
        by_family[family] = per_seed.figures(read_trials(archive), passes_of(family, small=False), MAIN[family])
    write_file(RESULTS / "evidence.csv", per_seed.to_csv(by_family).encode())


def write_pages() -> None:
    """Write the tables and plots of the pages, from the CSV file alone."""
    by_family = per_seed.read_csv(RESULTS / "evidence.csv")
    texts = pages.tables(by_family)
    for page in (ROOT / "README.md", STUDIES / "evidence.md"):
        fill(page, texts)
    for family, figures in by_family.items():
        plot(figures, passes_of(family, small=False), MAIN[family], STUDIES / f"evidence-{family}.png")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["plan", "run", "tables", "pack", "pages"])
    parser.add_argument("--explore", action="store_true", help="use the seeds on which recipes were chosen")
    parser.add_argument("--small", action="store_true", help="run all code on two seeds; nothing is learned")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these; one command per core, for instance")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "evidence", help="folder of the runs")
    options = parser.parse_args(arguments)
    known = {family: EXPLORE_SEEDS if options.explore else FINAL_SEEDS[family] for family in options.families}
    if options.small:
        known = {family: seeds[:2] for family, seeds in known.items()}
    if options.seeds is not None:
        if unknown := sorted(set(options.seeds).difference(*known.values())):
            parser.error(f"--seeds: {unknown} are not among the seeds of this study, which are {known}")
        known = {family: tuple(seed for seed in seeds if seed in options.seeds) for family, seeds in known.items()}
    options.chosen = known
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    options = options_of(arguments)
    console = Console(width=140)
    if options.command == "pages":
        write_pages()
        return
    if options.command == "pack":
        pack(options.families, options.work, console)
        return
    finished = {
        family: results_of(options.work, family, seeds, small=options.small) for family, seeds in options.chosen.items()
    }
    trials = list(planned(options.chosen, options.variants))
    if options.command == "plan":
        console.print(plan(trials, finished, small=options.small))
    elif options.command == "run":
        run_missing(trials, finished, options.work, console, small=options.small)
    else:
        tell_tables(finished, options.work, console, small=options.small, final=not options.explore)


if __name__ == "__main__":
    main()
