"""The loop of every stage: step, log, evaluate, checkpoint; interrupted cleanly, resumed with the same bits."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from pit.errors import Interruption, PitError
from pit.losses.total import Total
from pit.train.checkpoint import Checkpoints
from pit.train.log import StageLog
from pit.train.update import TrainState


class Interrupted(Interruption):
    """The stage was asked to stop; its checkpoint is saved."""


class InterruptFlag:
    """Turns the first SIGINT or SIGTERM into a flag that the loop reads between steps; the second one kills."""

    def __init__(self) -> None:
        self.raised = False
        self._previous: dict[int, Any] = {}

    def _raise(self, number: int, _: FrameType | None) -> None:
        self.raised = True
        signal.signal(number, self._previous[number])

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


def _go_on() -> None:
    """Nothing stops the loop."""


def run_steps(
    state: TrainState,
    *,
    steps: int,
    step: Callable[[TrainState], tuple[TrainState, Mapping[str, Total | float]]],
    log: StageLog,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    loader_state: Callable[[], Mapping[str, Any]],
    controllers: Callable[[], Mapping[str, Any]],
    meta: Mapping[str, Any],
    evaluate: Callable[[TrainState], Mapping[str, float]],
    evaluate_every: int,
    profile_steps: int = 0,
    halt: Callable[[], PitError | None] = _go_on,
) -> TrainState:
    """Run from the state's step to `steps`.

    Args:
        state: where to begin; its buffers are consumed.
        steps: the last step.
        step: one optimizer step.
        log: where metrics and progress go.
        checkpoints: where states are saved: every `checkpoint_every` steps (0: never), at an interrupt, and at the end.
        checkpoint_every: see `checkpoints`.
        loader_state: state of whatever feeds `step`, as JSON values.
        controllers: state of whatever steers `step`, as JSON values; that of the log is saved beside it, as "log".
        meta: JSON values saved beside the weights.
        evaluate: held-out metrics, run every `evaluate_every` steps (0: only at the end) and at the end.
        evaluate_every: see `evaluate`.
        profile_steps: steps to trace with the JAX profiler.
        halt: asked before the first step and after each: an error ends the loop, once the state is saved.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; the state is saved.
        PitError: that of `halt`.
    """
    done = first = int(state.step)
    if (reason := halt()) is not None:
        raise reason
    profiler = Profiler(log.folder, profile_steps)
    with InterruptFlag() as flag:
        while done < steps:
            profiler.before(done - first)
            state, metrics = step(state)
            profiler.after()
            done += 1
            log.step(done, steps, metrics)
            if done == steps or (evaluate_every and done % evaluate_every == 0):
                log.write(done, {f"eval/{name}": value for name, value in evaluate(state).items()})
            reason = halt()
            due = done == steps or (checkpoint_every and done % checkpoint_every == 0)
            if due or flag.raised or reason is not None:
                checkpoints.save(state, loader_state(), {**controllers(), "log": log.state()}, meta)
            if reason is not None:
                profiler.close()
                checkpoints.wait()
                raise reason
            if flag.raised and done < steps:
                profiler.close()
                checkpoints.wait()
                raise Interrupted(f"stopped after step {done} of {steps}")
    profiler.close()
    checkpoints.wait()
    return state
