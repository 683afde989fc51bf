"""One stage at work: the common half of training it.

A session claims the stage's folder, restores the newest checkpoint, guards and logs the steps, and writes the record at
the end; the stage's own half is a `Task`.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from pit import processes
from pit.atomic import write_file
from pit.config import OptimizerConfig, to_dict
from pit.errors import PitError
from pit.model.model import Model
from pit.run.copies import made_by_first
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.train.checkpoint import Restored
from pit.train.guard import Guard
from pit.train.log import CompileClock, StageLog, peak_memory_bytes
from pit.train.loop import Schedule, Work, run_steps
from pit.train.trackers import Identity, require
from pit.train.update import LossFunction, Update, make_optimizer

LOCK = "lock"
WAIT_S = 60.0
"""Seconds that a stage waits for another process before it gives up."""

_POLL_S = 0.1


class BusyError(PitError):
    """Another process works on the stage."""


@runtime_checkable
class Task(Work, Protocol):
    """A stage's own half: what it optimises, and how its work resumes from a checkpoint."""

    @property
    def loss(self) -> LossFunction:
        """The loss of a microbatch."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Settings of the optimizer."""

    @property
    def log_every(self) -> int:
        """Steps per logged line."""

    def begin(self, step: int, restored: Restored | None) -> None:
        """Start at a step, from the state that a checkpoint holds, if there is one."""

    def close(self) -> None:
        """Release files and threads."""


class Session:
    """A stage at work.

    Attributes:
        run: the run.
        stage: the stage.
        settings: the stage's config section.
        tokens: tokens trained on so far.
        log, guard: receiver of metrics and progress, and guard of the updates, while the session trains.
    """

    log: StageLog
    guard: Guard

    def __init__(self, run: Run, stage: Stage, *, profile_steps: int = 0) -> None:
        stage.require(run.config)
        stage.validate(run.config)
        require(run.config.tracker_names)
        self.run, self.stage, self.settings = run, stage, stage.settings(run.config)
        self.folder = run.stage_folder(stage.name)
        self.tokens = 0
        self._profile_steps = profile_steps
        self._begin_s, self._compile = time.perf_counter(), CompileClock()

    def train(self, task: Task, initial: Model[Any], steps: int, *, updates: int = 1, **facts: Any) -> None:
        """Train the stage to its end, from its newest checkpoint if there is one, and write its record.

        Args:
            task: the stage's own half.
            initial: model to start from; the buffers of its trained weights are consumed.
            steps: the last step.
            updates: most optimizer updates of a step; the schedule of the learning rate counts updates.
            facts: more values of the record.
        """
        run, stage, settings = self.run, self.stage, self.settings
        update = Update(task.loss, make_optimizer(task.optimizer, steps * updates), initial.frozen)
        state = update.start(initial.trained)
        stage_hash, refused, pending = stage.hash(run), 0, []
        with claimed_by_first(self.folder), stage.checkpoints(run, keep=settings.keep) as checkpoints:
            restored = checkpoints.restore(state, stage_hash)
            if restored is not None:
                state, self.tokens = restored.state, restored.meta["tokens"]
                refused, pending = restored.controllers["refused_in_a_row"], restored.controllers["log"]
            done = int(state.step)
            self.guard = Guard(update, self.folder, stage.name, limit=task.optimizer.refusals, in_a_row=refused)
            log = StageLog(
                self.folder,
                stage.name,
                resumed_step=done,
                every=task.log_every,
                pending=pending,
                trackers=run.config.tracker_names,
                facts=identity_of(run, stage.name),
            )
            with log as self.log:
                schedule = Schedule(steps, settings.checkpoint_every, settings.evaluate_every, self._profile_steps)
                try:
                    task.begin(done, restored)
                    run_steps(
                        state,
                        task,
                        schedule,
                        log=self.log,
                        checkpoints=checkpoints,
                        meta=lambda: {"hash": stage_hash, "tokens": self.tokens},
                    )
                finally:
                    task.close()
        self._finish(steps, stage_hash, facts)

    def _finish(self, steps: int, stage_hash: str, facts: Mapping[str, Any]) -> None:
        record = {
            "hash": stage_hash,
            "steps": steps,
            "tokens": self.tokens,
            "seconds": round(time.perf_counter() - self._begin_s, 3),
            "compile_seconds": round(self._compile.seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "process": os.getpid(),
            **facts,
        }
        path, content = self.folder / "done.json", (json.dumps(record, indent=2) + "\n").encode()
        made_by_first(self.run, lambda: write_file(path, content), f"record of {self.stage.name}")


def identity_of(run: Run, stage: str) -> Identity:
    """Return what trackers call a stage of a run; each adds an id of its own."""
    return Identity(run.folder.absolute().name, stage, "", to_dict(run.config))


@contextmanager
def claimed_by_first(folder: Path) -> Iterator[None]:
    """Hold a stage's folder for all processes of this program: the first one alone has its lock.

    Raises:
        BusyError: another program held it all the time.
    """
    with ExitStack() as held:
        processes.by_first(lambda: held.enter_context(claim(folder)), f"lock of {folder.name}")
        yield


@contextmanager
def claim(folder: Path, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold a stage's folder until the end of the block, or of the process, however it ends.

    Two processes would write each other's checkpoints and logs. `kill -9` of `pit run` leaves its stages at work until
    their next report finds nobody there; whoever starts the run again meanwhile waits for them here.

    Raises:
        BusyError: another process held it all the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with (folder / LOCK).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"{folder}: another process has worked on this stage for {wait_s:g} s; wait for it to end or "
                        "stop it, then run the command again"
                    ) from None
                time.sleep(_POLL_S)
        yield
