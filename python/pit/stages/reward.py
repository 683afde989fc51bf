"""Reward models: R_P ranks two answers, R_PIT the four orders of an answer and a reference (PIT, section 3.3)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32

from pit.config import OrderedPairs
from pit.data.template import gap, quality
from pit.losses.gap import antisymmetric, five_pairs, one_pair, pairwise
from pit.losses.total import Total, masked
from pit.model.adapters import with_dropout
from pit.model.params import Params, merge
from pit.run.stage import REWARD_MODEL, Role, Stage
from pit.stages import sft
from pit.stages.supervised import supervised_stage
from pit.train.update import Arrays, LossFunction
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW


def _ranked(higher: Float32[Array, " G"], lower: Float32[Array, " G"], present: Bool[Array, " G"]) -> Total:
    return masked((higher > lower).astype(jnp.float32), present)


def _scores(graphdef: nnx.GraphDef[Any], params: Params, batch: Arrays) -> tuple[Array, Array]:
    model = with_dropout(merge(graphdef, params), batch)
    score = model(batch["token"], batch["position"], batch["visible_until"], batch["leaf"])
    return score, batch["leaf"][:, 0, 0] >= 0


def quality_loss(graphdef: nnx.GraphDef[Any]) -> LossFunction:
    """Return the Bradley-Terry loss of R_P on trees x -> {y_w, y_l}, with its accuracy."""

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        score, present = _scores(graphdef, params, batch)
        return pairwise(score, present), {"accuracy": _ranked(score[:, 0], score[:, 1], present)}

    return loss


def gap_loss(graphdef: nnx.GraphDef[Any], ordered_pairs: OrderedPairs = "five") -> LossFunction:
    """Return the loss of R_PIT on trees x -> {y_w, y_l} -> {y_w, y_l}, with its accuracy.

    It ranks the paper's five pairs of the four orders, or one, or is the logistic loss of the symmetric gap.
    """
    ranked = {"five": five_pairs, "one": one_pair, "antisymmetric": antisymmetric}[ordered_pairs]

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        score, present = _scores(graphdef, params, batch)
        metrics: Mapping[str, Total] = {
            "accuracy": _ranked(score[:, GAP_WL], score[:, GAP_LW], present),
            "accuracy/wl_over_ww": _ranked(score[:, GAP_WL], score[:, GAP_WW], present),
            "accuracy/ll_over_lw": _ranked(score[:, GAP_LL], score[:, GAP_LW], present),
            "rewards/margin": masked(score[:, GAP_WL] - score[:, GAP_LW], present),
        }
        return ranked(score, present), dict(metrics)

    return loss


def _start(init: str) -> dict[Role, Stage]:
    """Return the stage whose weights `init` names; none for the run's base."""
    starts: dict[str, dict[Role, Stage]] = {"base": {}, "policy": {"start": sft.POLICY}}
    return starts.get(init, {"start": QUALITY})


QUALITY = supervised_stage(
    name="reward-quality",
    title="R_P on pairs",
    section="reward_quality",
    trains=REWARD_MODEL,
    fold="reward",
    topology=quality(),
    loss=lambda graphdef, config: quality_loss(graphdef),
    inputs=lambda config: _start(config.reward_quality.init),
)

GAP = supervised_stage(
    name="reward-gap",
    title="R_PIT on the four orders of each pair",
    section="reward_gap",
    trains=REWARD_MODEL,
    fold="reward",
    topology=gap(),
    loss=lambda graphdef, config: gap_loss(graphdef, config.reward_gap.ordered_pairs),
    inputs=lambda config: _start(config.reward_gap.init),
)

JUDGE = supervised_stage(
    name="reward-judge",
    title="a judge for evaluation, on a fold of its own",
    section="reward_judge",
    trains=REWARD_MODEL,
    fold="judge",
    topology=quality(),
    loss=lambda graphdef, config: quality_loss(graphdef),
    inputs=lambda config: _start(config.reward_judge.init),
)
