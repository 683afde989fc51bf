"""A model as a value: its graph definition and flat parameters, with what is asked of both together."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from flax import nnx
from jax.sharding import Mesh

from pit.config import ModelConfig
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import Params, abstract, build, copy, merge
from pit.model.sharding import gathered, on_mesh, place, shard_params, shards_of

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
    ) -> "Model[Any]":
        """Return the model with shapes and placements in the place of weights, as a restore needs them."""
        graphdef, params = abstract(kind, config, vocab_size)
        shapes: dict[str, Any] = place(params, mesh)
        return cls(graphdef, shapes)

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
        """Return the model with whole weights on every shard of the rows, as decoding needs them."""
        return self.with_params(gathered(self.params))

    @property
    def shards(self) -> int:
        """Number of devices over which rows are split where the weights lie."""
        return shards_of(self.params)

    def on_mesh(self) -> AbstractContextManager[object]:
        """Return the context of the mesh that the weights lie on; of none, for plain arrays."""
        return on_mesh(self.params)
