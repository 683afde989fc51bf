"""The values that steer a program: scalar operands of its Pallas calls and trip counts of its loops, from real inputs.

A traced program is evaluated lazily on the host: only what a scalar operand or a loop's condition depends on is
computed, so the attention itself never runs. A value that follows from the output of a Pallas call is marked as not
known.
"""

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jcore

Path = tuple[int | str, ...]
"""Where an equation stands: indices of equations from the outermost in, with the branch taken."""

MOST_TRIPS = 1_000_000
"""Iterations of one loop before its evaluation is given up."""

MOST_STEERING = 2**22
"""Most elements of an operand that is taken to steer a kernel; scalar memory holds fewer."""


class NotKnownError(Exception):
    """A value follows from the output of a Pallas call, which is not computed."""


@dataclass
class Call:
    """One Pallas call: name, shapes of its operands, and of each execution the operands that are known, by index."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    visits: list[dict[int, np.ndarray]] = field(default_factory=list)


@dataclass
class Loop:
    """One loop of a program: how often it was entered and run; None where that is not known."""

    name: str
    inner: list["Loop"]
    entered: int = 0
    trips: int | None = 0


@dataclass(frozen=True)
class Control:
    """The Pallas calls in program order and the tree of loops."""

    calls: list[Call]
    loops: list[Loop]


def control(closed: Any, arguments: Sequence[Any]) -> Control:
    """Evaluate the values that steer a program.

    Args:
      closed: its closed jaxpr.
      arguments: arrays for its inputs.

    Raises:
      NotKnownError: if the branch of a conditional that holds a Pallas call or a loop depends on a Pallas call.
    """
    calls: dict[Path, Call] = {}
    loops: dict[Path, Loop] = {}
    tree = list(_outline(closed.jaxpr, (), calls, loops))
    state = _Evaluation(calls, loops)
    with _deep_recursion(), jax.disable_jit(False):
        state.run(
            closed.jaxpr, [_Known(value) for value in closed.consts], [_argument(value) for value in arguments], ()
        )
        state.finish()
    return Control(list(calls.values()), tree)


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """Allow deep recursion: a loop's carry that is read at the end is a chain as long as the loop."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 100_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class _Lazy:
    """A value that is computed when it is first asked for."""

    __slots__ = ("compute", "value")

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute: Callable[[], Any] | None = compute
        self.value: Any = None

    def get(self) -> Any:
        if self.compute is not None:
            self.value = self.compute()
            self.compute = None
        return self.value


class _Known(_Lazy):
    __slots__ = ()

    def __init__(self, value: Any) -> None:
        self.compute, self.value = None, value


def _argument(value: Any) -> _Lazy:
    if isinstance(value, jax.ShapeDtypeStruct):
        return _Lazy(lambda: _not_known(f"an argument of shape {value.shape}, given without values,"))
    return _Known(value)


def _inner(equation: Any) -> tuple[Any, list[Any]] | None:
    """Return the jaxpr that a call runs on its operands, and its constants; None if it is not a call."""
    if equation.primitive.name in ("pallas_call", "while", "scan", "cond"):
        return None
    jaxprs = []
    for value in equation.params.values():
        if isinstance(value, jcore.ClosedJaxpr):
            jaxprs.append((value.jaxpr, list(value.consts)))
        elif isinstance(value, jcore.Jaxpr):
            jaxprs.append((value, []))
    fitting = [
        (jaxpr, consts)
        for jaxpr, consts in jaxprs
        if len(jaxpr.invars) == len(equation.invars) and len(jaxpr.outvars) == len(equation.outvars)
    ]
    return fitting[0] if fitting else None


def _tpu_branch(equation: Any) -> int | None:
    """Return the branch that a program lowered for TPUs takes, where the platform decides."""
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return None
    for number, names in enumerate(platforms):
        if names is None or "tpu" in names:
            return number
    return None


