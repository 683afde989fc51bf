"""The base of a run: the one frozen decoder under the adapters of all its models.

`load_base` and `digest_of_base` are the two functions that say which weights it has.
"""

import jax.numpy as jnp
from jax.sharding import Mesh

from pit.config import RunConfig, digest
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.seeds import Seed


def load_base(config: RunConfig, vocab_size: int, seed: Seed, mesh: Mesh) -> Model[Decoder]:
    """Return the base on the mesh: a decoder of the policy's shape with initial weights, none of which trains.

    Args:
        config: the run; `base.dtype` is the dtype of the weights.
        vocab_size: rows of the embedding.
        seed: root of the run's random numbers.
        mesh: place of the weights.
    """
    fresh = Model.build(Decoder, config.policy, vocab_size, _weights(seed).number).sharded(mesh)
    dtype = jnp.dtype(config.base.dtype)
    return Model(fresh.graphdef, {name: value.astype(dtype) for name, value in fresh.params.items()}, frozenset())


def digest_of_base(config: RunConfig, vocab_size: int, seed: Seed) -> str:
    """Return a digest of everything that the weights of `load_base` depend on, without making them."""
    return digest(config.base, config.policy, vocab_size, list(_weights(seed).path))


def _weights(seed: Seed) -> Seed:
    return seed.of("base", "weights")
