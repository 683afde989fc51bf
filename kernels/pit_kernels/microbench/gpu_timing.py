"""Times our kernels on an attached GPU against XLA and cuDNN; a contender must conform on the GPU first.

No GPU has run this yet.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pit_kernels.conformance import OPERATIONS, judge
from pit_kernels.microbench.contenders import Contender
from pit_kernels.microbench.suite import Outcome
from pit_kernels.microbench.timing import ROUNDS, time_problem
from pit_kernels.microbench.worker import named_problem
from pit_kernels.three_way_attention.visible_blocks import alive


def attached() -> bool:
    """Return whether JAX computes on a GPU here."""
    return jax.default_backend() == "gpu"


def contenders(operation: str) -> list[Contender]:
    """Return ours, XLA and, for attention, cuDNN's attention as `jax.nn` calls it.

    Raises:
      ValueError: if the operation has no GPU kernels.
    """
    if operation not in ("three_way_attention", "token_logprob"):
        raise ValueError(f"op is {operation!r}; on a GPU it must be three_way_attention or token_logprob")
    known = OPERATIONS[operation]

    def ours(name: str) -> Contender:
        call = functools.partial(known.call, implementation=name)
        return Contender(name, operation, known.serves, lambda tiles, interpret: call, ours=True)

    found = [ours("triton_gpu"), ours("xla")]
    if operation == "three_way_attention":
        serves = frozenset({"trees", "grouped"})
        cudnn = functools.partial(masked_attention, implementation="cudnn")
        found.append(Contender("cudnn", operation, serves, lambda tiles, interpret: cudnn, plain_rows=True))
    return found


def masked_attention(q: Any, k: Any, v: Any, visible_until: Any, *, implementation: str) -> Any:
    """Return attention by `jax.nn`, with the tree mask written out, or causal where `visible_until` is None."""
    call = functools.partial(jax.nn.dot_product_attention, q, k, v, implementation=implementation)
    if visible_until is None:
        return call(is_causal=True)
    index = jnp.arange(q.shape[1], dtype=jnp.int32)
    inside_BTT = index[None, :, None] < visible_until[:, None, :]
    living_BT = alive(visible_until)
    seen_BTT = (index[None, :] <= index[:, None])[None] & inside_BTT & living_BT[:, :, None]
    # A row without a key would be 0 / 0, so that padding sees itself and is dropped.
    seen_BTT = seen_BTT | (index[None, :] == index[:, None])[None]
    return jnp.where(living_BT[:, :, None, None], call(mask=seen_BTT[:, None]), 0)


def time_suite(
    operation: str,
    problem_names: Sequence[str],
    *,
    lengths: Mapping[str, Any] | None = None,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Time the contenders on problems of one operation; arguments as of `timing.time_suite`."""
    outcome, ready = Outcome(), []
    for contender in contenders(operation):
        tell(f"{operation} {contender.name}: conformance")
        verdict = judge(contender.make(None, False), OPERATIONS[operation].cases(), contender.serves)
        if verdict.failure is None:
            ready.append(contender)
        else:
            outcome.left_out.append((contender.name, f"does not conform: {verdict.failure}"))
    for name in problem_names:
        tell(f"{operation} {name}: timing")
        problem = named_problem(operation, name, dict(lengths) if lengths else None)
        if not problem.tells_tile:
            time_problem(outcome, ready, problem, rounds)
    return outcome
