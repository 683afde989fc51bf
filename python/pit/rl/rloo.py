"""Leave-one-out REINFORCE (RLOO): one optimizer step per rollout (PIT, section 3.4; Ahmadian et al., arXiv 2402.14740).

The mathematics is that of `pit.losses.rl` and `pit.losses.kl`, here through the decoder on packed trees of samples.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

from pit.config import RlConfig
from pit.losses.kl import kl_cost
from pit.losses.rl import expected_cost, leave_one_out, reinforce
from pit.losses.total import Total
from pit.model.decoder import Decoder
from pit.model.global_arrays import put
from pit.model.params import Params, merge
from pit.model.programs import Shapes
from pit.rl.algorithm import Algorithm
from pit.rl.controllers import Controllers
from pit.rl.readings import full_kl, places, predictions
from pit.rl.records import Measures, Minibatch, Trees, by_slot
from pit.seeds import Seed
from pit.train.update import Arrays, LossFunction


def charges_kl(config: RlConfig) -> bool:
    """Return whether the KL is a term of the loss: k1 in the reward is complete without one."""
    return config.kl.place == "loss" or config.kl.estimator != "k1"


def policy_gradient(graphdef: nnx.GraphDef[Decoder], config: RlConfig, capacity: int) -> LossFunction:
    """Return the loss of a step on packed samples: REINFORCE, the KL where it is charged here, the entropy bonus.

    Besides its rows and leaf table, a batch holds `length`, `finished`, `advantage` [G, N]; where `charges_kl` also
    `kl_coefficient` [G] (score per nat, in the scale of the advantages) and, of the anchor, `anchor_logp` [G, N, C], or
    with the estimator "full" `anchor_hidden` [B, T, D] and `anchor_table` [V, D].

    Args:
        graphdef: definition of the policy.
        config: section of the stage.
        capacity: most tokens of a sample, C.
    """
    kl = config.kl

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        model = merge(graphdef, params)
        where = places(batch, capacity)
        rows = predictions(model, batch, config.temperature)
        logp = where.of(rows.logp)
        total = reinforce(logp, batch["advantage"], where.sampled, batch["leaf"][:, 0, 0] >= 0)
        if charges_kl(config):
            if kl.estimator == "full":
                states = batch["anchor_hidden"], batch["anchor_table"]
                anchor = where.of(full_kl(model, rows.hidden, states, rows.valid, config.temperature))
            else:
                anchor = batch["anchor_logp"]
            cost = kl_cost(kl.estimator, kl.place, logp, anchor, where.sampled)
            total = total._replace(sum=total.sum + jnp.sum(batch["kl_coefficient"][:, None] * cost))
        if config.entropy:
            entropy = where.of(rows.entropy)
            bonus = expected_cost(entropy, entropy, logp, where.sampled, include_current=False)
            total = total._replace(sum=total.sum - jnp.float32(config.entropy) * jnp.sum(bonus))
        return total, {}

    return loss


def advantages(reward: Float32[Array, "G N"], *, normalise: bool) -> tuple[Float32[Array, "G N"], Float32[Array, ""]]:
    """Return leave-one-out advantages, and what one unit of reward became in them.

    With `normalise` they are divided by their standard deviation in the step; all are 0 where all rewards are equal.
    """
    advantage = leave_one_out(reward)
    if not normalise:
        return advantage, jnp.float32(1.0)
    deviation = jnp.std(advantage)
    scale = jnp.where(deviation > 0, 1.0 / jnp.where(deviation > 0, deviation, 1.0), 0.0)
    return advantage * scale, scale


class Rloo(Algorithm):
    """RLOO: every rollout is one minibatch.

    Args:
        graphdef: definition of the policy.
        config: section of the stage.
        capacity: most tokens of a sample.
    """

    name = "rloo"

    def __init__(self, graphdef: nnx.GraphDef[Decoder], config: RlConfig, capacity: int) -> None:
        self.loss, self.config = policy_gradient(graphdef, config, capacity), config
        self._targets, self._charges_kl = jax.jit(self.targets), charges_kl(config)

    def targets(
        self, reward: Float32[Array, "G N"], beta: Float32[Array, ""]
    ) -> tuple[Float32[Array, "G N"], Float32[Array, " G"]]:
        """Return the advantages of shaped rewards, and the KL's coefficient per tree in their scale."""
        advantage, scale = advantages(reward, normalise=self.config.normalise)
        # The rest of the gradient of a KL in the reward is scaled as the advantages are.
        coefficient = beta * scale if self.config.kl.place == "reward" else beta
        return advantage, jnp.full(reward.shape[0], coefficient)

    def prepare(self, trees: Trees, measures: Measures, control: Controllers, seed: Seed) -> Iterator[Minibatch]:
        """Yield one minibatch: the packed samples with advantages, and the KL's coefficient if the loss charges it."""
        advantage, coefficient = map(np.asarray, self._targets(measures.reward, np.float32(control.beta)))
        values = {"advantage": advantage, **({"kl_coefficient": coefficient} if self._charges_kl else {})}
        microbatches = []
        for batch, arrays, anchored in zip(trees.batches, trees.arrays, measures.anchored, strict=True):
            slots = {name: put(by_slot(value, batch), trees.sharding) for name, value in values.items()}
            microbatches.append({**arrays, **(anchored if self._charges_kl else {}), **slots})
        yield Minibatch(microbatches, [batch.example_id for batch in trees.batches])

    def shapes(self, batch: Shapes, anchored: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a microbatch; see `Algorithm.shapes`."""
        (slots, n), place = batch["length"].shape, batch["length"].sharding
        added = {"advantage": jax.ShapeDtypeStruct((slots, n), jnp.float32, sharding=place)}
        if not self._charges_kl:
            return {**batch, **added}
        coefficient = jax.ShapeDtypeStruct((slots,), jnp.float32, sharding=place)
        return {**batch, **anchored, **added, "kl_coefficient": coefficient}
