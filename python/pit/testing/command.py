"""The command `pit check`: options, progress, output and exit status of a check.

JAX and Hypothesis are imported only when a check needs them.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pit.atomic import require_apart
from pit.terminal import Terminal, say
from pit.testing.errors import CheckError, InvariantError

if TYPE_CHECKING:
    from pit.testing.baseline import Change
    from pit.testing.questions import Row
    from pit.testing.report import Report

# A constant and not the docstring, where \b would need a control character.
_HELP = """Check the reward model MODEL: what holds for any weights, and what it has learned.

MODEL is the folder of a run (its gap model, or the model of --stage), a folder of `pit export`, the folder of a
transformers sequence classifier or of its PEFT adapters, MODULE:NAME of a scorer or function in Python, the URL of a
judge in OpenAI's format, or a language model with --read-as. An exact invariant is held or violated; a violation is a
bug, and the exit status is then 1. The other invariants are figures over the data with 95 % intervals. An invariant
that needs a method that the model lacks is not applicable.

\b
Examples:
  pit check runs/demo
  pit check runs/hh --stage reward-quality --data ~/hh-rlhf --json check.json --html check.html
  pit check runs/demo --stage rl-policy --sampler
  pit check runs/demo --samples-of rl-policy --invariant learned
  pit check my_model:gap --data pairs.jsonl --invariant batch_size --invariant learned
  pit check http://127.0.0.1:8000/v1 --data rewardbench2.parquet --rows 50 --examples 3
  pit check hf:OWNER/NAME --read-as choice --data pairs.jsonl
  pit check my_model:gap --data pairs.jsonl --baseline check.json   (fails only on what got worse)
  pit check my_model:gap --replay pit-failures/batch_size.json
