"""Rivals that need no reward model and no samples: DPO's policy and SRPO's improver, on the pairs of the reward models.

They see the same labels and start from the same fine-tuned models, so what a gap model and RL add shows against them.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pit.data.template import improver_orders, policy_pair
from pit.losses.offline import dpo, output_sums, srpo_improvement
from pit.losses.total import Total, masked
from pit.model.adapters import with_dropout
from pit.model.heads import row_logprobs
from pit.model.params import Params, merge
from pit.run.stage import ANCHORED, DECODER
from pit.stages import sft
from pit.stages.supervised import supervised_stage
from pit.train.update import Arrays, LossFunction
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW


def output_logps(graphdef: nnx.GraphDef[Any]) -> Callable[[Params, Arrays], Array]:
    """Return the function of weights and a batch that gives the log-prob of each output, nats [G, L]."""

    def read(params: Params, batch: Arrays) -> Array:
        model = with_dropout(merge(graphdef, params), batch)
        rows = batch["token"], batch["position"], batch["visible_until"], batch["previous"]
        logp = row_logprobs(model, *rows, temperature=1.0)
        return output_sums(logp, batch["loss_weight"], batch["previous"], batch["leaf"])

    return read


def _ratios(graphdef: nnx.GraphDef[Any], params: Params, batch: Arrays) -> tuple[Array, Array]:
    return output_logps(graphdef)(params, batch) - batch[ANCHORED], batch["leaf"][:, 0, 0] >= 0


def dpo_loss(graphdef: nnx.GraphDef[Any], beta: float) -> LossFunction:
    """Return DPO's loss on trees x -> {y_w, y_l}, with the accuracy and the mean margin of its implicit reward."""

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        ratio, present = _ratios(graphdef, params, batch)
        margin = jnp.float32(beta) * (ratio[:, 0] - ratio[:, 1])
        right = masked((margin > 0).astype(jnp.float32), present)
        return dpo(ratio, present, beta), {"accuracy": right, "rewards/margin": masked(margin, present)}

    return loss


def srpo_loss(graphdef: nnx.GraphDef[Any], beta: float) -> LossFunction:
    """Return SRPO's loss of the improver on the four orders of a pair, with its accuracy and mean margin.

    It is right where it mends the worse answer and leaves the better one: both count half.
    """

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        ratio, present = _ratios(graphdef, params, batch)
        mends, keeps = ratio[:, GAP_WL] - ratio[:, GAP_LL], ratio[:, GAP_WW] - ratio[:, GAP_LW]
        right = 0.5 * ((mends > 0).astype(jnp.float32) + (keeps > 0).astype(jnp.float32))
        margin = jnp.float32(0.5 * beta) * (mends + keeps)
        metrics = {"accuracy": masked(right, present), "rewards/margin": masked(margin, present)}
        return srpo_improvement(ratio, present, beta), metrics

    return loss


POLICY = supervised_stage(
    name="dpo-policy",
    title="M_P on pairs alone (DPO), a rival of M_P^RL",
    section="dpo",
    trains=DECODER,
    fold="reward",
    topology=policy_pair(),
    loss=lambda graphdef, config: dpo_loss(graphdef, config.dpo.beta),
    inputs=lambda config: {"start": sft.POLICY, "anchor": sft.POLICY},
    anchored=output_logps,
    included=lambda config: config.adds_rival("dpo"),
    option="offline=dpo",
)

IMPROVER = supervised_stage(
    name="srpo-improver",
    title="M_PIT on pairs alone (SRPO), a rival of the improver",
    section="srpo",
    trains=DECODER,
    fold="reward",
    topology=improver_orders(),
    loss=lambda graphdef, config: srpo_loss(graphdef, config.srpo.beta),
    inputs=lambda config: {"start": sft.IMPROVER, "anchor": sft.IMPROVER},
    anchored=output_logps,
    included=lambda config: config.adds_rival("srpo"),
    option="offline=srpo",
)
