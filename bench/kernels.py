"""The kernel suite as committed: every row of its plan, the tables in kernels/README.md and docs/kernels.png.

    python bench/kernels.py                                          # all that is not up to date; may be interrupted
    python bench/kernels.py --again --problem packed-4096            # some rows anew
    python bench/kernels.py --results bench/results/kernels-py312.json --readme kernels/DESIGN.md
                             --table "kernels-py312 table" --no-plot

It needs nothing of `pit`: with kernels/ on PYTHONPATH it runs wherever jax, libtpu, jaxtyping and rich are installed.
A row is up to date when it was measured with the same versions and no commit has touched what it depends on since. No
TPU is needed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.plot import draw
from pit_kernels.microbench.scenario import PLAN, Refresh, stale, steps
from pit_kernels.microbench.suite import load
from pit_kernels.microbench.tables import TABLE, write_table

ROOT = Path(__file__).parents[1]
DRAWN = ("tile-512-full", "tile-512-partial", "packed-4096", "rollout-4096", "causal-4096", "gemma-2-2b")
"""Problems in the picture; the tables hold the others too."""


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/kernels.json")
    parser.add_argument("--problem", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--target", action="append", default=[], choices=list(GENERATIONS), help="only this one")
    parser.add_argument("--contender", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--again", action="store_true", help="measure rows that are up to date too")
    parser.add_argument("--no-judge", action="store_true", help="conformance was judged elsewhere")
    parser.add_argument("--readme", type=Path, default=ROOT / "kernels/README.md", help="the file with the tables")
    parser.add_argument("--table", default=TABLE, help="the place in it: what its comments are called")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/kernels.png")
    parser.add_argument("--no-plot", action="store_true", help="draw nothing")
    return parser.parse_args(words)


def main() -> None:
    """Measures, then writes tables and picture of all that the results file holds."""
    chosen = options()
    found = steps(PLAN, problems=chosen.problem, targets=chosen.target, contenders=chosen.contender)
    todo = found if chosen.again else stale(found, chosen.results)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as progress:
        progress.console.print(f"{len(found) - len(todo)} of {len(found)} steps are up to date in {chosen.results}")
        task = progress.add_task("", total=len(todo))
        refresh = Refresh(
            chosen.results,
            tell=lambda line: progress.console.print(line, markup=False, highlight=False),
            judge=not chosen.no_judge,
        )
        for step in todo:
            progress.update(task, description=f"{step.operation} {step.contender} {step.target} {step.problem}")
            refresh.run(step)
            progress.advance(task)
    rows = load(chosen.results)
    write_table(chosen.readme, rows, chosen.table)
    if not chosen.no_plot:
        draw([row for row in rows if row.problem in DRAWN and row.target in ("v5e", "v6e")], chosen.plot)


if __name__ == "__main__":
    main()
