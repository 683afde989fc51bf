"""The commands `pit bench kernels`, the suite as table, plot, JSON and a check of it, and `pit bench tune`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from pit.errors import PitError

TARGETS = ("v4", "v5e", "v5p", "v6e")
PEERS = ("jax_flash", "jax_splash", "tokamax", "xla")
OPERATIONS = ("three_way_attention", "token_logprob", "gap_reward")


# Written here because a docstring that keeps its line breaks would need a control character.
_HELP = """Cycles and bytes of our kernels beside others, from the real TPU compiler and with no TPU.

A contender that does not compute the right thing is named and gets no figure. Peers run with the best tiles of a
small sweep; where they cannot compute trees they get the separate paths, packed.

\b
Examples:
  pit bench kernels --target v5e --target v6e
  pit bench kernels --lengths mine.txt --contender my_package.kernels:attention
  pit bench kernels --json bench/results/kernels.json --readme kernels/README.md
  pit bench kernels --check bench/results/kernels.json
"""


class BenchError(PitError):
    """A measurement that cannot be made, or a figure that is worse than its baseline."""


@click.group("bench")
def bench() -> None:
    """Measure and tune the kernels."""


@bench.command("kernels", help=_HELP)
@click.option("--op", type=click.Choice(OPERATIONS), default=OPERATIONS[0], show_default=True, help="Operation.")
@click.option("--workload", "workloads", multiple=True, help="Problem, by name; repeatable [all of the operation].")
@click.option(
    "--lengths",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Measure gap trees of your own lengths: a line a preference, three numbers (prompt, better, worse) or "
    "JSON with these keys.",
)
@click.option("--row-length", default=4096, show_default=True, help="Tokens of a row for --lengths.")
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Others to measure, by name.")
@click.option("--contender", "own", multiple=True, metavar="MODULE:FUNCTION", help="Your own function; repeatable.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, help="TPU; repeatable [v5e].")
@click.option("--time", "timed", is_flag=True, help="Time on the attached device instead of counting for a target.")
@click.option(
    "--json",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the figures here; tiles of peers that are in it are not swept again.",
)
@click.option("--keep-dumps", type=click.Path(path_type=Path, file_okay=False), help="Keep the compiler's dumps here.")
@click.option("--check", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Fail where we got worse.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the figures as PNG.")
@click.option("--readme", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Renew the table in it.")
def kernels(
    op: str,
    workloads: Sequence[str],
    lengths: Path | None,
    row_length: int,
    peers: str,
    own: Sequence[str],
    targets: Sequence[str],
    timed: bool,
    out: Path | None,
    keep_dumps: Path | None,
    check: Path | None,
    plot: Path | None,
    readme: Path | None,
) -> None:
    """Cycles and bytes of our kernels beside others; what it prints with --help is `_HELP`."""
    from pit_kernels.microbench import suite
    from pit_kernels.microbench.plot import draw
    from pit_kernels.microbench.problems import problems
    from pit_kernels.microbench.tables import write_table

    names = _names(op, peers, own)
    known = problems(op)
    given = (
        None if lengths is None else {"triples": read_lengths(lengths), "row_length": row_length, "model": "llama-3-8b"}
    )
    chosen = list(workloads) or (["lengths"] if given else list(known))
    for name in chosen:
        if name not in known and not (name == "lengths" and given):
            raise BenchError(f"--workload is {name!r}; for {op} it must be one of {', '.join(known)}")
    console = Console(stderr=True)
    try:
        if timed:
            from pit_kernels.microbench.timing import time_suite

            outcome = time_suite(op, names, chosen, lengths=given, tell=lambda line: console.print(line))
        else:
            outcome = suite.run_suite(
                op,
                names,
                targets or ["v5e"],
                chosen,
                lengths=given,
                keep_dumps=keep_dumps,
                swept=suite.load(out) if out is not None and out.exists() else (),
                tell=lambda line: console.print(f"[dim]{line}[/]", highlight=False),
            )
        before = [] if check is None else suite.load(check)
    except (ValueError, RuntimeError) as error:
        raise BenchError(str(error)) from error
    show(outcome, timed)
    if out is not None:
        suite.save(outcome.rows, out)
    if plot is not None:
        if not outcome.rows:
            raise BenchError("there is nothing to draw: no contender has a figure")
        draw(outcome.rows, plot)
    if readme is not None:
        rows = suite.load(out) if out is not None else outcome.rows
        write_table(readme, rows)
    worse = suite.regressions(outcome.rows, before)
    if worse:
        raise BenchError("worse than " + str(check) + " by more than 3 %: " + "; ".join(worse))


def _names(op: str, peers: str, own: Sequence[str]) -> list[str]:
    """Contenders in the order they are shown: ours, peers, the user's."""
    from pit_kernels.microbench.contenders import contenders

    known = contenders(op)
    asked = [name.strip() for name in peers.split(",") if name.strip()]
    for name in asked:
        if name not in known and name not in PEERS:
            raise BenchError(f"--peers names {name!r}; it must be of {', '.join((*PEERS, 'pallas_tpu_btnh'))}")
    ours = [name for name in ("pallas_tpu",) if known[name].absent is None]
    return [*ours, *(name for name in asked if name in known), *own]


