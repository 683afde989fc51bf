"""The loss of an RL step on packed trees of samples, and what is read of the policy and its anchor for it.

Packed rows hold a tree's samples wherever they fitted; everything here brings them to [G, N, C] by the leaf table, and
the mathematics is that of `pit.losses.rl` and `pit.losses.kl` (PIT, section 3.4; docs/rl.md).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from pit.config import RlConfig
from pit.losses.kl import Readout, kl_cost, vocabulary_kl
from pit.losses.rl import expected_cost, reinforce
from pit.losses.total import Total
from pit.model.heads import RowReading, read_rows
from pit.model.params import Params, merge
from pit.train.update import Arrays, LossFunction


class Places(NamedTuple):
    """Where the tokens of each sample lie in the rows, and which of the C places hold one (others point at row 0)."""

    row: Int32[Array, "G N C"]
    column: Int32[Array, "G N C"]
    sampled: Bool[Array, "G N C"]

    def of(self, values: Float32[Array, "B T"]) -> Float32[Array, "G N C"]:
        """A value of each token of the rows, sample by sample; 0 where there is no token."""
        return jnp.where(self.sampled, values[self.row, self.column], jnp.float32(0.0))


def places(batch: Arrays, capacity: int) -> Places:
    """Places of the sampled tokens of a batch of rollouts (`leaf`, `length`, `finished`), `capacity` each."""
    leaf, length = batch["leaf"], batch["length"]
    # The closing token of an unfinished sample was appended, not sampled: its tokens end one place earlier.
    first = leaf[:, :, 1] - length + batch["finished"].astype(jnp.int32)
    offset = jnp.arange(capacity, dtype=jnp.int32)[None, None, :]
    sampled = (offset < length[:, :, None]) & (leaf[:, :, :1] >= 0)
    index = jnp.where(sampled, first[:, :, None] + offset, 0)
    return Places(jnp.where(sampled, leaf[:, :, :1], 0), index, sampled)


def read(model: Any, batch: Arrays, temperature: float) -> RowReading:
    """What a decoder says of the tokens of a batch, at the temperature of sampling."""
    rows = batch["token"], batch["position"], batch["visible_until"], batch["previous"]
    return read_rows(model, *rows, temperature=temperature)


def sampled_logprobs(
    model: Any, batch: Arrays, capacity: int, temperature: float
) -> tuple[Float32[Array, "G N C"], Bool[Array, "G N C"]]:
    """Log-probs of the sampled tokens of each tree, nats, and which of the C places hold one."""
    where = places(batch, capacity)
    return where.of(read(model, batch, temperature).logp), where.sampled


def full_kl(
    model: Any,
    hidden: Float[Array, "B T D"],
    anchor: tuple[Float[Array, "B T D"], Float[Array, "V D"]],
    valid: Bool[Array, "B T"],
    temperature: float,
) -> Float32[Array, "B T"]:
    """KL over the vocabulary at each token of the rows, nats: of `model` at its states to an anchor's readout."""
    width = hidden.shape[-1]
    kl = vocabulary_kl(
        Readout(hidden.reshape(-1, width), model.table.astype(hidden.dtype)),
        Readout(anchor[0].reshape(-1, width), anchor[1].astype(hidden.dtype)),
        valid.reshape(-1),
        temperature=temperature,
        logit_soft_cap=model.config.final_soft_cap,
    )
    return kl.reshape(valid.shape)


def charges_kl(config: RlConfig) -> bool:
    """Whether the KL is a term of the loss: k1 in the reward is complete without one."""
    return config.kl.place == "loss" or config.kl.estimator != "k1"


def policy_gradient(graphdef: nnx.GraphDef[Any], config: RlConfig, capacity: int) -> LossFunction:
    """The loss of a step on packed trees of samples: REINFORCE, the KL where it is charged here, the entropy bonus.

    Reads of a batch, beside the rows and the leaf table: `length`, `finished`, `advantage` [G, N]; where `charges_kl`
    also `kl_coefficient` [G] (score per nat, in the scale of the advantages) and, of the anchor, `anchor_logp`
    [G, N, C], or with the estimator "full" `anchor_hidden` [B, T, D] and `anchor_table` [V, D].

    Args:
        graphdef: of the policy.
        config: of the stage.
        capacity: most tokens of a sample, C.
    """
    kl = config.kl

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        model = merge(graphdef, params)
        where = places(batch, capacity)
        rows = read(model, batch, config.temperature)
        logp = where.of(rows.logp)
        total = reinforce(logp, batch["advantage"], where.sampled, batch["leaf"][:, 0, 0] >= 0)
        if charges_kl(config):
            if kl.estimator == "full":
                readout = batch["anchor_hidden"], batch["anchor_table"]
                anchor = where.of(full_kl(model, rows.hidden, readout, rows.valid, config.temperature))
            else:
                anchor = batch["anchor_logp"]
            cost = kl_cost(kl.estimator, kl.place, logp, anchor, where.sampled)
            total = total._replace(sum=total.sum + jnp.sum(batch["kl_coefficient"][:, None] * cost))
        if config.entropy:
            entropy = where.of(rows.entropy)
            bonus = expected_cost(entropy, entropy, logp, where.sampled, own=False)
            total = total._replace(sum=total.sum - jnp.float32(config.entropy) * jnp.sum(bonus))
        return total, {}

    return loss


def carry(graphdef: nnx.GraphDef[Any], config: RlConfig, anchor: Params, readings: "Readings") -> dict[str, Array]:
    """What `policy_gradient` reads of the anchor on a batch, from its readings there."""
    if not charges_kl(config):
        return {}
    if config.kl.estimator != "full":
        return {"anchor_logp": readings.logp}
    assert readings.hidden is not None
    return {"anchor_hidden": readings.hidden, "anchor_table": merge(graphdef, anchor).table}


class Readings(NamedTuple):
    """What is read of one model for the tokens of a batch: log-probs sample by sample, and states by row for "full"."""

    logp: Float32[Array, "G N C"]
    hidden: Float[Array, "B T D"] | None
    valid: Bool[Array, "B T"] | None


class Reader:
    """Compiled readings of policy and anchor: one function for both, so that equal weights have a KL of exactly 0."""

    def __init__(self, graphdef: nnx.GraphDef[Any], config: RlConfig, capacity: int) -> None:
        states = config.kl.estimator == "full"

        def readings(params: Params, batch: Arrays) -> Readings:
            where, rows = places(batch, capacity), read(merge(graphdef, params), batch, config.temperature)
            hidden, valid = (rows.hidden, rows.valid) if states else (None, None)
            return Readings(where.of(rows.logp), hidden, valid)

        def vocabulary(
            params: Params, own: Readings, anchor_params: Params, anchor: Readings, batch: Arrays
        ) -> Float32[Array, "G N C"]:
            table = merge(graphdef, anchor_params).table
            assert own.hidden is not None
            assert own.valid is not None
            assert anchor.hidden is not None
            model = merge(graphdef, params)
            kl = full_kl(model, own.hidden, (anchor.hidden, table), own.valid, config.temperature)
            return places(batch, capacity).of(kl)

        self.read = jax.jit(readings)
        """Readings of a model on a batch."""
        self.full_kl = jax.jit(vocabulary)
        """KL over the vocabulary of each sampled token, from both readings."""
