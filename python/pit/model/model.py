"""A model as a value: its graph definition, its flat parameters, and which of them train."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pit.config import AdapterConfig, ModelConfig
from pit.model.adapters import trainable_names
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import Params, abstract, build, copy, initial, merge
from pit.model.sharding import mesh_of, on_mesh, place, shard_params, shards_of
from pit.types import Shards

M = TypeVar("M", Decoder, RewardModel)


@dataclass(frozen=True, eq=False)
class Model(Generic[M]):
    """A model that jitted functions, optimizers, checkpoints and sharding rules can take apart.

    graphdef: static, hashable.
    params: weights by name, for example `layers.0.attention.q`.
    trainable: names of the weights that train; None for all. The others are frozen, and models may share them.
    version: name of these very weights, STAGE@UPDATES, for samplers that hold weights of their own; empty without one.
    """

    graphdef: nnx.GraphDef[M]
    params: Params
    trainable: frozenset[str] | None = None
    version: str = ""

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
        cls,
        kind: Callable[[ModelConfig, int, nnx.Rngs], M],
        config: ModelConfig,
        vocab_size: int,
        mesh: Mesh,
        adapter: AdapterConfig | None = None,
    ) -> tuple[nnx.GraphDef[Any], dict[str, jax.ShapeDtypeStruct]]:
        """Return the graph definition, and shapes and placements of the weights that train, as a restore needs them."""
        graphdef, params = abstract(kind, config, vocab_size, adapter)
        if adapter is not None:
            params = {name: params[name] for name in sorted(trainable_names(params))}
        return graphdef, place(params, mesh)

    def merge(self) -> M:
        """Return the module; cheap, and meant to be called inside jitted functions."""
        return merge(self.graphdef, self.params)

    @property
    def trained(self) -> Params:
        """The weights that train."""
        return {n: value for n, value in self.params.items() if self.trainable is None or n in self.trainable}

    @property
    def frozen(self) -> Params:
        """The weights that do not."""
        return {n: value for n, value in self.params.items() if self.trainable is not None and n not in self.trainable}

    def with_params(self, params: Params) -> "Model[M]":
        """Return the same model with other weights."""
        return replace(self, params=params)

    def with_trained(self, params: Mapping[str, Any]) -> "Model[M]":
        """Return the same model with other values of some weights; the others are the same arrays."""
        return self.with_params({**self.params, **params})

    def copy(self) -> "Model[M]":
        """Return the model with trained weights in buffers of its own, so that donating them leaves this one alone."""
        return self.with_trained(copy(self.trained))

    def sharded(self, mesh: Mesh) -> "Model[M]":
        """Return the model with its weights placed on a mesh by the rules of `pit.model.sharding`."""
        return self.with_params(shard_params(self.params, mesh))

    @property
    def shards(self) -> int:
        """Number of devices over which rows are split where the weights lie; 1 for plain arrays."""
        sharding = next(iter(self.params.values())).sharding
        return sharding.mesh.shape["data"] * sharding.mesh.shape["fsdp"] if isinstance(sharding, NamedSharding) else 1

    @property
    def row_shards(self) -> Shards:
        """Shards of the rows where the weights lie, and which of them this process has; one for plain arrays."""
        mesh = mesh_of(self.params)
        return Shards.all_local(1) if mesh is None else shards_of(mesh)

    def on_mesh(self) -> AbstractContextManager[object]:
        """Return the context of the mesh that the weights lie on; of none, for plain arrays."""
        return on_mesh(self.params)


def gathered(model: Model[Decoder]) -> Model[Decoder]:
    """Return a decoder with its weights gathered over fsdp, still split over tensor.

    Decoding needs them: it reads all weights at every step, and shards share no step with their neighbours. They
    are gathered in the dtype that products read them in, which changes no result. Shapes of weights give shapes.
    """
    mesh = mesh_of(model.params)
    if mesh is None or mesh.shape["fsdp"] == 1:
        return model
    whole: dict[str, Any] = dict(model.params)
    decoder = model.merge()
    for name, value in whole.items():
        spec = value.sharding.spec
        if "fsdp" in spec:
            place = NamedSharding(mesh, P(*(None if axis == "fsdp" else axis for axis in spec)))
            if isinstance(value, jax.ShapeDtypeStruct):
                read = jax.eval_shape(partial(decoder.as_read, name), value)
                whole[name] = jax.ShapeDtypeStruct(read.shape, read.dtype, sharding=place)
            else:
                whole[name] = jax.device_put(decoder.as_read(name, value), place)
    return model.with_params(whole)


# Five arguments: the kind of model and its shape, what it is made on, and its own random numbers.
def adapted(
    kind: Callable[[ModelConfig, int, nnx.Rngs], Any],
    config: ModelConfig,
    base: Model[Decoder],
    adapter: AdapterConfig,
    seed: int,
) -> Model[Any]:
    """Return a model on a frozen base, with fresh adapters and, for a reward model, a fresh head; they alone train.

    Args:
        kind: class of the module.
        config: shape of its decoder, and of the base.
        base: its frozen weights, which are shared and not copied.
        adapter: its adapters.
        seed: below 2^63; names the initial adapters and head.
    """
    vocab_size = base.params["embedding"].shape[0]
    graphdef, shapes = abstract(kind, config, vocab_size, adapter)
    trainable = trainable_names(shapes)
    params = initial({name: shapes[name] for name in trainable}, seed)
    return Model(graphdef, on_base(base, params), trainable)


def with_head(decoder: Model[Decoder], config: ModelConfig, mesh: Mesh, seed: int) -> Model[RewardModel]:
    """Return a reward model of a decoder's weights and a fresh head, all of which train.

    Args:
        decoder: its decoder; the arrays are shared.
        config: shape of the decoder.
        mesh: place of the head, and of the decoder.
        seed: below 2^63; names the initial head.
    """
    vocab_size = decoder.params["embedding"].shape[0]
    graphdef, shapes = abstract(RewardModel, config, vocab_size)
    head = initial({"score": shapes["score"]}, seed)
    return Model(graphdef, on_base(decoder, shard_params(head, mesh)))


def on_base(base: Model[Decoder], trained: Params) -> Params:
    """Return the weights of a model on a base: its own arrays, and the base's under their names in the model."""
    prefix = "decoder." if "score" in trained else ""
    return {**{f"{prefix}{name}": value for name, value in base.params.items()}, **trained}
