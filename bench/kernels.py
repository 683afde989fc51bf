"""The kernel suite: one figure counted by the TPU compiler, or with `--full` all committed figures, tables and plot.

    python bench/kernels.py                                          # one problem, one TPU, our kernel; writes nothing
    python bench/kernels.py --full                                   # all rows that are not up to date; resumes
    python bench/kernels.py --full --again --problem packed-4096     # some rows, up to date or not
    python bench/kernels.py --full --results bench/results/kernels-py312.json --readme kernels/DESIGN.md
                            --table "kernels-py312 table" --no-plot

It needs nothing of `pit`: with kernels/ on PYTHONPATH it runs wherever jax, libtpu, jaxtyping and rich are installed.
A row is up to date when it was measured with the same versions and no commit has touched what it depends on since. No
TPU is needed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pit_kernels.microbench import across, gpu_static
from pit_kernels.microbench.compiler import unavailable_reason
from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.plot import draw
from pit_kernels.microbench.problems import Job
from pit_kernels.microbench.scenario import PLAN, Refresh, stale, steps
from pit_kernels.microbench.suite import ask_worker, load
from pit_kernels.microbench.tables import TABLE, write_place, write_table
from pit_kernels.microbench.worker import named_contender

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/kernels.json"
README = ROOT / "kernels/README.md"
PLOT = ROOT / "docs/kernels.png"
GPUS = ROOT / "bench/results/gpu.json"
EVERYWHERE = (("three_way_attention", "packed-4096"), ("token_logprob", "gemma-2-2b"))
"""Operations and problems of the table of all targets."""

PLOTTED = ("tile-512-full", "tile-512-partial", "packed-4096", "rollout-4096", "causal-4096", "gemma-2-2b")
"""Problems in the plot; the tables have the others too."""


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="measure the plan of all committed figures")
    full = parser.add_argument_group("with --full")
    full.add_argument("--results", type=Path, default=RESULTS, help="file of figures")
    full.add_argument("--problem", action="append", default=[], help="only this one; repeatable")
    full.add_argument("--target", action="append", default=[], choices=list(GENERATIONS), help="only this one")
    full.add_argument("--contender", action="append", default=[], help="only this one; repeatable")
    full.add_argument("--again", action="store_true", help="measure rows that are up to date too")
    full.add_argument("--no-judge", action="store_true", help="skip the conformance test, which was made elsewhere")
    full.add_argument("--readme", type=Path, default=README, help="Markdown file with the tables")
    full.add_argument("--table", default=TABLE, help="name of the tables' place in it, as its comments give it")
    full.add_argument("--plot", type=Path, default=PLOT, help="PNG file of the plot")
    full.add_argument("--no-plot", action="store_true", help="leave the plot as it is")
    options = parser.parse_args(words)
    for name, value in vars(options).items():
        if not options.full and value != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} belongs to the committed figures; add --full")
    return options


def count() -> str:
    """Return a line about the forward pass of our smallest kernel, or the reason why nothing was counted."""
    absent = unavailable_reason()
    if absent is not None:
        return f"nothing counted: {absent}"
    operation, problem, target = "gap_reward", "gemma-2-2b", "v5e"
    ours = named_contender(operation, "pallas_tpu")
    (figures,) = ask_worker(ours, target, [Job(problem, "forward")])
    return f"{ours.name} {operation} {problem} forward on {target}: {figures['us']:,.1f} us, counted"


def refresh(options: argparse.Namespace) -> str:
    """Measure rows that are not up to date, write tables and plot of all that the results file has, and say so."""
    chosen = steps(PLAN, problems=options.problem, targets=options.target, contenders=options.contender)
    todo = chosen if options.again else stale(chosen, options.results)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as progress:
        progress.console.print(f"{len(chosen) - len(todo)} of {len(chosen)} steps are up to date in {options.results}")
        task = progress.add_task("", total=len(todo))
        measure = Refresh(
            options.results,
            tell=lambda line: progress.console.print(line, markup=False, highlight=False),
            judge=not options.no_judge,
        )
        for step in todo:
            progress.update(task, description=f"{step.operation} {step.contender} {step.target} {step.problem}")
            measure.run(step)
            progress.advance(task)
    rows = load(options.results)
    write_table(options.readme, rows, options.table)
    if options.readme == README:
        everywhere = across.lines(
            [row for row in rows if (row.operation, row.problem) in EVERYWHERE],
            [row for row in gpu_static.load(GPUS) if (row.operation, row.problem) in EVERYWHERE],
        )
        write_place(options.readme, "kernels targets", across.markdown(everywhere))
    if not options.no_plot:
        draw([row for row in rows if row.problem in PLOTTED and row.target in ("v5e", "v6e")], options.plot)
    return f"{len(todo)} steps measured, {len(rows)} rows in {options.results}"


def main() -> None:
    """Count one figure, or refresh all of them."""
    options = options_of()
    print(refresh(options) if options.full else count())


if __name__ == "__main__":
    main()