def read_lengths(path: Path) -> list[tuple[int, int, int]]:
    """Lengths of preferences from a file: three numbers a line, or JSON with prompt, better and worse.

    Raises:
      BenchError: a line is neither; the message gives its number and text.
    """
    found = []
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
        found.append(triple)
    if not found:
        raise BenchError(f"{path} holds no lengths; give a line with prompt, better and worse for each preference")
    return found


def show(outcome: Any, timed: bool) -> None:
    """Prints the tables, what was left out and why, and what the figures do not see."""
    from pit_kernels.microbench.static import BLIND_SPOTS
    from pit_kernels.microbench.tables import hot_of

    # Figures that are cut off say nothing: a narrow terminal wraps the lines instead.
    console = Console(width=max(Console().width, 150))
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for row in outcome.rows:
        groups.setdefault((row.problem, row.direction, row.target), []).append(row)
    for (problem, direction, target), rows in groups.items():
        table = Table(title=f"{problem}, {direction}, {target}", title_justify="left")
        table.add_column("contender", no_wrap=True)
        for name in (
            "us a tree",
            "us",
            "cycles",
            "HBM MB",
            "memory us",
            "hot",
            "a tile",
            "MXU",
            "VALU",
            "ld",
            "st",
            "spills",
            "best",
        ):
            table.add_column(name, justify="right", no_wrap=True)
        least = min(row.figures["us"] for row in rows)
        for row in sorted(rows, key=lambda row: float(row.figures["us"])):
            figures, hot = row.figures, hot_of(row)
            use = hot["use"] if hot else {}
            shares = [f"{use[name]:.0%}" if name in use else "" for name in ("MXU", "VALU", "VLOAD", "VSTORE")]
            tiles = " ".join(f"{key}={value}" for key, value in (row.job.get("tiles") or {}).items())
            length = row.job.get("row_length")
            style = "bold" if figures["us"] == least else ""
            table.add_row(
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
                style=style,
            )
        console.print(table)
        for row in rows:
            for note in row.figures.get("notes", []):
                console.print(f"not known of {row.contender}: {note}", highlight=False, markup=False)
    for name, why in outcome.left_out:
        console.print(f"left out: {name}: {why}", highlight=False, markup=False)
    if not timed:
        for spot in BLIND_SPOTS:
            console.print(f"not seen: {spot}", highlight=False, markup=False)


@bench.command("tune")
@click.option("--op", type=click.Choice(OPERATIONS), default=OPERATIONS[0], show_default=True, help="Operation.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, help="TPU; repeatable [v5e].")
@click.option("--class", "classes", multiple=True, help="Class of shapes, such as r4-h128-b2; repeatable [all].")
@click.option("--time", "timed", is_flag=True, help="Time on the attached device instead of counting for a target.")
@click.option("--table", type=click.Path(path_type=Path, dir_okay=False), help="The table to write [the operation's].")
def tune(op: str, targets: Sequence[str], classes: Sequence[str], timed: bool, table: Path | None) -> None:
    """Find the tiles of our TPU kernels and write them into the table that the kernels read.

    A sweep tries the present tiles and those one step from them; run it again until nothing changes.
    """
    from pit_kernels import device
    from pit_kernels.microbench import tune as tuner

    if timed and targets:
        raise BenchError(
            f"--target is {', '.join(targets)} beside --time, which measures the attached device; drop one"
        )
    kinds = [device.kind()] if timed else list(targets or ["v5e"])
    for kind in kinds:
        known = tuner.shape_classes(op, kind)
        for name in classes:
            if name not in known:
                raise BenchError(f"--class is {name!r}; for {op} it must be one of {', '.join(known)}")
    asked = [(kind, name, problems) for kind in kinds for name, problems in tuner.shape_classes(op, kind).items()]
    asked = [each for each in asked if not classes or each[1] in classes]
    path = tuner.tiles_file(op) if table is None else table
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for kind, name, problems in asked:
            try:
                choices = tuner.candidates(op, tuner.present(op, kind, name))
                task = progress.add_task(f"{op} {kind} {name}", total=len(choices))

                def tell(line: str, task: TaskID = task) -> None:
                    progress.console.print(f"[dim]{line}[/]", highlight=False)
                    progress.advance(task)

                clock = tuner.timed_clock(op, problems) if timed else tuner.static_clock(op, kind, problems)
                found = tuner.tune(choices, clock, tell)
            except (ValueError, RuntimeError) as error:
                raise BenchError(f"{op} {kind} {name}: {error}") from error
            tuner.keep(kind, name, found.best, path)
            progress.console.print(f"{op} {kind} {name}: {found.best}", highlight=False)
