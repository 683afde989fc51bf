"""`pit run`: every job of a run in order, each in a process of its own, independent ones side by side.

A job that is finished is skipped, a half-done stage resumes from its checkpoint. Progress of the children comes as JSON
lines on their stdout and is drawn here.

Several processes on several hosts do the same jobs in the same order, each of them in the process of `pit run` itself:
they meet once, so that no two groups of processes share an address, a job that one process does alone is waited for by
the others, and accelerators are taken once instead of once per job.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pit import processes, report
from pit.config import RunConfig, digest, to_dict
from pit.errors import Interruption, PitError
from pit.evaluate.collect import collect
from pit.evaluate.gates import GATE
from pit.evaluate.gold import services
from pit.evaluate.schema import FILE_NAME, Results, write_results
from pit.evaluate.splits import SEARCH
from pit.run.copies import made_by_first
from pit.run.folder import Run
from pit.run.session import identity_of
from pit.run.stage import Job, Services, Stage
from pit.stages.change import adopt
from pit.stages.graph import GRAPH, jobs_of
from pit.stages.prepare import prepare, require_folds, require_prompts, require_rows
from pit.terminal import say, styled
from pit.train.log import PROGRESS_VARIABLE
from pit.train.loop import InterruptFlag
from pit.train.trackers import REMOTE, STATE, Trackers, require


class PipelineError(PitError):
    """A job failed; its own message is part of this one."""


class PipelineInterrupted(Interruption):
    """The run was asked to stop; every running stage has saved its checkpoint."""


def _evaluate(run: Run, services: Services) -> None:
    require(run.config.tracker_names)
    results = collect(run)

    def publish() -> None:
        write_results(results, run.folder / FILE_NAME)
        report.render(run.folder)
        print_results(results)
        track_results(run, results)

    processes.by_first(publish, "results")


def track_results(run: Run, results: Results) -> None:
    """Send the key figures of a run to its trackers, each evaluation as a run of its own there."""
    values = {f"delta/{name}": d.value for name, d in results.delta.items()}
    values |= {f"delta/{name}/{end}": getattr(d, end) for name, d in results.delta.items() for end in ("low", "high")}
    values |= {f"accuracy/{name}": a.value for name, a in results.accuracies.items()}
    values |= {f"perplexity/{name}": p.value for name, p in results.perplexity.items()}
    folder = run.folder / "evaluate"
    names = [name for name in run.config.tracker_names if name in REMOTE]
    if names:
        folder.mkdir(exist_ok=True)
        (folder / STATE).unlink(missing_ok=True)
        trackers = Trackers(names, folder, identity_of(run, "evaluate"), note=say)
        trackers.log(0, values)
        trackers.close()


EVALUATE = Job(
    name="evaluate",
    title="improve, judge, report",
    work=_evaluate,
    after=jobs_of,
    flags=(
        ("--judge-url", "evaluate.judge.url", "Also ask an LLM judge behind this URL; its key is in PIT_JUDGE_KEY."),
        ("--judge-model", "evaluate.judge.model", "Name of the judging model there."),
    ),
)
"""Measures a finished run and writes results.json and report.html."""

JOBS: tuple[Job, ...] = (*GRAPH, GATE, SEARCH, EVALUATE)
"""Every job that a command can do alone: `pit NAME --run FOLDER`."""


def print_results(results: Results) -> None:
    """Print the comparisons under the first measure, in points, accuracies and caveats; the report has the rest."""
    measure = next((name.split("/")[1] for name in results.delta), "")
    shown = {name.removesuffix(f"/{measure}"): d for name, d in results.delta.items() if name.endswith(f"/{measure}")}
    if shown:
        say(f"win rate less lose rate by the {measure}, points [95 %], {next(iter(shown.values())).n} prompts")
    for name, d in shown.items():
        say(f"  {name.replace('_', ' '):<36} {d.value:+6.1f} [{d.low:+.1f}, {d.high:+.1f}]")
    say("share of held-out pairs ranked right [95 %]")
    for name, a in results.accuracies.items():
        label = "longer is better" if name == "length" else name
        say(f"  {label:<36} {a.value:6.3f} [{a.low:.3f}, {a.high:.3f}]")
    if results.perplexity:
        say("perplexity per token of held-out better answers [95 %]")
    for name, p in results.perplexity.items():
        say(f"  {name:<36} {p.value:6.2f} [{p.low:.2f}, {p.high:.2f}]")
    for note in results.notes:
        say(f"note: {note}")


def needs_of(config: RunConfig) -> dict[Job, tuple[Job, ...]]:
    """Return the jobs of a run in order, each with the jobs that must be finished before it; RL waits for the gate."""
    needs: dict[Job, tuple[Job, ...]] = {}
    for job in (*jobs_of(config), EVALUATE):
        gated = isinstance(job, Stage) and job.maximises(config) and GATE.included(config)
        if gated and GATE not in needs:
            needs[GATE] = GATE.needs(config)
        needs[job] = (*job.needs(config), *((GATE,) if gated else ()))
    return needs


def run_pipeline(run: Run, *, console: Console, profile_steps: int = 0) -> None:
    """Prepare the data and do all jobs.

    Raises:
        ConfigError: a stage cannot work under this config.
        PipelineError: a job failed.
        PipelineInterrupted: SIGINT (Ctrl-C) or SIGTERM; running stages have saved a checkpoint.
        ProcessError: the processes of the program have not the same config or folder.
    """
    processes.require_same("config", digest(to_dict(run.config)))
    needs = needs_of(run.config)
    for job in needs:
        if isinstance(job, Stage):
            job.validate(run.config)
    require(run.config.tracker_names)
    made_by_first(run, lambda: _prepare(run, console), "data")
    require_folds(run)
    done = {job for job in needs if job.done(run)}
    names = sorted(job.name for job in done)
    processes.require_same("finished jobs", ", ".join(names) or "none")
    for name in names:
        console.print(f"[dim]{name}: finished before, skipped[/]")
    if processes.many():
        _work_together(run, [job for job in needs if job not in done], console, profile_steps)
        return
    scheduler = _Scheduler(run, console, profile_steps)
    # SIGINT too: a shell that starts a run in the background has it ignored, and `kill -INT` must still be heard.
    before = {number: signal.signal(number, scheduler.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        scheduler.run(needs, done)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        scheduler.close()


def _prepare(run: Run, console: Console) -> None:
    data = run.config.data
    source = data.path or f"synthetic task {data.task}"
    console.print(styled(("data", "bold"), f"  {source} -> {run.folder / 'store'}"), soft_wrap=True)
    for line in adopt(run):
        console.print(styled(("set", "bold"), f"   {line}"), highlight=False, soft_wrap=True)
    prepared = prepare(run)
    require_rows(run)
    require_prompts(run)
    run.save_config()  # parts that may change while a run is on
    for line in prepared.lines() if prepared is not None else ():
        console.print(styled(f"      {line}"), highlight=False)


def _work_together(run: Run, jobs: Sequence[Job], console: Console, profile_steps: int) -> None:
    """Do jobs one after the other in this process, while all other processes do the same.

    Raises:
        PipelineInterrupted: a process was asked to stop between two jobs.
    """
    with InterruptFlag() as flag:
        for job in jobs:
            if processes.agreed(flag.raised, f"start of {job.name}"):
                raise PipelineInterrupted
            begin_s = time.monotonic()
            console.print(f"{job.name}: started ({job.title})")
            # A run of its own, as in a process of its own, so that no job keeps the models of another.
            job.work(Run(run.folder, run.config), services(profile_steps))
            jax.clear_caches()
            seconds = time.monotonic() - begin_s
            console.print(f"[green]done[/]  {job.name:<15} {seconds:6.1f} s  {job.title}")
    processes.meet("end of the run")


def _workers(config: RunConfig) -> int:
    """Return how many jobs run at a time: one where they would share an accelerator."""
    on_cpu = sys.platform == "darwin" or os.environ.get("JAX_PLATFORMS") == "cpu"
    return config.workers if on_cpu else 1


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[str]
    task: TaskID
    begin: float = field(default_factory=time.monotonic)
    errors: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)


class _Scheduler:
    """Starts every job whose needs are finished, at most `workers` at a time."""

    def __init__(self, run: Run, console: Console, profile_steps: int) -> None:
        self._run, self._console, self._profile_steps = run, console, profile_steps
        self._asked = 0
        self._progress = Progress(
            TextColumn("[bold]{task.description:<15}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()

    def stop(self, *_: object) -> None:
        """Signal handler: asked once, stages save a checkpoint at the end of their step; asked twice, they die."""
        self._asked += 1

    def run(self, needs: Mapping[Job, Sequence[Job]], done: set[Job]) -> None:
        waiting = sorted((job for job in needs if job not in done), key=lambda job: -_height(job, needs))
        running: list[_Child] = []
        passed_on = 0
        try:
            while running or (waiting and not self._asked):
                ready = [job for job in waiting if set(needs[job]) <= done and not self._asked]
                for job in ready[: _workers(self._run.config) - len(running)]:
                    waiting.remove(job)
                    running.append(self._start(job))
                time.sleep(0.05)
                if passed_on < self._asked:
                    passed_on += 1
                    self._console.print("stopping at the next checkpoint; once more stops at once")
                    for child in running:
                        child.process.terminate()
                for child in [c for c in running if c.process.poll() is not None]:
                    running.remove(child)
                    if self._finish(child):
                        done.add(child.job)
        except PipelineError:
            for child in running:
                child.process.terminate()
                child.process.wait()
            raise
        if not set(needs) <= done:
            raise PipelineInterrupted

    def _start(self, job: Job) -> _Child:
        profile = ["--profile", str(self._profile_steps)] if self._profile_steps else []
        process = subprocess.Popen(
            [sys.executable, "-m", "pit", job.name, "--run", str(self._run.folder), *profile],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
            | {PROGRESS_VARIABLE: "json"},
            # Out of reach of the terminal's Ctrl-C: signals come from here, each once, whoever sent them.
            start_new_session=True,
        )
        task = self._progress.add_task(job.name, total=None, text="starting")
        if not self._console.is_terminal:
            self._console.print(f"{job.name}: started ({job.title})")
        child = _Child(job, process, task)
        child.readers = [
            threading.Thread(target=self._read_progress, args=(child,), daemon=True),
            threading.Thread(target=self._read_errors, args=(child,), daemon=True),
        ]
        for reader in child.readers:
            reader.start()
        return child

    def _read_progress(self, child: _Child) -> None:
        assert child.process.stdout is not None
        with child.process.stdout as stream:
            for line in stream:
                message = _progress_in(line)
                if message is None:
                    self._console.print(line.rstrip("\n"), markup=False, highlight=False)
                else:
                    done, total, text = message
                    self._progress.update(child.task, completed=done, total=total, text=escape(text))

    def _read_errors(self, child: _Child) -> None:
        assert child.process.stderr is not None
        with child.process.stderr as stream:
            child.errors.extend(stream)

    def _finish(self, child: _Child) -> bool:
        """Return whether the job was done; if not, it was asked to stop."""
        for reader in child.readers:
            reader.join()
        code = child.process.returncode
        if code == Interruption.exit_status:
            self._asked = max(self._asked, 1)
        if code != 0 and not self._asked:
            raise PipelineError(f"{child.job.name} failed (exit {code}):\n{''.join(child.errors[-30:]).rstrip()}")
        self._progress.update(child.task, visible=False)
        if code == 0:
            seconds = time.monotonic() - child.begin
            self._console.print(f"[green]done[/]  {child.job.name:<15} {seconds:6.1f} s  {child.job.title}")
        return code == 0


def _progress_in(line: str) -> tuple[int, int, str] | None:
    """Return the progress on a line of a child's stdout, None for any other line."""
    try:
        message = json.loads(line) if line.startswith('{"stage"') else {}
        done, total, text = message["done"], message["total"], message["text"]
    except (ValueError, KeyError):
        return None
    return done, total, text


def _height(job: Job, needs: Mapping[Job, Sequence[Job]]) -> int:
    """Return the length of the longest chain of jobs that wait for this one: those with the longest go first."""
    return 1 + max((_height(other, needs) for other, before in needs.items() if job in before), default=0)
