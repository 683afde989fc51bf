"""Flat parameters of models, as jitted loops, optimizers, checkpoints and sharding rules see them.

A parameter's name is its path joined by dots, for example `layers.0.attention.q`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from pit.config import AdapterConfig, ModelConfig
from pit.model.adapters import attach
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel, draw_head
from pit.model.low_rank import draw_a

if TYPE_CHECKING:
    Params = dict[str, Array]
else:
    # Checks at run time let shapes stand in for arrays, as in plans of programs that nobody runs.
    Params = dict[str, Array | jax.ShapeDtypeStruct]
M = TypeVar("M", Decoder, RewardModel)


def split(model: Decoder | RewardModel) -> tuple[nnx.GraphDef[Decoder | RewardModel], Params]:
    """Return the graph definition (static, hashable) and the flat parameters of a model."""
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef[M], params: Params) -> M:
    """Return the model of a graph definition and parameters; cheap, and meant to be called inside jitted functions."""
    path_of = {name: tuple(int(part) if part.isdigit() else part for part in name.split(".")) for name in params}
    state = nnx.from_flat_state([(path_of[name], nnx.Param(value)) for name, value in params.items()])
    return nnx.merge(graphdef, state)


def build(
    kind: Callable[[ModelConfig, int, nnx.Rngs], M], config: ModelConfig, vocab_size: int, seed: int
) -> tuple[nnx.GraphDef[M], Params]:
    """Return a freshly initialised model of a kind (Decoder or RewardModel), split.

    Args:
        kind: class of the module.
        config: its shape.
        vocab_size: rows of its embedding.
        seed: names the initial weights; below 2^64.
    """
    graphdef, _ = abstract(kind, config, vocab_size)

    def initialise(key: Array) -> Params:
        return split(kind(config, vocab_size, nnx.Rngs(params=key)))[1]

    return graphdef, jax.jit(initialise)(key_of(seed))


def initial(shapes: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> Params:
    """Return initial values of adapters and of a head: B of an adapter 0, all else random.

    The random numbers of equal shapes are drawn together, so that the program does not grow with the layers.

    Args:
        shapes: shapes by name.
        seed: names the values; below 2^64.
    """
    groups: dict[tuple[bool, tuple[int, ...]], list[tuple[int, str]]] = {}
    params: Params = {}
    for number, name in enumerate(sorted(shapes)):
        shape = shapes[name].shape
        if name.endswith(".b"):
            params[name] = jnp.zeros(shape, jnp.float32)
        else:
            groups.setdefault((name == "score", shape), []).append((number, name))
    for (is_head, shape), members in groups.items():
        numbers = np.array([number for number, _ in members], np.uint32)
        drawn = _draw(key_of(seed), numbers, is_head=is_head, shape=shape)
        params |= {name: value for (_, name), value in zip(members, drawn, strict=True)}
    return params


@partial(jax.jit, static_argnames=("is_head", "shape"))
def _draw(key: Array, numbers: Array, *, is_head: bool, shape: tuple[int, ...]) -> Array:
    """Return a head, or an A of an adapter, for each number."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jax.vmap(lambda k: draw_head(k, shape[0]) if is_head else draw_a(k, shape))(keys)


def _made(
    kind: Callable[[ModelConfig, int, nnx.Rngs], M],
    config: ModelConfig,
    vocab_size: int,
    adapter: AdapterConfig | None,
    rngs: nnx.Rngs,
) -> M:
    model = kind(config, vocab_size, rngs)
    if adapter is not None:
        attach(model, adapter, rngs)
    return model


def abstract(
    kind: Callable[[ModelConfig, int, nnx.Rngs], M],
    config: ModelConfig,
    vocab_size: int,
    adapter: AdapterConfig | None = None,
) -> tuple[nnx.GraphDef[M], dict[str, jax.ShapeDtypeStruct]]:
    """Return the graph definition of a kind of model, and shapes in the place of its parameters."""
    module = nnx.eval_shape(lambda: _made(kind, config, vocab_size, adapter, nnx.Rngs(0)))
    graphdef, state = nnx.split(module, nnx.Param)
    return graphdef, {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def copy(params: Params) -> Params:
    """Return new buffers with the same values, so that donating them leaves the originals alone."""
    return {name: jnp.array(value, copy=True) for name, value in params.items()}


def key_of(seed: int) -> Array:
    """Return the random key of a seed below 2^64; seeds below 2^32 give `jax.random.key(seed)`.

    >>> import jax
    >>> jax.random.key_data(key_of(5)).tolist() == jax.random.key_data(jax.random.key(5)).tolist()
    True
    """
    key: Array = jax.random.wrap_key_data(jnp.array([seed >> 32, seed & 0xFFFF_FFFF], jnp.uint32))
    return key
