"""`pit run`: every stage of a recipe in order, each in a process of its own, independent ones side by side.

A stage whose record has the same hash is skipped, a half-done one is resumed from its checkpoint. Progress of the
children comes as JSON lines on their stdout and is drawn here.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pit.config import RunConfig
from pit.errors import Interruption, PitError
from pit.stages.context import STAGES, Run, needs_of, stages_of
from pit.stages.prepare import prepare
from pit.train.log import PROGRESS_VARIABLE


class PipelineError(PitError):
    """A stage failed; its own message is part of this one."""


class PipelineInterrupted(Interruption):
    """The run was asked to stop; every running stage has saved its checkpoint."""


@dataclass
class Node:
    """One process of the pipeline: its command line after `pit`, and the nodes that must be finished before it."""

    name: str
    arguments: list[str]
    needs: tuple[str, ...]
    title: str


@dataclass
class _Child:
    node: Node
    process: subprocess.Popen[str]
    task: TaskID
    begin: float = field(default_factory=time.monotonic)
    errors: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)


def nodes_of(run: Run, profile_steps: int = 0) -> list[Node]:
    """The nodes of a run in the order of the method; RL waits for the gates."""
    gated = run.config.evaluate.gate != "off"
    folder = ["--run", str(run.folder)]
    nodes = []
    for name in stages_of(run.config):
        spec, needs = STAGES[name], needs_of(name, run.config)
        if name == "rl-policy" and gated:
            check = Node(
                "check", ["reward", "check", *folder], ("reward-quality", "reward-gap"), "can the reward models see?"
            )
            nodes.append(check)
        if name == "refresh-quality":
            nodes.append(Node("refresh-pairs", ["refresh", "pairs", *folder], needs[1:], "labelled samples"))
        if name.startswith("refresh-"):
            needs = (*needs, "refresh-pairs")
        if name.startswith("rl-") and gated:
            needs = (*needs, "check")
        if name.startswith("rl-") and run.config.board.gold == "judge":
            needs = (*needs, "reward-judge")
        profile = ["--profile", str(profile_steps)] if profile_steps else []
        nodes.append(Node(name, [*name.split("-", 1), *folder, *profile], needs, spec.title))
    everything = tuple(node.name for node in nodes)
    nodes.append(Node("evaluate", ["evaluate", *folder], everything, "improve, judge, report"))
    return nodes


def run_pipeline(run: Run, *, console: Console, profile_steps: int = 0) -> None:
    """Prepare the data and run all nodes.

    Raises:
        PipelineError: a stage failed.
        PipelineInterrupted: SIGINT (Ctrl-C) or SIGTERM; what was running is checkpointed.
    """
    run.save_config()
    data = run.config.data
    source = data.path or f"synthetic instructions, {data.task}"
    console.print(f"[bold]data[/]  {source} -> {run.folder / 'store'}")
    report = prepare(run)
    if report is not None:
        dropped = sum(report.dropped.values())
        console.print(f"      {report.rows:,} rows read, {report.kept:,} kept, {dropped:,} dropped")
    nodes = nodes_of(run, profile_steps)
    done = {node.name for node in nodes if node.name in STAGES and run.done(node.name) is not None}
    if "refresh-gap" in stages_of(run.config) and {"refresh-quality", "refresh-gap"} <= done:
        done.add("refresh-pairs")
    for name in sorted(done):
        console.print(f"[dim]{name}: finished before, skipped[/]")
    scheduler = _Scheduler(run.config, console)
    # SIGINT too: a shell that starts a run in the background has it ignored, and `kill -INT` must still be heard.
    before = {number: signal.signal(number, scheduler.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        scheduler.run(nodes, done)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        scheduler.close()


class _Scheduler:
    """Starts every node whose needs are finished, at most `workers` at once."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self._workers = config.workers
        self._console = console
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

    def run(self, nodes: Sequence[Node], done: set[str]) -> None:
        waiting = sorted((n for n in nodes if n.name not in done), key=lambda n: -_height(n, nodes))
        running: list[_Child] = []
        passed_on = 0
        try:
            while running or (waiting and not self._asked):
                ready = [node for node in waiting if set(node.needs) <= done and not self._asked]
                for node in ready[: self._workers - len(running)]:
                    waiting.remove(node)
                    running.append(self._start(node))
                time.sleep(0.05)
                if passed_on < self._asked:
                    passed_on += 1
                    self._console.print("stopping at the next checkpoint; once more stops at once")
                    for child in running:
                        child.process.terminate()
                for child in [c for c in running if c.process.poll() is not None]:
                    running.remove(child)
                    if self._finish(child):
                        done.add(child.node.name)
        except PipelineError:
            for child in running:
                child.process.terminate()
                child.process.wait()
            raise
        if not {node.name for node in nodes} <= done:
            raise PipelineInterrupted

    def _start(self, node: Node) -> _Child:
        process = subprocess.Popen(
            [sys.executable, "-m", "pit", *node.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, PROGRESS_VARIABLE: "json"},
            # Out of reach of the terminal's Ctrl-C: signals come from here, each once, whoever sent them.
            start_new_session=True,
        )
        task = self._progress.add_task(node.name, total=None, text="starting")
        if not self._console.is_terminal:
            self._console.print(f"{node.name}: started ({node.title})")
        child = _Child(node, process, task)
        child.readers = [
            threading.Thread(target=self._read_progress, args=(child,), daemon=True),
            threading.Thread(target=self._read_errors, args=(child,), daemon=True),
        ]
        for reader in child.readers:
            reader.start()
        return child

    def _read_progress(self, child: _Child) -> None:
        assert child.process.stdout is not None
        for line in child.process.stdout:
            if line.startswith('{"stage"'):
                message: dict[str, Any] = json.loads(line)
                self._progress.update(
                    child.task, completed=message["done"], total=message["total"], text=message["text"]
                )
            else:
                self._console.print(line.rstrip("\n"), markup=False, highlight=False)

    def _read_errors(self, child: _Child) -> None:
        assert child.process.stderr is not None
        child.errors.extend(child.process.stderr)

    def _finish(self, child: _Child) -> bool:
        """Whether the node did its work; if not, it was asked to stop."""
        for reader in child.readers:
            reader.join()
        code = child.process.returncode
        if code == Interruption.exit_status:
            self._asked = max(self._asked, 1)
        if code != 0 and not self._asked:
            raise PipelineError(f"{child.node.name} failed (exit {code}):\n{''.join(child.errors[-30:]).rstrip()}")
        self._progress.update(child.task, visible=False)
        if code == 0:
            seconds = time.monotonic() - child.begin
            self._console.print(f"[green]done[/]  {child.node.name:<15} {seconds:6.1f} s  {child.node.title}")
        return code == 0


def _height(node: Node, nodes: Sequence[Node]) -> int:
    """Length of the longest chain of nodes that wait for this one: those with the longest go first."""
    return 1 + max((_height(other, nodes) for other in nodes if node.name in other.needs), default=0)
