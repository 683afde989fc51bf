"""Flat parameters of models, as jitted loops, optimizers, checkpoints and sharding rules see them.

A parameter's name is its path joined by dots, for example `layers.0.attention.q`.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pit.config import AdapterConfig, ModelConfig
from pit.model.adapters import attach
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel

Params = dict[str, Array]
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


# Five arguments say what a model is, and one which of its weights are wanted.
def initial(
    kind: Callable[[ModelConfig, int, nnx.Rngs], M],
    config: ModelConfig,
    vocab_size: int,
    adapter: AdapterConfig | None,
    names: frozenset[str],
    seed: int,
) -> Params:
    """Return the initial values of some parameters of a model; the others are not computed.

    Args:
        kind: class of the module.
        config: its shape.
        vocab_size: rows of its embedding.
        adapter: its adapters, None if it has none.
        names: names of the parameters.
        seed: names the initial weights; below 2^64.
    """

    def initialise(key: Array) -> Params:
        params = split(_made(kind, config, vocab_size, adapter, nnx.Rngs(params=key)))[1]
        return {name: params[name] for name in names}

    params: Params = jax.jit(initialise)(key_of(seed))
    return params


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
