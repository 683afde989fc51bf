"""Reward models: R_P ranks two answers, R_PIT the four orders of an answer and a reference (PIT, section 3.3)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32

from pit.config import GapPairs, RunConfig
from pit.data.template import gap, quality
from pit.losses.gap import five_pairs, one_pair, pairwise
from pit.losses.total import Total, masked
from pit.model.params import Params, copy, merge
from pit.stages.context import INITIAL, STAGES, Run
from pit.stages.supervised import Task, fit
from pit.train.update import Arrays, LossFunction
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW


def _ranked(higher: Float32[Array, " G"], lower: Float32[Array, " G"], present: Bool[Array, " G"]) -> Total:
    return masked((higher > lower).astype(jnp.float32), present)


def _scores(graphdef: nnx.GraphDef[Any], params: Params, batch: Arrays) -> tuple[Array, Array]:
    score = merge(graphdef, params)(batch["token"], batch["position"], batch["visible_until"], batch["leaf"])
    return score, batch["leaf"][:, 0, 0] >= 0


def quality_loss(graphdef: nnx.GraphDef[Any]) -> LossFunction:
    """Bradley-Terry loss of R_P on trees x -> {y_w, y_l}, with its accuracy."""

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        score, present = _scores(graphdef, params, batch)
        return pairwise(score, present), {"accuracy": _ranked(score[:, 0], score[:, 1], present)}

    return loss


def gap_loss(graphdef: nnx.GraphDef[Any], ordered_pairs: GapPairs = "five") -> LossFunction:
    """Loss of R_PIT on trees x -> {y_w, y_l} -> {y_w, y_l}, of five pairs of orders or of one, with its accuracy."""

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        score, present = _scores(graphdef, params, batch)
        metrics: Mapping[str, Total] = {
            "accuracy": _ranked(score[:, GAP_WL], score[:, GAP_LW], present),
            "accuracy/wl_over_ww": _ranked(score[:, GAP_WL], score[:, GAP_WW], present),
            "accuracy/ll_over_lw": _ranked(score[:, GAP_LL], score[:, GAP_LW], present),
            "rewards/margin": masked(score[:, GAP_WL] - score[:, GAP_LW], present),
        }
        ranked = five_pairs if ordered_pairs == "five" else one_pair
        return ranked(score, present), dict(metrics)

    return loss


QUALITY = Task("reward-quality", "reward", quality(), quality_loss)
GAP = Task("reward-gap", "reward", gap(), gap_loss)
JUDGE = Task("reward-judge", "judge", quality(), quality_loss)


def with_pairs(task: Task, config: RunConfig) -> Task:
    """The task with the loss that `gap.ordered_pairs` names, where it trains R_PIT."""
    if task.loss is not gap_loss:
        return task
    return replace(task, loss=partial(gap_loss, ordered_pairs=config.gap.ordered_pairs))


def run_reward(run: Run, task: Task, *, profile_steps: int = 0) -> None:
    """Train a reward model, from fresh weights, the fine-tuned policy's (a fresh head on top), or R_P's."""
    section = getattr(run.config, STAGES[task.stage].section)
    initial = None
    if section.init == "policy":
        _, fresh = run.model(task.stage)
        _, policy = run.trained(INITIAL["policy"])
        initial = copy({**fresh, **{f"decoder.{name}": value for name, value in policy.items()}})
    elif section.init == "quality":
        initial = copy(run.trained(INITIAL["quality"])[1])
    fit(run, with_pairs(task, run.config), initial=initial, profile_steps=profile_steps)
