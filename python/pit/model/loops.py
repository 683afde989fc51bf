"""Layers as loops: layers that are alike share one compiled body, so that programs do not grow with depth.

The weights of a loop are stacked inside the program; everywhere else each layer has its own. Along a mesh, the body
gathers the weights of one layer at a time.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from pit.model.bits import on_cpu
from pit.model.loops_in_bits import scan_in_bits
from pit_kernels import ATTENTION_RESULTS

M = TypeVar("M", bound=nnx.Module)
C = TypeVar("C")
E = TypeVar("E")


def repeats(kinds: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return loops that cover a sequence in order: the period of each, and how often it runs.

    From each place on, the loop is taken that covers most. A loop runs at least three times, because its body is
    compiled once and its weights are copied; what is in no loop has a period of 1 and runs once.

    >>> repeats("aaaa"), repeats("aabbb"), repeats("llgllgllgl")
    ([(1, 4)], [(1, 1), (1, 1), (1, 3)], [(3, 3), (1, 1)])
    """
    loops, at = [], 0
    while at < len(kinds):
        best = (1, 1)
        for period in range(1, (len(kinds) - at) // 3 + 1):
            times = 1
            while list(kinds[at + times * period : at + (times + 1) * period]) == list(kinds[at : at + period]):
                times += 1
            if times > 2 and period * times > best[0] * best[1]:
                best = (period, times)
        loops.append(best)
        at += best[0] * best[1]
    return loops


def in_loops(layers: Sequence[M], carry: C, apply: Callable[[M, C], tuple[C, E]]) -> tuple[C, list[E]]:
    """Apply layers one after the other, those that are alike in a loop.

    Args:
        layers: modules; two are alike if they differ in the values of their arrays alone.
        carry: what the first layer gets.
        apply: returns what the next layer gets, and a result of this layer's own.

    Returns:
        What the last layer gave, and the results of all layers in order.
    """
    parts = [nnx.split(layer) for layer in layers]
    results: list[E] = []
    for period, times in repeats([definition for definition, _ in parts]):
        own, parts = parts[: period * times], parts[period * times :]
        definitions = [definition for definition, _ in own[:period]]

        def body(carry: C, states: Sequence[Any], definitions: Any = definitions) -> tuple[C, list[E]]:
            made = []
            for definition, state in zip(definitions, states, strict=True):
                carry, result = apply(nnx.merge(definition, state), carry)
                made.append(result)
            return carry, made

        if times == 1:
            carry, made = body(carry, [state for _, state in own])
            results += made
            continue
        states = [state for _, state in own]
        carry, of_times = _scan(body, carry, [states[i : i + period] for i in range(0, len(states), period)])
        results += itertools.chain.from_iterable(of_times)
    return carry, results


def _scan(body: Callable[[C, Any], tuple[C, E]], carry: C, states: Sequence[Any]) -> tuple[C, list[E]]:
    """Return the last carry and the results of a scan over states, which are stacked inside."""
    if on_cpu() and any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves((carry, states))):
        return scan_in_bits(body, carry, states)
    carry, results = jax.lax.scan(body, carry, jax.tree.map(lambda *x: jnp.stack(x), *states))
    return carry, [jax.tree.map(lambda x, i=i: x[i], results) for i in range(len(states))]


def recomputed(block: Callable[[jax.Array], jax.Array], remat: Literal["none", "full", "save_attention"]) -> Any:
    """Return a block whose backward pass computes again what `remat` does not save.

    Args:
        block: function of activations.
        remat: "none" saves all; "full" saves the input of the block; "save_attention" saves attention's output and its
            log-sum-exp too, so that attention runs forward once.
    """
    if remat == "none":
        return block
    kept = ATTENTION_RESULTS if remat == "save_attention" else ()
    return jax.checkpoint(block, policy=jax.checkpoint_policies.save_only_these_names(*kept))
