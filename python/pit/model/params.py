"""Models as (graph definition, flat parameters): what jitted loops, optimizers, checkpoints and sharding rules see.

A parameter's name is its path joined by dots, for example `layers.0.attention.q`.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pit.config import ModelConfig
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel

Params = dict[str, Array]
Model = TypeVar("Model", Decoder, RewardModel)


def split(model: Decoder | RewardModel) -> tuple[nnx.GraphDef[Decoder | RewardModel], Params]:
    """Graph definition (static, hashable) and flat parameters of a model."""
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef[Model], params: Params) -> Model:
    """Inverse of `split`; cheap, and meant to be called inside jitted functions."""
    path_of = {name: tuple(int(part) if part.isdigit() else part for part in name.split(".")) for name in params}
    state = nnx.from_flat_state([(path_of[name], nnx.Param(value)) for name, value in params.items()])
    return nnx.merge(graphdef, state)


def build(
    kind: Callable[[ModelConfig, int, nnx.Rngs], Model], config: ModelConfig, vocab_size: int, seed: int
) -> tuple[nnx.GraphDef[Model], Params]:
    """A freshly initialised model of a kind (Decoder or RewardModel), split; a function of its arguments alone."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: kind(config, vocab_size, nnx.Rngs(0))), nnx.Param)

    def initialise(key: Array) -> Params:
        return split(kind(config, vocab_size, nnx.Rngs(params=key)))[1]

    return graphdef, jax.jit(initialise)(jax.random.key(seed))


def copy(params: Params) -> Params:
    """Fresh buffers with the same values, so that a donated copy leaves the original alone."""
    return {name: jnp.array(value, copy=True) for name, value in params.items()}


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(value.size for value in params.values())
