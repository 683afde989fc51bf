"""Every operation as conformance calls it: its cases, its backends, and the verdict on any one of them.

A backend that an operation lists is judged here without another line of code.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pit_kernels import cached_attention, leaf_scores, three_way_attention, token_logprob
from pit_kernels.conformance.cases import attention_cases, cached_attention_cases, gap_reward_cases, token_logprob_cases
from pit_kernels.conformance.check import Case, Verdict, judge
from pit_kernels.dispatch import Backend
from pit_kernels.operations import BACKENDS


def call_token_logprob(*arrays: Any, **options: Any) -> tuple[Any, ...]:
    """Return the results of `token_logprob` as a plain tuple."""
    return tuple(token_logprob(*arrays, **options))


def call_leaf_scores(hidden: Any, scale: Any, weight: Any, bias: Any, leaf: Any, **options: Any) -> Any:
    """Return `leaf_scores` of arguments whose differentiated arrays come first."""
    return leaf_scores(hidden, leaf, scale, weight, bias, eps=1e-5, **options)


def call_cached_attention(
    q: Any, prefix_k: Any, prefix_v: Any, suffix_k: Any, suffix_v: Any, *numbers: Any, **options: Any
) -> Any:
    """Return `cached_attention` of arguments whose floating arrays come first."""
    prefix_length, *of_slots = numbers
    return cached_attention(q, prefix_k, prefix_v, prefix_length, suffix_k, suffix_v, *of_slots, **options)


@dataclass(frozen=True)
class Operation:
    """An operation under conformance.

    call: the public function, called with the arguments of a case and an `implementation`.
    cases: makes the cases.
    serves: needs of those cases that the public function meets; others are for peers with fewer results.
    """

    call: Callable[..., Any]
    cases: Callable[[], list[Case]]
    serves: frozenset[str]


OPERATIONS: Mapping[str, Operation] = {
    "three_way_attention": Operation(
        three_way_attention, attention_cases, frozenset({"trees", "grouped", "soft_cap", "window"})
    ),
    "cached_attention": Operation(
        call_cached_attention, cached_attention_cases, frozenset({"grouped", "soft_cap", "window"})
    ),
    "token_logprob": Operation(
        call_token_logprob, token_logprob_cases, frozenset({"entropy", "temperature", "soft_cap", "ragged"})
    ),
    "gap_reward": Operation(call_leaf_scores, gap_reward_cases, frozenset()),
}
"""Every operation of the package."""


def judge_backend(name: str, backend: Backend, cases: Sequence[Case] | None = None) -> Verdict:
    """Return the verdict of an operation's cases on a backend; cases that it refuses are skipped and named.

    Kernels with an interpreter run in it, so that any machine can judge them.

    Args:
      name: name of the operation.
      backend: one of its backends.
      cases: cases to run; all of the operation when None.

    Raises:
      ValueError: if the operation does not exist or does not list the backend.
    """
    if name not in OPERATIONS:
        raise ValueError(f"operation is {name!r}; it must be one of {', '.join(OPERATIONS)}")
    if backend not in BACKENDS[name]:
        listed = ", ".join(known.name for known in BACKENDS[name])
        raise ValueError(f"backend is {backend.name!r}; it must be a backend of {name}: {listed}")
    operation = OPERATIONS[name]
    options: dict[str, Any] = {"implementation": backend.name}
    if backend.interpreted:
        options["interpret"] = True
    met = [case for case in (operation.cases() if cases is None else cases) if case.needs <= operation.serves]
    return judge(functools.partial(operation.call, **options), met, operation.serves)