def _steers(jaxpr: Any) -> bool:
    """Return whether a jaxpr holds a Pallas call or a loop."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("pallas_call", "while", "scan"):
            return True
        inner = _inner(equation)
        if inner is not None and _steers(inner[0]):
            return True
        if equation.primitive.name == "cond" and any(_steers(branch.jaxpr) for branch in equation.params["branches"]):
            return True
    return False


def _outline(jaxpr: Any, path: Path, calls: dict[Path, Call], loops: dict[Path, Loop]) -> Iterator[Loop]:
    """Return the tree of loops, and an entry for every call and every loop, in program order."""
    for number, equation in enumerate(jaxpr.eqns):
        here = (*path, number)
        name = equation.primitive.name
        inner = _inner(equation)
        if name == "pallas_call":
            shapes = tuple(tuple(variable.aval.shape) for variable in equation.invars)
            calls[here] = Call(equation.params["name"] or "pallas_call", shapes)
        elif name == "while" or name == "scan":
            body = equation.params["body_jaxpr" if name == "while" else "jaxpr"].jaxpr
            loops[here] = loop = Loop(name, [])
            loop.inner.extend(_outline(body, here, calls, loops))
            yield loop
        elif name == "cond":
            chosen = _tpu_branch(equation)
            for index, branch in enumerate(equation.params["branches"]):
                if chosen is None or index == chosen:
                    yield from _outline(branch.jaxpr, (*here, index), calls, loops)
        elif inner is not None:
            yield from _outline(inner[0], here, calls, loops)


class _Evaluation:
    """Lazy evaluation of a program; calls and loops are visited in order, everything else only when needed."""

    def __init__(self, calls: dict[Path, Call], loops: dict[Path, Loop]) -> None:
        self.calls = calls
        self.loops = loops
        self.pending: list[Callable[[], None]] = []

    def finish(self) -> None:
        for visit in self.pending:
            visit()

    def run(self, jaxpr: Any, consts: Sequence[_Lazy], arguments: Sequence[_Lazy], path: Path) -> list[_Lazy]:
        """Return the outputs of a jaxpr."""
        values: dict[Any, _Lazy] = {}
        values.update(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(variable: Any) -> _Lazy:
            return _Known(variable.val) if isinstance(variable, jcore.Literal) else values[variable]

        for number, equation in enumerate(jaxpr.eqns):
            operands = [read(variable) for variable in equation.invars]
            results = self.equation(equation, operands, (*path, number))
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def equation(self, equation: Any, operands: list[_Lazy], path: Path) -> list[_Lazy]:
        name = equation.primitive.name
        if name == "pallas_call":
            return self.call(equation, operands, path)
        if name == "while":
            return self.while_loop(equation, operands, path)
        if name == "scan" and _steers(equation.params["jaxpr"].jaxpr):
            return self.scan(equation, operands, path)
        if name == "scan":
            self.count(path, equation.params["length"])
        if name == "sort":
            return _sorted(equation, operands)
        if name == "platform_index":
            return [_Lazy(lambda: _not_known("the index of the platform"))]
        inner = _inner(equation)
        if inner is not None:
            return self.run(inner[0], [_Known(value) for value in inner[1]], operands, path)
        if name == "cond":
            branches = equation.params["branches"]
            chosen = _tpu_branch(equation)
            if chosen is None and any(_steers(branch.jaxpr) for branch in branches):
                chosen = min(max(int(operands[0].get()), 0), len(branches) - 1)
            if chosen is not None:
                branch = branches[chosen]
                consts = [_Known(value) for value in branch.consts]
                return self.run(branch.jaxpr, consts, operands[1:], (*path, chosen))
        return _applied(equation, operands)

    def call(self, equation: Any, operands: list[_Lazy], path: Path) -> list[_Lazy]:
        grid = equation.params["grid_mapping"]
        scalars = grid.num_dynamic_grid_bounds + grid.num_index_operands
        call = self.calls[path]
        visit: dict[int, np.ndarray] = {}
        call.visits.append(visit)

        def read() -> None:
            for index, (operand, variable) in enumerate(zip(operands, equation.invars, strict=True)):
                if index >= scalars and not _may_steer(variable.aval):
                    continue
                try:
                    visit[index] = np.asarray(operand.get())
                except NotKnownError:
                    continue

        self.pending.append(read)
        message = f"the output of {call.name}"
        return [_Lazy(lambda: _not_known(message)) for _ in equation.outvars]

    def count(self, path: Path, trips: int | None) -> None:
        loop = self.loops[path]
        loop.entered += 1
        loop.trips = None if trips is None or loop.trips is None else loop.trips + trips

    def while_loop(self, equation: Any, operands: list[_Lazy], path: Path) -> list[_Lazy]:
        params = equation.params
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        tests, bodies, carry = operands[: split[0]], operands[split[0] : split[1]], operands[split[1] :]
        test, body = params["cond_jaxpr"], params["body_jaxpr"]
        test_consts = [_Known(value) for value in test.consts]
        body_consts = [_Known(value) for value in body.consts]
        trips = 0
        try:
            while bool(self.run(test.jaxpr, test_consts, [*tests, *carry], (*path, "cond"))[0].get()):
                trips += 1
                if trips > MOST_TRIPS:
                    raise NotKnownError(f"a loop runs more than {MOST_TRIPS} times")
                carry = self.run(body.jaxpr, body_consts, [*bodies, *carry], path)
        except NotKnownError:
            self.count(path, None)
            return [_Lazy(lambda: _not_known("a loop whose end is not known")) for _ in equation.outvars]
        self.count(path, trips)
        return carry

    def scan(self, equation: Any, operands: list[_Lazy], path: Path) -> list[_Lazy]:
        params = equation.params
        consts, carries, length = params["num_consts"], params["num_carry"], params["length"]
        fixed, carry, sliced = operands[:consts], operands[consts : consts + carries], operands[consts + carries :]
        body = params["jaxpr"]
        body_consts = [_Known(value) for value in body.consts]
        stacked: dict[int, list[_Lazy]] = defaultdict(list)
        order = range(length - 1, -1, -1) if params["reverse"] else range(length)
        for step in order:
            slices = [_Lazy(functools.partial(_slice, x, step)) for x in sliced]
            results = self.run(body.jaxpr, body_consts, [*fixed, *carry, *slices], path)
            carry = results[:carries]
            for number, result in enumerate(results[carries:]):
                stacked[number].append(result)
        self.count(path, length)
        outputs = []
        for number in range(len(equation.outvars) - carries):
            steps = stacked[number][::-1] if params["reverse"] else stacked[number]
            outputs.append(_Lazy(functools.partial(_stack, steps)))
        return [*carry, *outputs]


def _may_steer(aval: Any) -> bool:
    """Return whether a kernel might read an operand that is not prefetched into scalar memory."""
    return bool(np.issubdtype(aval.dtype, np.integer)) and aval.size <= MOST_STEERING


def _not_known(what: str) -> Any:
    raise NotKnownError(f"{what} is not known")


def _applied(equation: Any, operands: list[_Lazy]) -> list[_Lazy]:
    """Return the results of an ordinary primitive, computed together when one of them is asked for."""

    def apply() -> list[Any]:
        values = [operand.get() for operand in operands]
        results = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
        return list(results) if equation.primitive.multiple_results else [results]

    together = _Lazy(apply)
    return [_Lazy(functools.partial(_item, together, number)) for number in range(len(equation.outvars))]


def _sorted(equation: Any, operands: list[_Lazy]) -> list[_Lazy]:
    """Return a sort's results: what is carried along may be unknown, the order follows from the keys alone."""
    keys, axis = equation.params["num_keys"], equation.params["dimension"]

    def order() -> Any:
        known = [jnp.asarray(operand.get()) for operand in operands[:keys]]
        place = jax.lax.broadcasted_iota(np.int32, known[0].shape, axis)
        return jax.lax.sort((*known, place), dimension=axis, is_stable=equation.params["is_stable"], num_keys=keys)[-1]

    together = _Lazy(order)

    def ordered(operand: _Lazy) -> Any:
        return jnp.take_along_axis(jnp.asarray(operand.get()), together.get(), axis)

    return [_Lazy(functools.partial(ordered, operand)) for operand in operands]


def _item(together: _Lazy, number: int) -> Any:
    return together.get()[number]


def _slice(stacked: _Lazy, step: int) -> Any:
    return np.asarray(stacked.get())[step]


def _stack(steps: Sequence[_Lazy]) -> Any:
    return np.stack([np.asarray(step.get()) for step in steps])
