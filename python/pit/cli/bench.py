"""The commands `pit bench kernels`, which compares kernels, and `pit bench tune`, which finds their tiles.

Both count what the TPU compiler produces, or time an attached device; for GPUs `pit bench kernels` counts resources.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from pit.atomic import require_apart
from pit.cli.bench_gpu import GPU_OPERATIONS, GPUS, count_for_gpus, rows_of_gpus, show_across
from pit.cli.options import PNG
from pit.errors import PitError
from pit.terminal import Terminal, styled

TARGETS = ("v4", "v5e", "v5p", "v6e", "v7x")
PEERS = ("jax_flash", "jax_splash", "tokamax", "xla")
VARIANTS = ("pallas_tpu_btnh", "pallas_tpu_paths")
OPERATIONS = ("three_way_attention", "token_logprob", "gap_reward")


_EXAMPLES = """
Examples:
  pit bench kernels --target v5e --target v6e
  pit bench kernels --lengths lengths.txt --contender my_package.kernels:attention
  pit bench kernels --json bench/results/kernels.json --readme kernels/README.md
  pit bench kernels --check bench/results/kernels.json
  pit bench kernels --target sm_90 --workload packed-4096
  pit bench kernels --target v6e --target v7x --target sm_90 --workload packed-4096
"""


class _WithExamples(click.Command):
    """A command whose epilog keeps its line breaks."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog as it is."""
        formatter.write(self.epilog or "")


class BenchError(PitError):
    """A measurement that is impossible, or a figure that is worse than its baseline."""


@click.group("bench")
def bench() -> None:
    """Measure and tune the kernels."""


@bench.command("kernels", cls=_WithExamples, epilog=_EXAMPLES)
@click.option(
    "--op",
    type=click.Choice((*OPERATIONS, "cached_attention")),
    default=OPERATIONS[0],
    show_default=True,
    help="Operation; cached_attention for GPUs only.",
)
@click.option("--workload", "workloads", multiple=True, help="Problem, by name; repeatable [all of the operation].")
@click.option(
    "--lengths",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Measure gap trees of your own lengths: one line per preference, with three numbers (prompt, better, worse) "
    "or JSON with these keys.",
)
@click.option("--row-length", default=4096, show_default=True, help="Tokens of a row for --lengths.")
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Other contenders, by name.")
@click.option("--contender", "users", multiple=True, metavar="MODULE:FUNCTION", help="Your function; repeatable.")
@click.option(
    "--target",
    "targets",
    type=click.Choice((*TARGETS, *GPUS)),
    multiple=True,
    help="TPU, or architecture of a GPU; repeatable [v5e].",
)
@click.option("--time", "timed", is_flag=True, help="Time on the attached device instead of counting for a target.")
@click.option(
    "--json",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that keeps the figures; tiles of peers that it holds are not swept again.",
)
@click.option("--keep-dumps", type=click.Path(path_type=Path, file_okay=False), help="Folder for the compiler's dumps.")
@click.option(
    "--check",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Results file; fail if one of our figures is more than 3 % worse.",
)
@click.option("--plot", type=PNG, help="PNG file for a plot of the figures.")
@click.option(
    "--readme",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Markdown file whose table is replaced.",
)
# One parameter per option: click passes them by name.
def kernels(
    op: str,
    workloads: Sequence[str],
    lengths: Path | None,
    row_length: int,
    peers: str,
    users: Sequence[str],
    targets: Sequence[str],
    timed: bool,
    out: Path | None,
    keep_dumps: Path | None,
    check: Path | None,
    plot: Path | None,
    readme: Path | None,
) -> None:
    """Compare cycles and bytes of our kernels with others, by the real TPU compiler and without a TPU.

    A contender that computes a wrong result is named and gets no figure. Peers run with the best tiles of a small
    sweep; peers that cannot compute trees get the separate paths, packed.
    """
    from pit_kernels.microbench import suite

    for name, path in (("--json", out), ("--plot", plot), ("--readme", readme)):
        if path is not None:
            require_apart(name, path, *(source for source in (lengths, check) if source is not None and source != out))
    gpus, tpus = ([name for name in targets if (name in GPUS) == of_gpus] for of_gpus in (True, False))
    if gpus or op not in OPERATIONS:
        unused = {"--lengths": lengths, "--contender": users, "--plot": plot, "--readme": readme, "--time": timed}
        options = [name for name, value in unused.items() if value]
        try:
            if tpus and op in OPERATIONS:
                files = [name for name, path in (("--json", out), ("--check", check)) if path]
                _across(op, workloads, tpus, gpus, options + files)
            else:
                count_for_gpus(op, workloads, gpus, out, check, options, _tell)
        except (ValueError, RuntimeError) as error:
            raise BenchError(str(error)) from error
        return
    names = _names(op, peers, users)
    given = (
        None if lengths is None else {"triples": read_lengths(lengths), "row_length": row_length, "model": "llama-3-8b"}
    )
    chosen = _problems(op, workloads, given)
    try:
        baseline = [] if check is None else suite.load(check)
        if timed:
            from pit_kernels.microbench import gpu_timing, timing

            if gpu_timing.attached():
                outcome = gpu_timing.time_suite(op, chosen, lengths=given, tell=_tell)
            else:
                outcome = timing.time_suite(op, names, chosen, lengths=given, tell=_tell)
        else:
            swept = suite.load(out) if out is not None and out.exists() else ()
            outcome = suite.run_suite(
                op, names, targets or ["v5e"], chosen, lengths=given, keep_dumps=keep_dumps, swept=swept, tell=_tell
            )
    except (ValueError, RuntimeError) as error:
        raise BenchError(str(error)) from error
    show(outcome, timed)
    _write(outcome, out, plot, readme)
    worse = suite.regressions(outcome.rows, baseline)
    if worse:
        raise BenchError(f"worse than {check} by more than 3 %: {'; '.join(worse)}")


