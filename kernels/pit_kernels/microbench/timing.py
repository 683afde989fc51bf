"""Times contenders on the attached device: compiled separately, warmed up, in turns; medians with their spread.

The device's own time is read from a profile where the device writes one; else it is the wall clock around a call whose
outputs were waited for, and the row says which.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels import device
from pit_kernels.microbench.contenders import Contender
from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.problems import PEER_ROWS, Job, Problem, program, rows
from pit_kernels.microbench.suite import DIRECTIONS, Outcome, Row, judged_apart
from pit_kernels.microbench.worker import named_contender, named_problem

ROUNDS = 20
"""Timed calls of each contender."""


def time_suite(
    operation: str,
    names: Sequence[str],
    problem_names: Sequence[str],
    *,
    lengths: Mapping[str, Any] | None = None,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Time contenders on problems of one operation on the attached device; arguments as of `suite.run_suite`."""
    outcome = Outcome()
    ready = []
    for name in names:
        contender = named_contender(operation, name)
        failure = contender.absent
        if failure is None:
            tell(f"{operation} {name}: conformance")
            failure = judged_apart(operation, name)
        if failure is None:
            ready.append(contender)
        else:
            outcome.left_out.append((name, failure))
    for name in problem_names:
        problem = named_problem(operation, name, dict(lengths) if lengths else None)
        tell(f"{operation} {name}: timing")
        time_problem(outcome, ready, problem, rounds)
    return outcome


def time_problem(outcome: Outcome, contenders: Sequence[Contender], problem: Problem, rounds: int = ROUNDS) -> None:
    """Add a row for each contender and direction of a problem; a contender that cannot be compiled is named."""
    for direction in DIRECTIONS:
        calls: dict[str, Callable[[], Any]] = {}
        for contender in contenders:
            apart = problem.has_trees and not contender.packs_trees
            tiles = contender.sweep[0] if contender.sweep else None
            job = Job(problem.name, direction, tiles, PEER_ROWS[-1] if apart else None)
            # A refusal of the compiler is a result too, whatever it raises.
            try:
                calls[contender.name] = compiled(*program(problem, contender, job))
            except Exception as error:
                message = (str(error).strip().splitlines() or [""])[0]
                outcome.left_out.append((f"{contender.name} on {problem.name}", f"{type(error).__name__}: {message}"))
        seconds, source = measure(calls, rounds)
        floor = roofline_s(problem, direction)
        for contender in contenders:
            if contender.name not in seconds:
                continue
            low, median, high = np.percentile(seconds[contender.name], (25, 50, 75)) * 1e6
            figures = {
                "us": round(float(median), 3),
                "us_quartiles": [round(float(low), 3), round(float(high), 3)],
                "source": source,
                "rounds": rounds,
                "roofline_share": None if floor is None else round(floor * 1e6 / float(median), 4),
                "complete": True,
            }
            kind = jax.devices()[0].device_kind
            row = Row(
                problem.operation,
                problem.name,
                direction,
                contender.name,
                kind,
                contender.ours,
                problem.units,
                figures,
                {},
            )
            outcome.rows.append(row)


def compiled(function: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], Any]:
    """Return a call of the compiled program on arrays that are on the device."""
    rng = np.random.default_rng(0)

    def filled(x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.zeros(x.shape, x.dtype)
        return jnp.asarray(rng.normal(size=x.shape).astype(np.float32), x.dtype)

    arrays = [filled(x) for x in arguments]
    ready = jax.jit(function).lower(*arrays).compile()
    return lambda: jax.block_until_ready(ready(*arrays))


def measure(calls: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, np.ndarray], str]:
    """Return the seconds of every round of each call, and which clock: "device" or "wall".

    The calls take turns, so that what slows the machine slows them all; two earlier rounds are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for call in calls.values():
            call()
    order = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                for name, call in calls.items():
                    begin = time.perf_counter()
                    call()
                    seconds[name].append(time.perf_counter() - begin)
                    order.append(name)
        on_device = device_seconds(Path(folder))
    if len(on_device) == len(order):
        seconds = {name: [] for name in calls}
        for name, duration in zip(order, on_device, strict=True):
            seconds[name].append(duration)
        return {name: np.array(values) for name, values in seconds.items()}, "device"
    return {name: np.array(values) for name, values in seconds.items()}, "wall"


def device_seconds(folder: Path) -> list[float]:
    """Return the duration of each program on the first device of a profile, in order; empty without a profile."""
    for path in sorted(folder.rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:TPU:0"):
                continue
            for line in plane.lines:
                if line.name == "XLA Modules":
                    events = sorted(line.events, key=lambda event: float(event.start_ns))
                    return [float(event.duration_ns) * 1e-9 for event in events]
    return []


def roofline_s(problem: Problem, direction: str) -> float | None:
    """Return the seconds of the visible pairs' products at peak; None off TPUs or if it is not attention."""
    if problem.workload is None or jax.default_backend() != "tpu":
        return None
    generation = GENERATIONS[device.kind()]
    return attention_flops(problem, direction) / generation.peak_flops


def attention_flops(problem: Problem, direction: str) -> float:
    """Return FLOP of the products of visible pairs: two for the output, five more for the gradients."""
    workload = problem.workload
    if workload is None:
        raise ValueError(f"{problem.name} is not an attention problem")
    until = rows(problem, Contender("", problem.operation, frozenset({"trees"}), lambda *_: len), Job("", "forward"))
    index = np.arange(until.shape[1])
    alive = until > index[None]
    # Key s is seen by the living queries from s to its end.
    before = np.concatenate([np.zeros((len(until), 1), np.int64), np.cumsum(alive, axis=1)], axis=1)
    ends = np.minimum(until, until.shape[1])
    visible = np.take_along_axis(before, np.maximum(ends, 0), axis=1) - before[:, :-1]
    pairs = int(np.where(alive, visible, 0).sum())
    products = 2 if direction == "forward" else 7
    return 2.0 * products * pairs * workload.head_dim * workload.heads
