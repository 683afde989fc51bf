"""A model as a value: its graph definition and its flat parameters."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pit.config import ModelConfig
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import Params, abstract, build, copy, merge
from pit.model.sharding import on_mesh, place, shard_params

M = TypeVar("M", Decoder, RewardModel)


@dataclass(frozen=True, eq=False)
class Model(Generic[M]):
    """A model that jitted functions, optimizers, checkpoints and sharding rules can take apart.

    graphdef: static, hashable.
    params: weights by name, for example `layers.0.attention.q`.
    """

    graphdef: nnx.GraphDef[M]
    params: Params

    @classmethod
    def build(
        cls, kind: Callable[[ModelConfig, int, nnx.Rngs], M], config: ModelConfig, vocab_size: int, seed: int
    ) -> "Model[Any]":
        """Return a freshly initialised model of a kind (Decoder or RewardModel), a function of its arguments alone.

        Args:
            kind: class of the module.
            config: its shape.
            vocab_size: rows of its embedding.
            seed: below 2^63; names the initial weights.
        """
        return cls(*build(kind, config, vocab_size, seed))

    @classmethod
    def abstract(
        cls, kind: Callable[[ModelConfig, int, nnx.Rngs], M], config: ModelConfig, vocab_size: int, mesh: Mesh
    ) -> tuple[nnx.GraphDef[Any], dict[str, jax.ShapeDtypeStruct]]:
        """Return the graph definition, and shapes and placements of the weights, as a restore needs them."""
        graphdef, params = abstract(kind, config, vocab_size)
        return graphdef, place(params, mesh)

    def merge(self) -> M:
        """Return the module; cheap, and meant to be called inside jitted functions."""
        return merge(self.graphdef, self.params)

    def with_params(self, params: Params) -> "Model[M]":
        """Return the same model with other weights."""
        return replace(self, params=params)

    def copy(self) -> "Model[M]":
        """Return the model with buffers of its own, so that donating them leaves this one alone."""
        return self.with_params(copy(self.params))

    def sharded(self, mesh: Mesh) -> "Model[M]":
        """Return the model with its weights placed on a mesh by the rules of `pit.model.sharding`."""
        return self.with_params(shard_params(self.params, mesh))

    def gathered(self) -> "Model[M]":
        """Return the model with its weights gathered over fsdp, still split over tensor.

        Decoding needs them: it reads all weights at every step, and shards share no step with their neighbours.
        """
        whole = dict(self.params)
        for name, value in whole.items():
            sharding = value.sharding
            if isinstance(sharding, NamedSharding) and "fsdp" in sharding.spec:
                spec = P(*(None if axis == "fsdp" else axis for axis in sharding.spec))
                whole[name] = jax.device_put(value, NamedSharding(sharding.mesh, spec))
        return replace(self, params=whole)

    @property
    def shards(self) -> int:
        """Number of devices over which rows are split where the weights lie; 1 for plain arrays."""
        sharding = next(iter(self.params.values())).sharding
        return sharding.mesh.shape["data"] * sharding.mesh.shape["fsdp"] if isinstance(sharding, NamedSharding) else 1

    def on_mesh(self) -> AbstractContextManager[object]:
        """Return the context of the mesh that the weights lie on; of none, for plain arrays."""
        return on_mesh(self.params)
