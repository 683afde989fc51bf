"""The supervised loop of fine-tuning and reward modelling: planned batches in, a checkpointed model out."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pit.config import TrainConfig
from pit.data.loader import Loader, count_steps
from pit.data.packing import pack_trees
from pit.losses.total import Total
from pit.model.params import Params
from pit.model.sharding import row_sharding
from pit.stages.claim import claim
from pit.stages.context import STAGES, Run, StageClock
from pit.train.feed import Feed, StepLoader, to_device
from pit.train.guard import Guard
from pit.train.log import StageLog
from pit.train.loop import run_steps
from pit.train.update import Evaluation, LossFunction, TrainState, Update, make_optimizer
from pit.types import Batch, Topology


@dataclass(frozen=True)
class Task:
    """What a supervised stage is, beside its config: a tree, a fold, and a loss of the merged model."""

    stage: str
    fold: str
    topology: Topology
    loss: Callable[[nnx.GraphDef[Any]], LossFunction]


@dataclass(frozen=True)
class Batches:
    """Batches that are not simply those of a fold: what makes them, and held-out ones."""

    loader: StepLoader
    held_out: list[Batch]


def fit(
    run: Run,
    task: Task,
    *,
    initial: Params | None = None,
    batches: Batches | None = None,
    profile_steps: int = 0,
) -> None:
    """Train the stage's model, resuming from its newest checkpoint; writes `done.json` at the end.

    Args:
        run: the run.
        task: what is trained.
        initial: weights to start from instead of fresh ones (consumed).
        batches: to train on instead of the task's fold; the config then names the steps.
        profile_steps: steps to trace.
    """
    name, config = task.stage, _config(run, task)
    clock = StageClock(run, name)
    graphdef, params = run.model(name)
    sharding, shards = row_sharding(run.mesh), run.config.mesh.shards
    fold = run.fold(task.fold)
    layout = run.layout(config.packing)
    loss = task.loss(graphdef)
    seed = run.config.seed
    steps = config.steps or count_steps(fold, task.topology, layout, config.packing, shards=shards, seed=seed)
    update = Update(loss, make_optimizer(config.optimizer, steps))
    state = update.start(params if initial is None else initial)
    stage_hash = run.stage_hash(name)
    batches = _of_fold(run, task) if batches is None else batches
    loader = batches.loader
    evaluation = Evaluation(loss)
    refused, pending = 0, []
    with claim(run.stage_folder(name)), run.checkpoints(name, keep=config.keep) as checkpoints:
        restored = checkpoints.restore(state, stage_hash)
        if restored is not None:
            state = restored.state
            loader.restore(restored.loader["state"])
            refused, pending = restored.controllers["refused_in_a_row"], restored.controllers["log"]
            clock.tokens = restored.meta["tokens"]
        guard = Guard(update, run.stage_folder(name), name, limit=config.optimizer.refusals, in_a_row=refused)
        meta = {"hash": stage_hash, "tokens": clock.tokens}
        with StageLog(run.stage_folder(name), name, resumed_step=int(state.step), pending=pending) as log:
            feed, last = Feed(loader, sharding), time.perf_counter()

            def step(state: TrainState) -> tuple[TrainState, Mapping[str, Total | float]]:
                nonlocal last
                arrays, examples, tokens, slots, wait_s = next(feed)
                state, metrics = guard(state, arrays, examples)
                clock.tokens += tokens
                meta["tokens"] = clock.tokens
                last, begin = time.perf_counter(), last
                return state, {
                    **metrics,
                    "perf/tokens_per_s": Total(jnp.float32(tokens), jnp.float32(last - begin)),
                    "perf/fill": tokens / slots,
                    "perf/data_wait_s": wait_s,
                }

            run_steps(
                state,
                steps=steps,
                step=step,
                log=log,
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint_every,
                loader_state=lambda: {"state": feed.state()},
                controllers=guard.state,
                meta=meta,
                evaluate=lambda s: evaluation(s.params, (to_device(b, sharding) for b in batches.held_out)),
                evaluate_every=config.evaluate_every,
                profile_steps=profile_steps,
            )
    clock.finish(steps)


def _config(run: Run, task: Task) -> TrainConfig:
    config: TrainConfig = getattr(run.config, STAGES[task.stage].section)
    return config


def _of_fold(run: Run, task: Task) -> Batches:
    """The fold of a task, planned, and trees of the eval fold in the stage's own shape, packed once."""
    config, fold, shards = _config(run, task), run.fold("eval"), run.config.mesh.shards
    layout = run.layout(config.packing)
    loader = Loader(
        run.fold(task.fold),
        task.topology,
        layout,
        config.packing,
        shards=shards,
        seed=run.config.seed,
        config_hash=run.stage_hash(task.stage),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    count = min(config.evaluate_trees, len(fold))
    return Batches(loader, pack_trees(fold.table, fold.lengths()[:count], task.topology, layout, shards=shards))