def _across(op: str, workloads: Sequence[str], tpus: Sequence[str], gpus: Sequence[str], unused: Sequence[str]) -> None:
    """Count our kernels for TPUs and GPUs and print them in one table; problems are those that both have.

    Raises:
      ValueError: if the options do not fit together.
    """
    from pit_kernels.microbench import gpu_static, suite
    from pit_kernels.microbench.problems import problems

    if op not in GPU_OPERATIONS:
        raise ValueError(f"--op is {op}, which has no GPU kernels; operations with some: {', '.join(GPU_OPERATIONS)}")
    if unused:
        raise ValueError(
            f"{unused[0]} is given with --target {tpus[0]} and --target {gpus[0]}, which share one table and no file; "
            "leave it out, or give TPUs and GPUs one after the other"
        )
    both = [name for name in problems(op) if name in gpu_static.cases(op)]
    for name in workloads:
        if name not in both:
            raise ValueError(f"--workload is {name!r}; for TPUs and GPUs together it must be one of {', '.join(both)}")
    chosen = list(workloads) or both
    of_gpus = rows_of_gpus(op, chosen, gpus, (), _tell)
    outcome = suite.run_suite(op, ["pallas_tpu"], tpus, chosen, judge=False, tell=_tell)
    show_across(outcome.rows, of_gpus)
    for name, why in outcome.left_out:
        Terminal().print(f"left out: {name}: {why}", highlight=False, markup=False)


def _tell(line: str) -> None:
    Terminal(stderr=True).print(styled((line, "dim")), highlight=False)


def _problems(op: str, workloads: Sequence[str], given: dict[str, Any] | None) -> list[str]:
    """Return the names of the problems to measure: those of --workload, "lengths", or all of the operation."""
    from pit_kernels.microbench.problems import problems

    known = problems(op)
    names = list(workloads) or (["lengths"] if given else list(known))
    for name in names:
        if name not in known and not (name == "lengths" and given):
            raise BenchError(f"--workload is {name!r}; for {op} it must be one of {', '.join(known)}")
    return names


def _write(outcome: Any, out: Path | None, plot: Path | None, readme: Path | None) -> None:
    """Write the files that the options name."""
    from pit_kernels.microbench import suite
    from pit_kernels.microbench.plot import draw
    from pit_kernels.microbench.tables import write_table

    if out is not None:
        suite.save(outcome.rows, out)
    if plot is not None:
        if not outcome.rows:
            raise BenchError(f"--plot is {plot}, and no contender has a figure to draw; see what was left out")
        draw(outcome.rows, plot)
    if readme is not None:
        write_table(readme, suite.load(out) if out is not None else outcome.rows)


def _names(op: str, peers: str, users: Sequence[str]) -> list[str]:
    """Return the contenders in the order in which they are shown: ours, peers, the user's."""
    from pit_kernels.microbench.contenders import contenders

    known = contenders(op)
    chosen = [name.strip() for name in peers.split(",") if name.strip()]
    for name in chosen:
        if name not in known and name not in PEERS:
            raise BenchError(f"--peers names {name!r}; it must be one of {', '.join((*PEERS, *VARIANTS))}")
    ours = [name for name in ("pallas_tpu",) if known[name].absent is None]
    return [*ours, *(name for name in chosen if name in known), *users]


def read_lengths(path: Path) -> list[tuple[int, int, int]]:
    """Return the lengths of preferences in a file: three numbers per line, or JSON with prompt, better and worse.

    Raises:
      BenchError: if a line is neither; the message gives its number and text.
    """
    lengths = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            if line.lstrip().startswith("{"):
                row = json.loads(line)
                triple = (int(row["prompt"]), int(row["better"]), int(row["worse"]))
            else:
                prompt, better, worse = (int(word) for word in line.replace(",", " ").split())
                triple = (prompt, better, worse)
        except (ValueError, KeyError, TypeError):
            triple = (0, 0, 0)
        if min(triple) < 1:
            raise BenchError(
                f"{path} line {number} is {line.strip()!r}; it must hold three lengths above 0: prompt, better, worse"
            )
        lengths.append(triple)
    if not lengths:
        raise BenchError(f"{path} holds no lengths; write one line per preference: prompt, better, worse")
    return lengths


