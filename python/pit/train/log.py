"""Metrics to JSONL and trackers, progress to the terminal (or, for a parent process, as JSON lines on stdout)."""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pit import processes
from pit.atomic import naming, write_file
from pit.losses.total import Total
from pit.records import read_lines
from pit.terminal import Terminal
from pit.train.trackers import Identity, Trackers
from pit.train.update import REFUSED

PROGRESS_VARIABLE = "PIT_PROGRESS"
"""Set to "json" by a parent that draws the progress of its stages itself."""


@runtime_checkable
class Reporter(Protocol):
    """Receiver of progress."""

    def update(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` steps are finished."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Restore the terminal."""


class RichReporter:
    """One live line: bar, steps, time left, and the last metrics."""

    def __init__(self, name: str) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description:<15}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
            console=Terminal(stderr=True),
        )
        self._progress.start()
        self._task = self._progress.add_task(name, total=None, text="compiling")

    def update(self, done: int, total: int, text: str) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total, text=text)

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the live display."""
        self._progress.stop()


class JsonReporter:
    """One JSON object a line on stdout, at most four a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = 0.0

    def update(self, done: int, total: int, text: str) -> None:
        """Print one line, unless the last one is fresh."""
        now = time.monotonic()
        if now - self._last > 0.25 or done == total:
            self._last = now
            line = {"stage": self._name, "done": done, "total": total, "text": text}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print the text as it is; the parent shows lines that are not JSON."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Do nothing: nothing is held open."""


class SilentReporter:
    """The reporter of all processes but the first."""

    def update(self, done: int, total: int, text: str) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing: nothing is held open."""


def make_reporter(name: str) -> Reporter:
    """Return a reporter: a terminal line, or JSON lines where a parent process asks for them; the first process's."""
    if not processes.first():
        return SilentReporter()
    return JsonReporter(name) if os.environ.get(PROGRESS_VARIABLE) == "json" else RichReporter(name)


class CompileClock:
    """Seconds that XLA has spent compiling in this process since the clock was made."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration_secs


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far (Linux counts in KiB, macOS in bytes)."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class StageLog:
    """Metrics and progress of one stage.

    Device values are kept as they are until the next logged step, so that logging does not wait for the device at every
    one. `metrics.jsonl` holds one line a logged step; lines after the resumed step are dropped when a run resumes. Of
    several processes all have the same metrics, and the first alone writes them.

    Args:
        folder: folder of the stage.
        name: name of the stage.
        resumed_step: last step whose lines stay.
        every: steps per line, which holds their means.
        pending: `state` of the log at the resumed step, with which its next line begins.
        trackers: names of the trackers that get every line.
        facts: run, stage and config, for trackers other than TensorBoard.
    """

    # Seven parameters: what is logged, from where on, and to whom else.
    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        resumed_step: int = 0,
        every: int = 5,
        pending: Sequence[Mapping[str, Sequence[float]]] = (),
        trackers: Sequence[str] = ("tensorboard",),
        facts: Identity | None = None,
    ) -> None:
        self.folder, self.every = folder, every
        folder.mkdir(parents=True, exist_ok=True)
        writes = processes.first()
        self._path = folder / "metrics.jsonl" if writes else Path(os.devnull)
        kept = self._drop_after(resumed_step) if writes else []
        self._file = self._path.open("a", encoding="utf-8")
        self.reporter = make_reporter(name)
        self._trackers = Trackers(
            trackers if writes else (), folder, facts, resumed_step=resumed_step, kept=kept, note=self.reporter.note
        )
        self._carried = list(pending)
        self._pending: list[Mapping[str, Total | float]] = []
        self._text = ""

    def _drop_after(self, step: int) -> list[tuple[int, dict[str, float]]]:
        """Drop the lines after a step; return step and metrics of the others."""
        if not self._path.exists():
            return []
        lines = read_lines(self._path, "delete that line, and run the command again", {"step": int}, whole=False)
        kept = [(line, values) for line, values in lines if values["step"] <= step]
        write_file(self._path, b"".join(line for line, _ in kept))
        return [(values.pop("step"), values) for _, values in kept]

    def step(self, done: int, total: int, metrics: Mapping[str, Total | float]) -> None:
        """Take the metrics of a finished step; every `every` steps their mean is written."""
        self._pending.append(metrics)
        if done % self.every == 0 or done == total:
            values = _means(self.state())
            self._carried, self._pending = [], []
            self.write(done, values)
            names = ("loss", "accuracy", "objective/reward", "objective/kl", "perf/tokens_per_s", "perf/fill")
            shown = [f"{n.split('/')[-1]} {values[n]:.4g}" for n in names if n in values]
            self._text = "  ".join(shown)
        self.reporter.update(done, total, self._text)

    def state(self) -> list[Mapping[str, Sequence[float]]]:
        """Return the metrics since the last line, as JSON values: (sum, weight) by name; a plain number weighs 1."""
        taken = jax.device_get(self._pending)
        return self._carried + [{name: _pair(value) for name, value in metrics.items()} for metrics in taken]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        for name in ("loss", "eval/loss"):
            if name in values and not abs(values[name]) < float("inf"):
                raise FloatingPointError(
                    f"{name} = {values[name]} at step {step}: training diverged; lower optimizer.learning_rate or "
                    "optimizer.clip_norm and start another run"
                )
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        self._trackers.log(step, values)

    def __enter__(self) -> "StageLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._trackers.close()
        self.reporter.close()
        with naming(self._path):
            self._file.close()


def _pair(value: Total | float) -> tuple[float, float]:
    return (float(value.sum), float(value.weight)) if isinstance(value, Total) else (float(value), 1.0)


def _means(pending: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return the mean of each metric over the steps: sums over weights."""
    sums: dict[str, list[float]] = {}
    for metrics in pending:
        for name, value in metrics.items():
            pair = sums.setdefault(name, [0.0, 0.0])
            pair[0] += value[0]
            pair[1] += value[1]
    refused = sums.get(REFUSED, [0.0, 1.0])
    if refused[0] == refused[1]:
        # Nothing but refused steps: their losses weigh nothing, and 0 is none.
        sums = {name: pair for name, pair in sums.items() if pair[1]}
    return {name: s / w if w else 0.0 for name, (s, w) in sums.items()}
