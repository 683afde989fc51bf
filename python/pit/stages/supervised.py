"""The supervised loop of fine-tuning and reward modelling: planned batches in, a checkpointed model out."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array

from pit.config import TrainConfig
from pit.data.loader import Loader, count_steps
from pit.data.packing import pack_trees
from pit.losses.total import Total
from pit.model.params import Params
from pit.model.sharding import row_sharding
from pit.stages.context import STAGES, Run, StageClock
from pit.train.log import StageLog
from pit.train.loop import run_steps
from pit.train.update import Arrays, Evaluation, LossFunction, TrainState, Update, make_optimizer
from pit.types import Batch, Topology


@dataclass(frozen=True)
class Task:
    """What a supervised stage is, beside its config: a tree, a fold, and a loss of the merged model."""

    stage: str
    fold: str
    topology: Topology
    loss: Callable[[nnx.GraphDef[Any]], LossFunction]


def to_device(batch: Batch, sharding: NamedSharding) -> dict[str, Array]:
    """The arrays of a batch that models and losses see, rows and trees split over the data shards."""
    names = ("token", "position", "visible_until", "previous", "loss_weight", "leaf")
    return {name: jax.device_put(getattr(batch, name), sharding) for name in names}


def live_tokens(batch: Batch) -> int:
    """Tokens of a batch that are not padding."""
    return int(np.count_nonzero(batch.visible_until > np.arange(batch.token.shape[1], dtype=np.int32)))


def fit(run: Run, task: Task, *, initial: Params | None = None, profile_steps: int = 0) -> None:
    """Train the stage's model, resuming from its newest checkpoint; writes `done.json` at the end.

    Args:
        run: the run.
        task: what is trained.
        initial: weights to start from instead of fresh ones (consumed).
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
    loader = Loader(fold, task.topology, layout, config.packing, shards=shards, seed=seed, config_hash=stage_hash)
    held_out = _held_out(run, task, config)
    evaluation = Evaluation(loss)
    with run.checkpoints(name, keep=config.keep) as checkpoints:
        restored = checkpoints.restore(state, stage_hash)
        if restored is not None:
            state = restored.state
            loader.restore(restored.loader["state"])
            clock.tokens = restored.meta["tokens"]
        meta = {"hash": stage_hash, "tokens": clock.tokens}
        with StageLog(run.stage_folder(name), name, resumed_step=int(state.step)) as log:
            feed, last = _feed(loader, sharding), time.perf_counter()

            def step(state: TrainState) -> tuple[TrainState, Mapping[str, Total | float]]:
                nonlocal last
                arrays, tokens, slots, wait_s = next(feed)
                state, metrics = update(state, arrays)
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
                loader_state=lambda: {"state": loader.state()},
                meta=meta,
                evaluate=lambda s: evaluation(s.params, (to_device(b, sharding) for b in held_out)),
                evaluate_every=config.evaluate_every,
                profile_steps=profile_steps,
            )
    clock.finish(steps)


def _config(run: Run, task: Task) -> TrainConfig:
    config: TrainConfig = getattr(run.config, STAGES[task.stage].section)
    return config


def _feed(loader: Loader, sharding: NamedSharding) -> Iterator[tuple[list[Arrays], int, int, float]]:
    """Microbatches of each step on the device, their live tokens and slots, and the seconds spent waiting for data."""
    while True:
        begin = time.perf_counter()
        batches = next(loader)
        wait_s = time.perf_counter() - begin
        slots = sum(b.token.size for b in batches)
        yield [to_device(b, sharding) for b in batches], sum(map(live_tokens, batches)), slots, wait_s


def _held_out(run: Run, task: Task, config: TrainConfig) -> list[Batch]:
    """Trees of the eval fold in the stage's own shape, packed once."""
    fold = run.fold("eval")
    count = min(config.evaluate_trees, len(fold))
    shards = run.config.mesh.shards
    return pack_trees(fold.table, fold.lengths()[:count], task.topology, run.layout(config.packing), shards=shards)