_COLUMNS = (
    *("us per tree", "us", "cycles", "HBM MB", "memory us", "hot", "per tile"),
    *("MXU", "VALU", "ld", "st", "spills", "best"),
)


def show(outcome: Any, timed: bool) -> None:
    """Print the tables, the contenders left out with the reason, and the blind spots of the figures."""
    from pit_kernels.microbench.static import BLIND_SPOTS

    # A narrow terminal wraps the lines: figures that are cut off would be useless.
    console = Terminal(width=max(Terminal().width, 150))
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for row in outcome.rows:
        groups.setdefault((row.problem, row.direction, row.target), []).append(row)
    for (problem, direction, target), rows in groups.items():
        table = Table(title=f"{problem}, {direction}, {target}", title_justify="left")
        table.add_column("contender", no_wrap=True)
        for name in _COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        least = min(row.figures["us"] for row in rows)
        for row in sorted(rows, key=lambda row: float(row.figures["us"])):
            table.add_row(*_cells(row), style="bold" if row.figures["us"] == least else "")
        console.print(table)
        for row in rows:
            for note in row.figures.get("notes", []):
                console.print(f"not known about {row.contender}: {note}", highlight=False, markup=False)
    for name, why in outcome.left_out:
        console.print(f"left out: {name}: {why}", highlight=False, markup=False)
    if not timed:
        for spot in BLIND_SPOTS:
            console.print(f"not counted: {spot}", highlight=False, markup=False)


def _cells(row: Any) -> list[str]:
    """Return the cells of a contender's line."""
    from pit_kernels.microbench.tables import hot_of

    figures, hot = row.figures, hot_of(row)
    use = hot["use"] if hot else {}
    shares = [f"{use[name]:.0%}" if name in use else "" for name in ("MXU", "VALU", "VLOAD", "VSTORE")]
    tiles = " ".join(f"{key}={value}" for key, value in (row.job.get("tiles") or {}).items())
    length = row.job.get("row_length")
    return [
        row.contender,
        f"{figures['us'] / row.units:,.2f}",
        f"{figures['us']:,.0f}",
        f"{figures.get('cycles', 0):,}",
        f"{figures.get('hbm_bytes', 0) / 1e6:,.1f}",
        f"{figures.get('memory_us', 0):,.0f}",
        str(hot["bundles"]) if hot else "",
        f"{figures['tile']['bundles']:,.0f}" if figures.get("tile") else "",
        *shares,
        f"{figures.get('spills', 0):,}",
        " ".join(part for part in (tiles, f"rows={length}" if length else "") if part),
    ]


@bench.command("tune")
@click.option("--op", type=click.Choice(OPERATIONS), default=OPERATIONS[0], show_default=True, help="Operation.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, help="TPU; repeatable [v5e].")
@click.option("--class", "classes", multiple=True, help="Class of shapes, such as r4-h128-b2; repeatable [all].")
@click.option("--time", "timed", is_flag=True, help="Time on the attached device instead of counting for a target.")
@click.option(
    "--table", type=click.Path(path_type=Path, dir_okay=False), help="Table of tiles to write [that of the operation]."
)
def tune(op: str, targets: Sequence[str], classes: Sequence[str], timed: bool, table: Path | None) -> None:
    """Find the tiles of our TPU kernels and write them into the table that the kernels read.

    A sweep tries the present tiles and the tiles one step from them; run it again until nothing changes.
    """
    from pit_kernels import device
    from pit_kernels.microbench import tune as tuner

    if timed and targets:
        raise BenchError(
            f"--target is {', '.join(targets)} together with --time, which measures the attached device; drop one"
        )
    kinds = [device.kind()] if timed else list(targets or ["v5e"])
    for kind in kinds:
        known = tuner.shape_classes(op, kind)
        for name in classes:
            if name not in known:
                raise BenchError(f"--class is {name!r}; for {op} it must be one of {', '.join(known)}")
    sweeps = [(kind, name, problems) for kind in kinds for name, problems in tuner.shape_classes(op, kind).items()]
    sweeps = [(kind, name, problems) for kind, name, problems in sweeps if not classes or name in classes]
    path = tuner.tiles_file(op) if table is None else table
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Terminal(stderr=True)) as progress:
        for kind, name, problems in sweeps:
            try:
                choices = tuner.candidates(op, tuner.present(op, kind, name))
                task = progress.add_task(f"{op} {kind} {name}", total=len(choices))

                def tell(line: str, task: TaskID = task) -> None:
                    progress.console.print(styled((line, "dim")), highlight=False)
                    progress.advance(task)

                clock = tuner.timed_clock(op, problems) if timed else tuner.static_clock(op, kind, problems)
                tuned = tuner.tune(choices, clock, tell)
            except (ValueError, RuntimeError) as error:
                raise BenchError(f"{op} {kind} {name}: {error}") from error
            tuner.keep(kind, name, tuned.best, path)
            progress.console.print(f"{op} {kind} {name}: {tuned.best}", highlight=False)
