"""Readings of policy and anchor on packed samples: log-probs sample by sample, and the KL over the vocabulary.

Packed rows hold a tree's samples wherever they fitted; everything here brings them to [G, N, C] by the leaf table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Float32, Int32

from pit.config import RlConfig
from pit.losses.kl import FactoredLogits, vocabulary_kl
from pit.model.decoder import Decoder
from pit.model.heads import Predictions, predict
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.model.programs import Program, Shapes, shape_of
from pit.rl.records import Trees
from pit.train.update import Arrays


class Places(NamedTuple):
    """Places of the tokens of each sample in the rows; places without a token point at row 0.

    sampled: whether each of the C places holds a token.
    """

    row: Int32[Array, "G N C"]
    column: Int32[Array, "G N C"]
    sampled: Bool[Array, "G N C"]

    def of(self, values: Float32[Array, "B T"]) -> Float32[Array, "G N C"]:
        """Return a value of each token of the rows, sample by sample; 0 where there is no token."""
        return jnp.where(self.sampled, values[self.row, self.column], jnp.float32(0.0))


def places(batch: Arrays, capacity: int) -> Places:
    """Return the places of the sampled tokens of a batch (`leaf`, `length`, `finished`), `capacity` per sample."""
    leaf, length = batch["leaf"], batch["length"]
    # The closing token of an unfinished sample was appended, not sampled: its tokens end one place earlier.
    first = leaf[:, :, 1] - length + batch["finished"].astype(jnp.int32)
    offset = jnp.arange(capacity, dtype=jnp.int32)[None, None, :]
    sampled = (offset < length[:, :, None]) & (leaf[:, :, :1] >= 0)
    index = jnp.where(sampled, first[:, :, None] + offset, 0)
    return Places(jnp.where(sampled, leaf[:, :, :1], 0), index, sampled)


def predictions(model: Decoder, batch: Arrays, temperature: float) -> Predictions:
    """Return a decoder's predictions of the tokens of a batch, at the temperature of sampling."""
    rows = batch["token"], batch["position"], batch["visible_until"], batch["previous"]
    return predict(model, *rows, temperature=temperature)


def full_kl(
    model: Decoder,
    hidden: Float[Array, "B T D"],
    anchor: tuple[Float[Array, "B T D"], Float[Array, "V D"]],
    valid: Bool[Array, "B T"],
    temperature: float,
) -> Float32[Array, "B T"]:
    """Return the KL over the vocabulary at each token of the rows, nats.

    Args:
        model: the policy.
        hidden: its hidden states.
        anchor: hidden states and output table of the anchor.
        valid: tokens that count.
        temperature: temperature of both distributions.
    """
    width = hidden.shape[-1]
    kl = vocabulary_kl(
        FactoredLogits(hidden.reshape(-1, width), model.table.astype(hidden.dtype)),
        FactoredLogits(anchor[0].reshape(-1, width), anchor[1].astype(hidden.dtype)),
        valid.reshape(-1),
        temperature=temperature,
        logit_soft_cap=model.config.final_soft_cap,
    )
    return kl.reshape(valid.shape)


class Readings(NamedTuple):
    """Readings of a rollout, and what the loss needs of the anchor.

    logp, anchor_logp: log-probs of the sampled tokens under policy and anchor, nats; 0 elsewhere.
    vocabulary_kl: KL over the vocabulary at each, nats; 0 where the estimator does not ask for it.
    anchored: of each batch, `anchor_logp`, or `anchor_hidden` and `anchor_table`.
    """

    logp: Float32[np.ndarray, "G N C"]
    anchor_logp: Float32[np.ndarray, "G N C"]
    vocabulary_kl: Float32[np.ndarray, "G N C"]
    anchored: list[dict[str, Array]]


class _OfModel(NamedTuple):
    """One model on a batch: log-probs sample by sample; states by row where the KL is over the vocabulary."""

    logp: Float32[Array, "G N C"]
    hidden: Float[Array, "B T D"] | None
    valid: Bool[Array, "B T"] | None


class PolicyAndAnchor:
    """Policy and anchor, read by one compiled function, so that equal weights have a KL of exactly 0.

    Args:
        graphdef: definition of both decoders.
        config: section of the stage.
        anchor: weights of the anchor.
        capacity: most tokens of a sample, C.
    """

    def __init__(self, graphdef: nnx.GraphDef[Decoder], config: RlConfig, anchor: Params, capacity: int) -> None:
        full = config.kl.estimator == "full"

        def read(params: Params, batch: Arrays) -> _OfModel:
            where, rows = places(batch, capacity), predictions(merge(graphdef, params), batch, config.temperature)
            return _OfModel(where.of(rows.logp), rows.hidden if full else None, rows.valid if full else None)

        def over_vocabulary(
            params: Params, policy: _OfModel, anchor: _OfModel, table: Float[Array, "V D"], batch: Arrays
        ) -> Float32[Array, "G N C"]:
            assert policy.hidden is not None
            assert policy.valid is not None
            assert anchor.hidden is not None
            model, states = merge(graphdef, params), (anchor.hidden, table)
            kl = full_kl(model, policy.hidden, states, policy.valid, config.temperature)
            return places(batch, capacity).of(kl)

        self._anchor, self._full = Model(graphdef, anchor), full
        self._table = anchor["embedding" if self._anchor.merge().config.tied else "output"]
        self._read, self._over_vocabulary = jax.jit(read), jax.jit(over_vocabulary)

    def programs(self, params: Params, batch: Shapes) -> tuple[list[Program], dict[str, jax.ShapeDtypeStruct]]:
        """Return the programs that read a packed batch, and the shapes of what they leave for the loss.

        Args:
            params: shapes of the policy's weights.
            batch: shapes of a batch, with `length` and `finished`.
        """
        rows = batch["token"].sharding
        assert isinstance(rows, NamedSharding)
        with self._anchor.on_mesh():
            read = jax.eval_shape(self._read, params, batch)
        reading: _OfModel = jax.tree.map(lambda x: shape_of(x, rows), read)
        programs = [Program("policy and anchor", self._read, (params, batch))]
        if not self._full:
            return programs, {"anchor_logp": reading.logp}  # type: ignore[dict-item]
        arguments = params, reading, reading, self._table, batch
        programs.append(Program("KL over the vocabulary", self._over_vocabulary, arguments))
        return programs, {"anchor_hidden": reading.hidden, "anchor_table": self._table}  # type: ignore[dict-item]

    def read(self, params: Params, trees: Trees, n: int) -> Readings:
        """Read policy and anchor on all batches of a rollout of n trees; `params` are the policy's."""
        logp, anchor_logp, kl, anchored = [], [], [], []
        with self._anchor.on_mesh():
            for arrays in trees.arrays:
                policy, anchor = self._read(params, arrays), self._read(self._anchor.params, arrays)
                logp.append(policy.logp)
                anchor_logp.append(anchor.logp)
                if self._full:
                    kl.append(self._over_vocabulary(params, policy, anchor, self._table, arrays))
                    anchored.append({"anchor_hidden": anchor.hidden, "anchor_table": self._table})
                else:
                    anchored.append({"anchor_logp": anchor.logp})
        logp_GNC, anchor_GNC = (trees.unpacked(values, n) for values in (logp, anchor_logp))
        kl_GNC = trees.unpacked(kl, n) if self._full else np.zeros_like(logp_GNC)
        return Readings(logp_GNC, anchor_GNC, kl_GNC, anchored)
