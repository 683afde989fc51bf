"""Runs a contender on deterministic cases of its operation and names the first case that it gets wrong.

A backend that refuses a case, with `UnsupportedImplementationError`, has not failed it: the case is skipped and named.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels.conformance.rule import GRADIENT_FACTOR, OUTPUT_FACTOR, errors
from pit_kernels.dispatch import UnsupportedImplementationError


@dataclass(frozen=True)
class Case:
    """One call to judge.

    name: special feature of the case.
    needs: features that a contender must serve to be given the case, such as "trees" or "soft_cap".
    floats: floating arguments, in float64.
    others: other arguments, such as a mask or targets.
    options: keywords of the call.
    cotangents: cotangent of each result, in float64; 0 where a result is not defined.
    dtype: dtype that the floats are rounded to.
    formula: the definition, called like the contender.
    names: names of the results.
    gradients: whether the gradients of the floats are judged too.
    """

    name: str
    needs: frozenset[str]
    floats: tuple[np.ndarray, ...]
    others: tuple[np.ndarray, ...]
    options: Mapping[str, Any]
    cotangents: tuple[np.ndarray, ...]
    dtype: Any
    formula: Callable[..., Any]
    names: tuple[str, ...]
    gradients: bool = True


@dataclass(frozen=True)
class Failure:
    """The first result that a contender gets wrong."""

    case: str
    what: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """The outcome of the cases for a contender.

    failure: the first failure, or None; a contender that serves no case at all has failed.
    passed: number of cases that it passed.
    skipped: names of the cases that it does not claim to serve or refuses.
    """

    failure: Failure | None
    passed: int
    skipped: tuple[str, ...]


def judge(function: Callable[..., Any], cases: Sequence[Case], serves: frozenset[str]) -> Verdict:
    """Run the cases in order up to the first failure.

    Args:
      function: the contender, called with the floats, others and options of a case; returns an array or several.
      cases: cases to run.
      serves: features that the contender claims to serve; cases that need more are skipped and named.
    """
    passed, skipped = 0, []
    for case in cases:
        if not case.needs <= serves:
            skipped.append(case.name)
            continue
        try:
            failure = first_failure(function, case)
        except UnsupportedImplementationError:
            skipped.append(case.name)
            continue
        if failure is not None:
            return Verdict(failure, passed, tuple(skipped))
        passed += 1
    if passed == 0:
        claimed = ", ".join(sorted(serves)) or "nothing"
        return Verdict(Failure("all cases", f"it serves none of them; it claims {claimed}"), 0, tuple(skipped))
    return Verdict(None, passed, tuple(skipped))


def first_failure(function: Callable[..., Any], case: Case) -> Failure | None:
    """Return the first result or gradient of a case that breaks the rule, or None.

    Raises:
      UnsupportedImplementationError: if the contender is a backend that refuses the case.
    """
    floats = [np.asarray(jnp.asarray(x, case.dtype)) for x in case.floats]
    try:
        actual = _results(function, case, floats)
    except UnsupportedImplementationError:
        raise
    # A crash of a kernel is its result here, whatever it raises, and the report names it.
    except Exception as error:
        return Failure(case.name, f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    naive = _results(case.formula, case, floats)
    with jax.enable_x64(True):
        truth = _results(case.formula, case, [x.astype(np.float64) for x in floats])
    gradients = tuple(f"gradient {number}" for number in range(len(floats))) if case.gradients else ()
    names, factors = case.names + gradients, [OUTPUT_FACTOR] * len(case.names) + [GRADIENT_FACTOR] * len(gradients)
    for name, factor, *values in zip(names, factors, actual, naive, truth, strict=True):
        measured = errors(*values, factor=factor)
        if not measured.within:
            return Failure(
                case.name,
                f"{name} has error {measured.error:.3g} against float64; the rule allows {measured.bound:.3g}",
            )
    return None


def _results(function: Callable[..., Any], case: Case, floats: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the results where they are defined, then the gradients."""
    values = _compiled(function, tuple(case.options.items()), case.gradients)(
        [jnp.asarray(x) for x in floats],
        [jnp.asarray(x) for x in case.others],
        [jnp.asarray(c) for c in case.cotangents],
    )
    defined = [np.asarray(c) != 0 for c in case.cotangents]
    count = len(defined)
    outputs = [np.where(d, np.asarray(x, np.float64), 0) for d, x in zip(defined, values[:count], strict=True)]
    return [*outputs, *(np.asarray(x, np.float64) for x in values[count:])]


@functools.lru_cache(maxsize=64)
def _compiled(
    function: Callable[..., Any], options: tuple[tuple[str, Any], ...], gradients: bool
) -> Callable[..., Any]:
    """Return a function's results, and its gradients under given cotangents, compiled once for all cases of a shape."""
    called = functools.partial(function, **dict(options))

    def run(floats: Sequence[Any], others: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        def results(*floats: Any) -> tuple[Any, ...]:
            values = called(*floats, *others)
            return tuple(values) if isinstance(values, (tuple, list)) else (values,)

        if not gradients:
            return results(*floats)
        values, pull = jax.vjp(results, *floats)
        return *values, *pull(tuple(c.astype(x.dtype) for c, x in zip(cotangents, values, strict=True)))

    return jax.jit(run)
