"""Runs the suite: conformance, the cost of every job, the best tiles of every peer; keeps and checks rows as JSON.

A figure is shown only of a contender that passed conformance; one that failed is named with the case.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pit_kernels.microbench.contenders import Contender
from pit_kernels.microbench.problems import PEER_ROWS, Direction, Job, Problem
from pit_kernels.microbench.worker import named_contender, named_problem

TOLERANCE = 0.03
"""How far a figure of ours may lie above its baseline."""

_COUNTING = (
    *("bundles", "compiler", "control", "generations", "hlo", "hot_tiles", "layouts", "machine", "static"),
    *("contenders", "problems", "worker"),
)
_EVERYONES = (*(f"microbench/{name}.py" for name in _COUNTING), "workloads.py")
"""The sources that every figure depends on: what counts, and what is counted."""

_OURS = ("checks.py", "device.py", "dispatch.py", "numerics.py", "partition.py", "tiles.py")
"""Those that ours depend on besides, with the folder of their operation."""

DIRECTIONS: tuple[Direction, ...] = ("forward", "both")
"""What is counted of every problem."""


@dataclass
class Row:
    """One line of the table: the best figures of a contender on a problem.

    figures: as `worker.summary` gives them.
    job: tiles and row length of the best.
    units: trees in the work.
    """

    operation: str
    problem: str
    direction: Direction
    contender: str
    target: str
    ours: bool
    units: int
    figures: dict[str, Any]
    job: dict[str, Any]

    @property
    def key(self) -> str:
        """Name of the row in a results file."""
        return "/".join((self.operation, self.problem, self.direction, self.contender, self.target))


@dataclass
class Outcome:
    """Result of a run: the rows, and the contenders without one, with the reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def run_suite(
    operation: str,
    names: Sequence[str],
    targets: Sequence[str],
    problem_names: Sequence[str],
    *,
    lengths: Mapping[str, Any] | None = None,
    keep_dumps: Path | None = None,
    judge: bool = True,
    swept: Sequence[Row] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Measure contenders on problems of one operation.

    Args:
      operation: name of the operation.
      names: contenders, by name or "module:function".
      targets: generations of TPU.
      problem_names: problems, by name; "lengths" takes `lengths`.
      lengths: triples, row_length and model of a workload of given lengths.
      keep_dumps: folder for the compiler's dumps.
      judge: whether contenders must pass conformance first.
      swept: rows of an earlier run; a peer's tiles and row length are taken from its row and not swept again.
      tell: called with a line about every step.
    """
    outcome = Outcome()
    problems = [named_problem(operation, name, dict(lengths) if lengths else None) for name in problem_names]
    before = {row.key: Job(**row.job) for row in swept if not row.ours}
    for name in names:
        contender = named_contender(operation, name)
        if contender.absent is not None:
            outcome.left_out.append((name, contender.absent))
            continue
        if judge:
            tell(f"{operation} {name}: conformance")
            failure = judged_apart(operation, name)
            if failure is not None:
                outcome.left_out.append((name, f"does not conform: {failure}"))
                continue
        for target in targets:
            tell(f"{operation} {name}: {target}")

            def ask(
                jobs: Sequence[Job], contender: Contender = contender, target: str = target
            ) -> list[dict[str, Any]]:
                return ask_worker(contender, target, jobs, lengths, keep_dumps) if jobs else []

            _measured(outcome, contender, problems, target, before, ask)
    return outcome


Tried = list[tuple[Job, dict[str, Any]]]
"""Jobs with their answers."""


def _measured(
    outcome: Outcome,
    contender: Contender,
    problems: Sequence[Problem],
    target: str,
    before: Mapping[str, Job],
    ask: Callable[[Sequence[Job]], list[dict[str, Any]]],
) -> None:
    """Add the best row of each problem and direction: first over row lengths, then over tiles at the best of them."""
    tried: dict[tuple[str, Direction], Tried] = {(p.name, direction): [] for p in problems for direction in DIRECTIONS}

    def attempt(jobs: Sequence[Job]) -> None:
        for job, answer in zip(jobs, ask(jobs), strict=True):
            tried[job.problem, job.direction].append((job, answer))

    first = contender.sweep[0] if contender.sweep else None
    jobs, settled = [], set()
    for problem in problems:
        apart = problem.has_trees and not contender.packs_trees
        sizes = [size for size in PEER_ROWS if size >= _longest(problem)] if apart else [None]
        for direction in DIRECTIONS:
            # Of a hot tile the whole sweep is shown.
            key = "/".join((contender.operation, problem.name, direction, contender.name, target))
            known = None if problem.tells_tile else before.get(key)
            if known is not None:
                settled.add((problem.name, direction))
            jobs += [known] if known is not None else [Job(problem.name, direction, first, size) for size in sizes]
    attempt(jobs)
    more = []
    for (name, direction), answers in tried.items():
        best = _least(answers)
        if best is not None and (name, direction) not in settled:
            more += [Job(name, direction, tiles, best[0].row_length) for tiles in contender.sweep[1:]]
    attempt(more)
    for problem in problems:
        for direction in DIRECTIONS:
            _add_best(outcome, contender, problem, direction, target, tried[problem.name, direction])


def _add_best(
    outcome: Outcome, contender: Contender, problem: Problem, direction: Direction, target: str, tried: Tried
) -> None:
    best = _least(tried)
    if best is None:
        uncounted = next(answer for _, answer in tried if not answer.get("complete"))
        why = uncounted.get("error") or "; ".join(uncounted.get("notes", ["no figure"]))
        outcome.left_out.append((f"{contender.name} on {problem.name}, {direction}, {target}", why))
        return
    job, figures = best
    sweep = [
        {"job": asdict(job), **{name: answer.get(name) for name in ("us", "tile", "error")}} for job, answer in tried
    ]
    names = (contender.operation, problem.name, direction, contender.name, target)
    outcome.rows.append(Row(*names, contender.ours, problem.units, {**figures, "sweep": sweep}, asdict(job)))


def _longest(problem: Problem) -> int:
    from pit_kernels.microbench.problems import SEED
    from pit_kernels.workloads import path_lengths

    return 0 if problem.workload is None else max(path_lengths(problem.workload, SEED))


def _least(tried: Sequence[tuple[Job, dict[str, Any]]]) -> tuple[Job, dict[str, Any]] | None:
    """Return the complete answer that takes the least time, or has the shortest tile where tiles are measured.

    Return None without one, because an unknown figure is not shown. The same holds if the counted part of an incomplete
    answer takes less: the best of a contender is then not known.
    """
    complete = [(job, answer) for job, answer in tried if answer.get("complete")]
    tiled = [(job, answer) for job, answer in complete if "tile" in answer]
    if tiled:
        return min(tiled, key=lambda pair: float(pair[1]["tile"]["bundles"]))
    least = min(complete, key=lambda pair: float(pair[1]["us"]), default=None)
    counted = [answer["us"] for _, answer in tried if not answer.get("complete") and answer.get("us") is not None]
    return None if least is not None and any(us < least[1]["us"] for us in counted) else least


def ask_worker(
    contender: Contender,
    target: str,
    jobs: Sequence[Job],
    lengths: Mapping[str, Any] | None = None,
    keep_dumps: Path | None = None,
) -> list[dict[str, Any]]:
    """Have a separate process compile and count the jobs.

    Raises:
      RuntimeError: if the process dies; the message ends with its last output.
    """
    request = {
        "operation": contender.operation,
        "contender": contender.name,
        "target": target,
        "jobs": [asdict(job) for job in jobs],
        "lengths": dict(lengths) if lengths else None,
        "keep_dumps": None if keep_dumps is None else str(keep_dumps),
    }
    answer = _process("pit_kernels.microbench.worker", json.dumps(request))
    lines = [json.loads(line) for line in answer.splitlines() if line.startswith("{")]
    if len(lines) != len(jobs):
        raise RuntimeError(f"the worker of {contender.name} answered {len(lines)} of {len(jobs)} jobs: {answer[-500:]}")
    return lines


def judged_apart(operation: str, name: str) -> str | None:
    """Return the first failure of a contender in conformance, judged in a separate process, or None."""
    answer = _process("pit_kernels.microbench.judge", json.dumps({"operation": operation, "contender": name}))
    failure: str | None = json.loads(answer.splitlines()[-1])["failure"]
    return failure


def _process(module: str, text: str) -> str:
    # The interpreter's callbacks wait for one another: on a machine of one core JAX has threads enough for two devices.
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    process = subprocess.run(
        [sys.executable, "-m", module], input=text, capture_output=True, text=True, env=environment, check=False
    )
    if process.returncode != 0:
        raise RuntimeError(f"{module} failed with status {process.returncode}: {process.stderr[-1000:]}")
    return process.stdout


def sources(operation: str, contender: Contender) -> tuple[str, ...]:
    """Return the files and folders of this package that a contender's figures depend on.

    Example:
      >>> from pit_kernels.microbench.contenders import contenders
      >>> "gap_reward" in sources("gap_reward", contenders("gap_reward")["xla"])
      True
    """
    return (*_EVERYONES, *_OURS, operation) if contender.ours else _EVERYONES


def origin(operation: str, name: str) -> dict[str, Any]:
    """Return the origin of figures: versions, and the last commit that touched their sources, or "unknown"."""
    versions = {}
    for package in ("jax", "jaxlib", "libtpu", "tokamax", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    paths = [f":(top)kernels/pit_kernels/{path}" for path in sources(operation, named_contender(operation, name))]
    commit = _git("log", "-1", "--format=%H", "--", *paths)
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    return {"versions": versions, "commit": (commit or "unknown") + (" with changes" if changed else "")}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()


def save(rows: Sequence[Row], path: Path) -> None:
    """Write rows into a results file, in the place of rows of the same name; other rows stay."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    source = functools.cache(origin)
    for row in rows:
        figures = {**row.figures, "kernels": _short(row.figures.get("kernels", []))}
        kept[row.key] = {**asdict(row), "figures": figures, **source(row.operation, row.contender)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")


def _short(kernels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the kernels with at least a hundredth of all cycles."""
    total = sum(kernel["cycles"] or 0 for kernel in kernels)
    return [
        {key: kernel[key] for key in ("name", "calls", "cycles", "hbm_bytes", "hot")}
        for kernel in kernels
        if (kernel["cycles"] or 0) * 100 >= total
    ]


def load(path: Path) -> list[Row]:
    """Return the rows of a results file.

    Raises:
      ValueError: if it is not a results file.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        names = Row.__dataclass_fields__
        return [Row(**{name: row[name] for name in names}) for row in kept.values()]
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is not a results file of the kernel suite ({error}); write one with --json"
        ) from error


def origins(path: Path) -> dict[str, dict[str, Any]]:
    """Return the versions and commit of each row of a results file, by the row's name; none without a file."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {key: {name: row[name] for name in ("versions", "commit") if name in row} for key, row in kept.items()}


def regressions(rows: Sequence[Row], baseline: Sequence[Row]) -> list[str]:
    """Return one line for each figure of ours that lies more than TOLERANCE above its baseline."""
    before = {row.key: row for row in baseline}
    worse = []
    for row in rows:
        if not row.ours or row.key not in before:
            continue
        for name in ("us", "cycles", "hbm_bytes"):
            now, then = row.figures[name], before[row.key].figures[name]
            if now > then * (1 + TOLERANCE):
                worse.append(f"{row.key}: {name} is {now:,.6g}, {now / then - 1:+.1%} of {then:,.6g}")
    return worse
