"""The loop of every stage: step, log, evaluate, checkpoint. It stops cleanly and resumes with the same bits."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from pit import processes
from pit.errors import Interruption, PitError
from pit.losses.total import Total
from pit.train.checkpoint import Checkpoints
from pit.train.guard import DivergedError
from pit.train.log import StageLog
from pit.train.update import TrainState


class Interrupted(Interruption):
    """The stage was asked to stop; its checkpoint is saved."""


class StepError(PitError):
    """A step that could not be taken for a reason outside of training, which left the state as it was before."""


class InterruptFlag:
    """A flag that the first SIGINT or SIGTERM raises and the loop reads between steps; the second signal kills.

    It raises a flag around it too, which somebody reads after the loop.
    """

    def __init__(self) -> None:
        self.raised = False
        self._previous: dict[int, Any] = {}

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        previous = self._previous[number]
        outer = getattr(previous, "__self__", None)
        if isinstance(outer, InterruptFlag):
            outer._raise(number, frame)
        else:
            signal.signal(number, previous)

    def __enter__(self) -> "InterruptFlag":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Profiler:
    """A trace of the first `steps` steps after compilation, in FOLDER/profile (0: none)."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self._left, self._running = folder / "profile", steps, False

    def before(self, finished_steps: int) -> None:
        """Start once the first step of this process, which compiles, is over."""
        if self._left and finished_steps >= 1 and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self) -> None:
        """Count a traced step; stop after the last one."""
        if self._running:
            self._left -= 1
            if self._left == 0:
                self.close()

    def close(self) -> None:
        """End the trace if it runs."""
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._left = False, 0


class Schedule(NamedTuple):
    """Length of a stage, and its intervals in steps.

    steps: the last step.
    checkpoint_every: 0: only at the end.
    evaluate_every: 0: only at the end.
    profile_steps: steps to trace with the JAX profiler.
    """

    steps: int
    checkpoint_every: int
    evaluate_every: int
    profile_steps: int = 0


@runtime_checkable
class Work(Protocol):
    """The half of a training stage that is its own; states are saved with every checkpoint."""

    def step(self, state: TrainState) -> tuple[TrainState, Mapping[str, Total | float]]:
        """Take one optimizer step."""

    def evaluate(self, state: TrainState) -> Mapping[str, float]:
        """Return held-out metrics."""

    def loader_state(self) -> Mapping[str, Any]:
        """Return the state of the data, as JSON values and bytes."""

    def controller_state(self) -> Mapping[str, Any]:
        """Return the state of everything else that steers the steps, as JSON values."""

    def halt(self) -> PitError | None:
        """Return the reason to stop now, None where there is none; asked before the first step and after each."""


def run_steps(
    state: TrainState,
    work: Work,
    schedule: Schedule,
    *,
    log: StageLog,
    checkpoints: Checkpoints,
    meta: Callable[[], Mapping[str, Any]],
) -> TrainState:
    """Run from the state's step to the schedule's last.

    Args:
        state: where to begin; its buffers are consumed.
        work: what each step does.
        schedule: steps and intervals.
        log: receives metrics and progress; its state is saved with the controllers', as "log".
        checkpoints: receive the state at the schedule's interval, at an interrupt, and at the end.
        meta: returns JSON values that are saved with the weights.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived, at any of the processes; the state is saved.
        PitError: the reason of `work.halt`; the state is saved.
        StepError: a step could not be taken; the state before it is saved.
    """
    done = first = int(state.step)
    steps = schedule.steps
    if (reason := work.halt()) is not None:
        raise reason

    def save() -> None:
        checkpoints.save(state, work.loader_state(), {**work.controller_state(), "log": log.state()}, meta())

    profiler = Profiler(log.folder, schedule.profile_steps)
    with InterruptFlag() as flag:
        try:
            while done < steps:
                profiler.before(done - first)
                state, metrics = work.step(state)
                profiler.after()
                done += 1
                log.step(done, steps, metrics)
                if done == steps or (schedule.evaluate_every and done % schedule.evaluate_every == 0):
                    log.write(done, {f"eval/{name}": value for name, value in work.evaluate(state).items()})
                reason = work.halt()
                stops = processes.agreed(flag.raised, f"step {done} of {log.folder.name}")
                due = done == steps or (schedule.checkpoint_every and done % schedule.checkpoint_every == 0)
                if due or stops or reason is not None:
                    save()
                if reason is not None:
                    raise reason
                if stops and done < steps:
                    raise Interrupted(f"stopped after step {done} of {steps}")
        except StepError:
            # A last step is taken again, because nothing else would measure it.
            if first < done < steps:
                save()
            raise
        except Exception as error:
            if error is not reason and not isinstance(error, Interruption | DivergedError | FloatingPointError):
                # Of this process alone: the others would wait for it in the checkpoint.
                processes.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            raise
        finally:
            profiler.close()
            checkpoints.wait()
            if not processes.failed():
                # The end of one process ends the others, whose part may not be written yet.
                processes.meet(f"checkpoints of {log.folder.name}")
    return state
