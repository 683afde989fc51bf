"""Runs a contender on deterministic cases of its operation and names the first that it gets wrong."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels.conformance.rule import GRADIENT_FACTOR, OUTPUT_FACTOR, errors


@dataclass(frozen=True)
class Case:
    """One call to judge.

    name: what is special about it.
    needs: what a contender must serve to be asked, such as "trees" or "soft_cap".
    floats: arguments that are differentiated, in float64.
    others: arguments that are not, such as a mask or targets.
    options: keywords of the call.
    cotangents: of each result, in float64; 0 where a result is not defined.
    dtype: what the floats are rounded to.
    formula: the definition, called like the contender.
    names: of the results.
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


@dataclass(frozen=True)
class Failure:
    """The first result that a contender gets wrong."""

    case: str
    what: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """What the cases say of a contender.

    failure: the first failure, or None; that it serves no case at all is one.
    passed: how many cases it passed.
    skipped: names of the cases it does not claim to serve.
    """

    failure: Failure | None
    passed: int
    skipped: tuple[str, ...]


def judge(function: Callable[..., Any], cases: Sequence[Case], serves: frozenset[str]) -> Verdict:
    """Runs the cases in order up to the first failure.

    Args:
      function: the contender, called with the case's floats, others and options; gives an array or several.
      cases: what to run.
      serves: what it claims to serve; cases that need more are skipped and named.
    """
    passed, skipped = 0, []
    for case in cases:
        if not case.needs <= serves:
            skipped.append(case.name)
            continue
        failure = first_failure(function, case)
        if failure is not None:
            return Verdict(failure, passed, tuple(skipped))
        passed += 1
    if passed == 0:
        claimed = ", ".join(sorted(serves)) or "nothing"
        return Verdict(Failure("all cases", f"it serves none of them; it claims {claimed}"), 0, tuple(skipped))
    return Verdict(None, passed, tuple(skipped))


def first_failure(function: Callable[..., Any], case: Case) -> Failure | None:
    """The first result or gradient of a case that breaks the rule, or None."""
    floats = [np.asarray(jnp.asarray(x, case.dtype)) for x in case.floats]
    # A kernel's refusal or crash is its result here, whatever it raises, and the report names it.
    try:
        actual = _results(function, case, floats)
    except Exception as error:
        return Failure(case.name, f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    naive = _results(case.formula, case, floats)
    with jax.enable_x64(True):
        truth = _results(case.formula, case, [x.astype(np.float64) for x in floats])
    names = case.names + tuple(f"gradient {number}" for number in range(len(floats)))
    factors = [OUTPUT_FACTOR] * len(case.names) + [GRADIENT_FACTOR] * len(floats)
    for name, factor, *values in zip(names, factors, actual, naive, truth, strict=True):
        found = errors(*values, factor=factor)
        if not found.within:
            return Failure(
                case.name, f"{name} has error {found.error:.3g} against float64; the rule allows {found.bound:.3g}"
            )
    return None


def _results(function: Callable[..., Any], case: Case, floats: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Results where they are defined, then the gradients."""
    found = _compiled(function, tuple(case.options.items()))(
        [jnp.asarray(x) for x in floats],
        [jnp.asarray(x) for x in case.others],
        [jnp.asarray(c) for c in case.cotangents],
    )
    defined = [np.asarray(c) != 0 for c in case.cotangents]
    count = len(defined)
    outputs = [np.where(d, np.asarray(x, np.float64), 0) for d, x in zip(defined, found[:count], strict=True)]
    return [*outputs, *(np.asarray(x, np.float64) for x in found[count:])]


@functools.lru_cache(maxsize=64)
def _compiled(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Results and gradients of a function under given cotangents, compiled once for all cases of a shape."""
    called = functools.partial(function, **dict(options))

    def run(floats: Sequence[Any], others: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        def results(*floats: Any) -> tuple[Any, ...]:
            found = called(*floats, *others)
            return tuple(found) if isinstance(found, (tuple, list)) else (found,)

        values, pull = jax.vjp(results, *floats)
        return *values, *pull(tuple(c.astype(x.dtype) for c, x in zip(cotangents, values, strict=True)))

    return jax.jit(run)