"""

_MODULE_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_URL = re.compile(r"https?://")

FAILURES = Path("pit-failures")
"""Default folder for counterexamples."""

_NEW_FILE = click.Path(path_type=Path, dir_okay=False)
_COUNT = click.IntRange(min=1)


@click.command("check", help=_HELP)
@click.argument("model")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File or folder of preferences, in any format that PIT reads.  [default: the eval fold of a run]",
)
@click.option(
    "--samples-of",
    metavar="STAGE",
    help="Use pairs of samples of this policy of the run as data, ranked by the task's oracle or the held-out judge.",
)
@click.option("--stage", default="reward-gap", show_default=True, help="Stage of a run whose model is checked.")
@click.option(
    "--read-as",
    type=click.Choice(["likelihood", "choice"]),
    help="Take a language model as a reward model: by the mean log-prob of an answer, or by log p(A) - log p(B) of a "
    "choice between two.",
)
@click.option("--judge-model", metavar="NAME", help="Model of the judge at a URL.  [default: its only one]")
@click.option(
    "--invariant",
    "names",
    multiple=True,
    metavar="NAME|KIND",
    help="Invariant, or kind of invariants, to check; repeatable.  [default: all]",
)
@click.option("--sampler", is_flag=True, help="Check the sampler of a policy alone: --invariant with all of samples.")
@click.option("--examples", type=_COUNT, default=30, show_default=True, help="Examples of each exact invariant.")
@click.option(
    "--rows", type=click.IntRange(min=2), default=200, show_default=True, help="Maximum number of pairs of the data."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=5,
    show_default=True,
    help="Time for the check; what it has no time for is left out and named. 0 for no limit; a --baseline sets none.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the search and of samples."
)
@click.option(
    "--failures",
    type=click.Path(path_type=Path, file_okay=False),
    default=FAILURES,
    show_default=True,
    help="Folder for counterexamples.",
)
@click.option("--replay", type=_NEW_FILE, help="Check one saved counterexample again, and nothing else.")
@click.option("--json", "as_json", type=_NEW_FILE, help="Write the report to a JSON file.")
@click.option("--html", "as_html", type=_NEW_FILE, help="Write the report to an HTML file.")
@click.option("--badge", type=_NEW_FILE, help="Write a badge to an SVG file, and print the Markdown that shows it.")
@click.option(
    "--baseline",
    type=_NEW_FILE,
    help="JSON of an earlier report of the same rows: the exit status is 1 only if a result is clearly worse.",
)
def check(model: str, replay: Path | None, stage: str, **options: Any) -> None:
    """Run the command; its help is `_HELP`."""
    _require_hypothesis()
    _require_apart(model, replay, options)
    baseline = _baseline(options["baseline"])
    scorer = _open_scorer(model, stage, options)
    if replay is not None:
        _replay(scorer, replay)
        return
    report = _run(scorer, model, options, _replay_options(model, stage, options), baseline)
    changes = () if baseline is None else _changes(report, baseline, options["baseline"])
    _print_report(report, changes)
    _write_reports(report, changes, options)
    worse = [change for change in changes if change.direction == "worse"]
    if baseline is not None:
        say(f"{len(worse)} of {len(changes)} results are clearly worse than in {options['baseline']}")
    if worse if baseline is not None else report.violations:
        sys.exit(1)


def _baseline(path: Path | None) -> "Report | None":
    from pit.testing.report import Report

    return None if path is None else Report.read_json(path)


def _changes(report: "Report", baseline: "Report", path: Path) -> "tuple[Change, ...]":
    from pit.testing.baseline import compare

    return compare(report, baseline, path)


def _print_report(report: "Report", changes: "Sequence[Change]") -> None:
    from pit.testing.findings import findings_of
    from pit.testing.tables import absent_line, tables_of

    console = Terminal()
    for table in tables_of(report, changes):
        console.print(table)
    _print_failures(report)
    for line in (absent_line(report), *report.notes, *(f"- {finding}" for finding in findings_of(report))):
        if line:
            say(line)
    total = f"{len(report.violations)} violated of {len(report.results)} in {report.seconds:.0f} s"
    say(f"{total}; data: {report.data}")


def _write_reports(report: "Report", changes: "Sequence[Change]", options: dict[str, Any]) -> None:
    from pit.testing.page import write_badge, write_page

    if options["as_json"] is not None:
        report.write_json(options["as_json"])
        say(str(options["as_json"]))
    if options["as_html"] is not None:
        write_page(options["as_html"], report, changes)
        say(str(options["as_html"]))
    if options["badge"] is not None:
        say(write_badge(options["badge"], report))


_WRITTEN = {"as_json": "--json", "as_html": "--html", "badge": "--badge"}
"""Options that name a file to write."""


def _require_apart(model: str, replay: Path | None, options: dict[str, Any]) -> None:
    """Raise unless the reports leave each other, and whatever the check reads, as they are."""
    sources = [path for path in (options["data"], options["baseline"], replay) if path is not None]
    sources += [] if _MODULE_NAME.fullmatch(model) or _URL.match(model) else [Path(model)]
    written = [(option, options[name]) for name, option in _WRITTEN.items() if options[name] is not None]
    for option, path in written:
        require_apart(option, path, *sources)
        for other, same in written:
            if other != option and same == path:
                raise CheckError(f"{option} and {other} = {path}: must be two files; name another one")


def _open_scorer(model: str, stage: str, options: dict[str, Any]) -> Any:
    if _MODULE_NAME.fullmatch(model):
        from pit.testing.adapters import import_scorer

        return import_scorer(model)
    if _URL.match(model):
        from pit.testing.judge import JudgeScorer

        return JudgeScorer.open(model, options["judge_model"])
    if options["read_as"] is not None:
        from pit.testing.adapters import as_scorer
        from pit.testing.language import open_language

        return as_scorer(open_language(model, options["read_as"]), model)
    if not any((Path(model) / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise CheckError(
            f"{model}: does not hold a model (config.json is missing); give the folder of a run, of a transformers "
            "sequence classifier or of its adapters, MODULE:NAME of a scorer in Python, or the URL of a judge"
        )
    from pit.testing.models import open_folder

    return open_folder(model, stage)


def _replay_options(model: str, stage: str, options: dict[str, Any]) -> tuple[str, ...]:
    """Return the options that a replay needs to open the same model."""
    words = {"--judge-model": options["judge_model"], "--read-as": options["read_as"]}
    if not _MODULE_NAME.fullmatch(model) and (Path(model) / "store").is_dir():
        words["--stage"] = stage
    return tuple(word for name, value in words.items() if value is not None for word in (name, value))


def _print_failures(report: "Report") -> None:
    """Print every violation, and every figure below its floor, with its counterexample."""
    for result in report.results:
        if result.below_floor:
            say(f"\n{result.name}: {result.statement} lies {result.detail}; worst case:")
        elif result in report.violations:
            say(f"\n{result.name}: {result.detail}")
        else:
            continue
        say(result.counterexample)
        if result.replay:
            say(f"check it again: {result.replay}")


def _run(
    scorer: Any, model: str, options: dict[str, Any], of_stage: tuple[str, ...], baseline: "Report | None"
) -> "Report":
    from pit.testing.invariants import ALL, Statistical
    from pit.testing.run import Request, run_check, select
    from pit.testing.scorers import Method, methods_of

    invariants = select([*options["names"], *(_of_samples() if options["sampler"] else ())])
    rows, where = _rows(model, options)
    measured = any(isinstance(each, Statistical) and each.applicable(scorer) for each in ALL)
    if (options["data"] or options["samples_of"]) and methods_of(scorer) and not measured:
        raise CheckError(
            f"{model}: is a language model, which has samples and no scores, so nothing of it can be measured on pairs "
            f"of {where}; leave the data out to check its samples, or give a reward model"
        )
    if options["sampler"] and Method.SAMPLES not in methods_of(scorer):
        raise CheckError(
            f"--sampler: {model} has no samples; name a policy: a run with --stage rl-policy, or its export"
        )
    seconds = 60 * options["minutes"] if options["minutes"] and baseline is None else None
    request = Request(
        model,
        where,
        options["examples"],
        options["seed"],
        options["failures"],
        of_stage,
        seconds,
        None if baseline is None else baseline.rows,
    )
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as progress:
        task = progress.add_task("start", total=None)

        def show(text: str) -> None:
            progress.update(task, description=text)

        return run_check(scorer, rows, request, invariants=invariants, progress=show)


def _of_samples() -> list[str]:
    from pit.testing.invariants import ALL
    from pit.testing.scorers import Method

    return [invariant.name for invariant in ALL if Method.SAMPLES in invariant.needs]


def _rows(model: str, options: dict[str, Any]) -> "tuple[Sequence[Row], str]":
    """Return the preferences and their name in reports."""
    data, policy, limit = options["data"], options["samples_of"], options["rows"]
    is_run = (Path(model) / "store").is_dir()
    if policy is not None:
        if data is not None:
            raise CheckError(f"--samples-of {policy}: cannot be combined with --data {data}; give one of them")
        if not is_run:
            raise CheckError(f"--samples-of {policy}: {model} is not the folder of a run; give --data instead")
        from pit.testing.models import rows_of_samples

        rows, source = rows_of_samples(Path(model), policy, limit, options["seed"])
        return rows, f"samples of {policy}, ranked by the {source}"
    if data is not None:
        from pit.testing.data import read_rows

        return read_rows(data, limit), str(data)
    if is_run:
        from pit.testing.models import rows_of_run

        return rows_of_run(Path(model), limit), "the run's eval fold"
    return [], "no --data"


def _replay(scorer: Any, path: Path) -> None:
    """Check a saved example; exit with status 1 if it still fails."""
    from pit.testing.run import select
    from pit.testing.search import format_example, load_example

    name, example = load_example(path)
    (invariant,) = select([name])
    if not invariant.applicable(scorer):
        raise CheckError(
            f"--replay {path}: is an example of {name}, which needs {invariant.missing(scorer)}; give the MODEL "
            "that it was saved for"
        )
    say(format_example(example))
    try:
        invariant.check(scorer, example)
    except InvariantError as violation:
        say(f"{name}: {violation.fault}: {violation}")
        sys.exit(1)
    say(f"{name}: held")


def _require_hypothesis() -> None:
    """Raise unless Hypothesis is installed; the modules below import it."""
    if importlib.util.find_spec("hypothesis") is None:
        raise CheckError("hypothesis: is not installed, and checks need it; pip install hypothesis")
