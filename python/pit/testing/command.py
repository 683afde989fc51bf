"""The command `pit check`."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pit.testing.faults import CheckError, Violation

# Written here because a docstring that keeps its line breaks would need a control character.
_HELP = """Check the reward model MODEL: what must hold of any weights, and what it has learned.

MODEL is the folder of a run (its gap model, or --stage), the folder of a transformers sequence classifier, or
MODULE:NAME of a scorer or function in Python. Exact invariants are held or violated; violations are bugs, and the exit
status is 1. The others are figures over the data, with 95 % intervals. What a model cannot be asked is not applicable.

\b
Examples:
  pit check runs/demo
  pit check runs/hh --stage reward-quality --data ~/hh-rlhf --json check.json --html check.html
  pit check runs/demo --samples-of rl-policy --invariant learned
  pit check my_model:gap --data pairs.jsonl --invariant batch_size --invariant learned
  pit check my_model:gap --replay failures/batch_size.json
"""

_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

FAILURES = Path("pit-failures")
"""Where counterexamples are kept unless told otherwise."""


@click.command("check", help=_HELP)
@click.argument("model")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Preferences, in any format PIT reads [a run's eval fold]."
)
@click.option("--samples-of", metavar="STAGE", help="Instead: what this policy of the run says, ordered by who knows.")
@click.option("--stage", default="reward-gap", show_default=True, help="Reward model of a run.")
@click.option("--invariant", "names", multiple=True, help="By name or kind; repeatable [all].")
@click.option("--examples", type=click.IntRange(min=1), default=30, show_default=True, help="Of each exact invariant.")
@click.option("--rows", type=click.IntRange(min=2), default=200, show_default=True, help="Most pairs of the data.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--failures", type=click.Path(path_type=Path, file_okay=False), default=FAILURES, show_default=True)
@click.option("--replay", type=click.Path(path_type=Path, dir_okay=False), help="Check one saved example again.")
@click.option("--json", "as_json", type=click.Path(path_type=Path, dir_okay=False), help="Also write it as JSON.")
@click.option("--html", "as_html", type=click.Path(path_type=Path, dir_okay=False), help="Also write it as a page.")
def check(model: str, replay: Path | None, stage: str, **options: Any) -> None:
    """See `_HELP`."""
    # JAX is imported for PIT's own models only.
    if _NAMED.fullmatch(model):
        scorer = _import("pit.testing.adapters").imported(model)
    else:
        scorer = _import("pit.testing.models").open_folder(model, stage)
    if replay is not None:
        _replay(scorer, replay)
        return
    report = _run(scorer, model, options)
    console = Console()
    for table in report.tables():
        console.print(table)
    for path, write in ((options["as_json"], report.write_json), (options["as_html"], report.write_html)):
        if path is not None:
            write(path)
            click.echo(str(path))
    for result in report.results:
        if result.below_floor:
            click.echo(f"\n{result.name}: {result.statement} lies {result.detail}; the worst case:")
        elif result in report.violations:
            click.echo(f"\n{result.name}: {result.detail}")
        else:
            continue
        click.echo(result.counterexample)
        if result.replay:
            click.echo(f"again: {result.replay}")
    total = f"{len(report.violations)} violated of {len(report.results)} in {report.seconds:.0f} s"
    click.echo(f"{total}; data: {report.data}")
    if report.violations:
        sys.exit(1)


def _run(scorer: Any, model: str, options: dict[str, Any]) -> Any:
    run = _import("pit.testing.run")
    invariants = run.select(options["names"])
    rows, where = _rows(model, options)
    request = run.Request(model, where, options["examples"], options["seed"], options["failures"])
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("start", total=None)

        def tell(text: str) -> None:
            progress.update(task, description=text)

        return run.run_check(scorer, rows, request, invariants=invariants, progress=tell)


def _rows(model: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Preferences, and what to call them."""
    data, policy, limit = options["data"], options["samples_of"], options["rows"]
    is_run = (Path(model) / "store").is_dir()
    if policy is not None:
        if data is not None:
            raise CheckError(f"--samples-of {policy}: takes the place of --data {data}; give one of them")
        if not is_run:
            raise CheckError(f"--samples-of {policy}: {model} is not the folder of a run; give --data instead")
        rows, gold = _import("pit.testing.models").rows_of_samples(Path(model), policy, limit, options["seed"])
        return rows, f"samples of {policy}, ordered by the {gold}"
    if data is not None:
        return _import("pit.testing.data").read_rows(data, limit), str(data)
    if is_run:
        return _import("pit.testing.models").rows_of_run(Path(model), limit), "the run's eval fold"
    return [], "no --data"


def _replay(scorer: Any, path: Path) -> None:
    """Check a saved example; ends with status 1 where it still fails."""
    search, run = _import("pit.testing.search"), _import("pit.testing.run")
    name, example = search.load(path)
    (invariant,) = run.select([name])
    if not invariant.applicable(scorer):
        raise CheckError(f"{path}: is of {name}, which needs {invariant.missing(scorer)}; replay it on the same model")
    click.echo(search.readable(example))
    try:
        invariant.check(scorer, example)
    except Violation as violation:
        click.echo(f"{name}: {violation.fault}: {violation}")
        sys.exit(1)
    click.echo(f"{name}: held")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise CheckError("hypothesis: is not installed, and checks need it; pip install 'pit-jax[testing]'") from error
