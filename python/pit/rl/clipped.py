"""Clipped updates: several minibatches and epochs per rollout, each ratio to the rollout's policy kept near 1.

PPO's objective (Schulman et al., arXiv 1707.06347) with the leave-one-out advantages of `rloo.py`, and no value model.
The log-probs of the rollout are those that were read before its first update; samples are never read again.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int64

from pit.config import RlConfig
from pit.config.rules import require
from pit.losses.rl import clipped
from pit.losses.total import Total
from pit.model.decoder import Decoder
from pit.model.global_arrays import put
from pit.model.params import Params, merge
from pit.model.programs import Shapes
from pit.rl.controllers import Controllers
from pit.rl.readings import places, predictions
from pit.rl.records import Measures, Minibatch, Trees, by_slot
from pit.rl.rloo import Rloo
from pit.seeds import Seed
from pit.train.update import REFUSED, Arrays, LossFunction

CLIPPED, KL = "policy/clipfrac_avg", "policy/approxkl_avg"
"""Metrics of an update, under TRL's names."""


def clipped_gradient(graphdef: nnx.GraphDef[Decoder], config: RlConfig, capacity: int) -> LossFunction:
    """Return the loss of an update on packed samples, with the metrics `CLIPPED` and `KL`.

    Besides its rows and leaf table, a batch holds `length`, `finished`, `advantage` [G, N], and `rollout_logp`
    [G, N, C], the log-probs of its tokens under the policy that sampled them.

    Args:
        graphdef: definition of the policy.
        config: section of the stage.
        capacity: most tokens of a sample, C.
    """
    clip = config.clip

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        where = places(batch, capacity)
        logp = where.of(predictions(merge(graphdef, params), batch, config.temperature).logp)
        present = batch["leaf"][:, 0, 0] >= 0
        total, moved = clipped(
            logp - batch["rollout_logp"],
            batch["advantage"],
            where.sampled,
            present,
            level=clip.ratio,
            low=clip.low,
            high=clip.high,
        )
        return total, {CLIPPED: moved["clipped"], KL: moved["kl"]}

    return loss


def order_of(minibatches: int, seed: Seed) -> Int64[np.ndarray, " m"]:
    """Return the order of an epoch's minibatches."""
    return np.random.default_rng(seed.number).permutation(minibatches)


class Clipped(Rloo):
    """The clipped objective: the trees of a rollout in parts, an update each, several times over.

    Parts keep their trees over the epochs, and come in another order in each.

    Args:
        graphdef: definition of the policy.
        config: section of the stage.
        capacity: most tokens of a sample.
    """

    name = "clipped"

    def __init__(self, graphdef: nnx.GraphDef[Decoder], config: RlConfig, capacity: int) -> None:
        super().__init__(graphdef, config, capacity)
        self.loss = clipped_gradient(graphdef, config, capacity)
        self.minibatches = config.clip.minibatches
        self.updates = config.clip.epochs * config.clip.minibatches

    @classmethod
    def check(cls, config: RlConfig) -> None:
        """Raise where minibatches would differ in size, or a term holds for samples of the current policy alone."""
        rule = f"must divide prompts = {config.prompts}, because every minibatch has as many trees"
        parts, remedy = config.clip.minibatches, "set {path}=1, or another divisor"
        require(config.prompts % parts == 0, "clip.minibatches", parts, rule, remedy)
        why = "with algorithm clipped, whose later updates read samples of an earlier policy"
        require(config.kl.estimator == "k1", "kl.estimator", config.kl.estimator, f"must be k1 {why}", "set {path}=k1")
        require(config.kl.place == "reward", "kl.place", config.kl.place, f"must be reward {why}", "set {path}=reward")
        require(config.entropy == 0, "entropy", config.entropy, f"must be 0 {why}", "set {path}=0")

    def prepare(self, trees: Trees, measures: Measures, control: Controllers, seed: Seed) -> Iterator[Minibatch]:
        """Yield the parts of the trees, with advantages over the whole rollout, epoch by epoch."""
        advantage, _ = self._targets(measures.reward, np.float32(control.beta))
        values = {"advantage": np.asarray(advantage), "rollout_logp": measures.logp_nats}
        parts = [Minibatch([], []) for _ in range(self.minibatches)]
        for number, batch, arrays in zip(trees.minibatch, trees.batches, trees.arrays, strict=True):
            slots = {name: put(by_slot(value, batch), trees.sharding) for name, value in values.items()}
            part = parts[number]
            parts[number] = Minibatch([*part.arrays, {**arrays, **slots}], [*part.examples, batch.example_id])
        for epoch in range(self.config.clip.epochs):
            for number in order_of(self.minibatches, seed.of(epoch)).tolist():
                yield parts[number]

    def proceeds(self, totals: Mapping[str, Total]) -> bool:
        """Return whether the last update was taken, and began within `kl_limit` of the policy that sampled."""
        limit, kl, refused = self.config.clip.kl_limit, totals.get(KL), totals.get(REFUSED)
        if refused is not None and float(refused.sum):
            # What made it NaN is likely to make the next one so; it counts once against `optimizer.refusals`.
            return False
        if limit is None or kl is None:
            return True
        return float(kl.sum) <= limit * float(kl.weight)

    def shapes(self, batch: Shapes, anchored: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a microbatch; see `Algorithm.shapes`."""
        (slots, n), place = batch["length"].shape, batch["length"].sharding
        capacity = anchored["anchor_logp"].shape[2]
        return {
            **batch,
            "advantage": jax.ShapeDtypeStruct((slots, n), jnp.float32, sharding=place),
            "rollout_logp": jax.ShapeDtypeStruct((slots, n, capacity), jnp.float32, sharding=place),
        }
