"""A scan over layers with a backward pass of its own: what passes from one pass to the other goes as bits (`bits`).

Used on CPUs for bfloat16: there, what a layer saves costs as much to write as what all layers save.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from pit.model.bits import as_bits, of_bits

C = TypeVar("C")
E = TypeVar("E")


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class _Packing:
    """Where the leaves of a tree lie, in a list of bits and in a list of arrays that are at hand anyway.

    structure: of the tree.
    places: for each leaf its index among the bits, or -1 - its index among the arrays at hand.
    dtypes: of the arrays whose bits are in the list.
    """

    structure: Any
    places: tuple[int, ...]
    dtypes: tuple[Any, ...]

    def unpack(self, bits: Sequence[jax.Array], at_hand: Sequence[jax.Array] = ()) -> Any:
        """Return the tree."""
        arrays = [of_bits(x, dtype) for x, dtype in zip(bits, self.dtypes, strict=True)]
        leaves = [arrays[place] if place >= 0 else at_hand[-1 - place] for place in self.places]
        return jax.tree.unflatten(self.structure, leaves)


def _pack(tree: Any, at_hand: Sequence[jax.Array] = ()) -> tuple[list[jax.Array], _Packing]:
    """Return the bits of a tree's arrays, each of them once, and how they are packed."""
    leaves, structure = jax.tree.flatten(tree)
    places = {id(x): -1 - i for i, x in enumerate(at_hand)}
    kept: list[jax.Array] = []
    for x in leaves:
        if id(x) not in places:
            places[id(x)] = len(kept)
            kept.append(x)
    packing = _Packing(structure, tuple(places[id(x)] for x in leaves), tuple(x.dtype for x in kept))
    return [as_bits(x) for x in kept], packing


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Trains:
    """For each leaf of a layer's state, whether the derivative is taken by it."""

    flags: tuple[bool, ...]

    def chosen(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        return [x for x, trains in zip(leaves, self.flags, strict=True) if trains]

    def replaced(self, leaves: Sequence[jax.Array], chosen: Sequence[jax.Array]) -> list[jax.Array]:
        rest = iter(chosen)
        return [next(rest) if trains else x for x, trains in zip(leaves, self.flags, strict=True)]


class _Saved(NamedTuple):
    """What the backward pass needs: of each layer its state and what `packing` makes a pullback from."""

    states: list[jax.Array]
    pullbacks: list[jax.Array]
    packing: _Packing
    trains: _Trains


def scan_in_bits(body: Callable[[C, Any], tuple[C, E]], carry: C, states: Sequence[Any]) -> tuple[C, list[E]]:
    """Return the last carry and the results of a scan over states, which are stacked inside.

    Backward, an array that several operations of a layer saved is kept once, and only states that the derivative is
    taken by have a gradient. There is no forward derivative and no second one.

    Args:
        body: from a carry and a state to the next carry and a result; it closes over no array that the derivative is
            taken by.
        carry: the first carry.
        states: trees of one structure, with arrays of the same shapes and dtypes.
    """
    structure = jax.tree.structure(states[0])
    dtypes = [x.dtype for x in jax.tree.leaves(states[0])]
    layers = range(len(states))

    def read(bits: Sequence[jax.Array]) -> list[jax.Array]:
        return [of_bits(x, dtype) for x, dtype in zip(bits, dtypes, strict=True)]

    @jax.custom_vjp
    def loop(carry: C, columns: list[list[jax.Array]]) -> tuple[C, list[E]]:
        packings: list[_Packing] = []

        def step(carry: C, bits: list[jax.Array]) -> tuple[C, list[jax.Array]]:
            carry, result = body(carry, jax.tree.unflatten(structure, read(bits)))
            made, packing = _pack(result)
            packings.append(packing)
            return carry, made

        carry, made = lax.scan(step, carry, _stacked(columns))
        return carry, [packings[-1].unpack([x[i] for x in made]) for i in layers]

    def forward(carry: Any, columns: Any) -> tuple[tuple[C, list[E]], _Saved]:
        trains = _Trains(tuple(any(x.perturbed for x in column) for column in columns))
        carry, columns = jax.tree.map(lambda x: x.value, (carry, columns), is_leaf=lambda x: hasattr(x, "perturbed"))
        stacked, packings = _stacked(columns), []

        def step(carry: C, bits: list[jax.Array]) -> tuple[C, Any]:
            own = read(bits)

            def of_chosen(carry: C, chosen: list[jax.Array]) -> tuple[C, E]:
                return body(carry, jax.tree.unflatten(structure, trains.replaced(own, chosen)))

            (carry, result), pullback = jax.vjp(of_chosen, carry, trains.chosen(own))
            (made, of_result), (saved, of_pullback) = _pack(result), _pack(pullback, own)
            packings.append((of_result, of_pullback))
            return carry, (made, saved)

        carry, (made, saved) = lax.scan(step, carry, stacked)
        of_result, of_pullback = packings[-1]
        results = [of_result.unpack([x[i] for x in made]) for i in layers]
        return (carry, results), _Saved(stacked, saved, of_pullback, trains)

    def backward(saved: _Saved, d_out: Any) -> tuple[Any, list[list[jax.Array | None]]]:
        d_carry, d_results = jax.tree.map(_dense, d_out, is_leaf=lambda x: isinstance(x, SymbolicZero))
        d_stacked = jax.tree.map(lambda *x: jnp.stack(x), *d_results)

        def step(d_carry: Any, of_layer: Any) -> tuple[Any, list[jax.Array]]:
            pullback_bits, state_bits, d_result = of_layer
            pullback = saved.packing.unpack(pullback_bits, read(state_bits))
            d_carry, d_chosen = pullback((d_carry, d_result))
            return d_carry, [as_bits(x) for x in d_chosen]

        d_carry, d_chosen = lax.scan(step, d_carry, (saved.pullbacks, saved.states, d_stacked), reverse=True)
        rest, d_columns = iter(d_chosen), []
        for trains, dtype in zip(saved.trains.flags, dtypes, strict=True):
            d = next(rest) if trains else None
            d_columns.append([None if d is None else of_bits(d[i], dtype) for i in layers])
        return d_carry, d_columns

    loop.defvjp(forward, backward, symbolic_zeros=True)
    result: tuple[C, list[E]] = loop(carry, [list(x) for x in zip(*map(jax.tree.leaves, states), strict=True)])
    return result


def _stacked(columns: list[list[jax.Array]]) -> list[jax.Array]:
    return [jnp.stack([as_bits(x) for x in column]) for column in columns]


def _dense(x: Any) -> Any:
    return jnp.zeros(jnp.shape(x), jnp.result_type(x)) if isinstance(x, SymbolicZero) else x
