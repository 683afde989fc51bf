"""Supervised stages: planned batches in, a checkpointed model out. Fine-tuning and reward models share this half."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pit.config import OptimizerConfig, RunConfig
from pit.data.loader import Loader, count_steps
from pit.data.local import pack_trees_local
from pit.errors import PitError
from pit.losses.total import Total
from pit.model.adapters import DROPOUT
from pit.model.model import Model
from pit.model.params import Params, key_of
from pit.model.sharding import row_sharding
from pit.run.folder import Run
from pit.run.session import Session
from pit.run.stage import ANCHORED, DECODER, REWARD_MODEL, Kind, Role, Services, Stage
from pit.train.checkpoint import Restored
from pit.train.feed import Feed, StepLoader, to_device
from pit.train.update import Arrays, Evaluation, LossFunction, TrainState
from pit.types import LocalBatch, Topology


@dataclass(frozen=True)
class Batches:
    """Batches to train on, and held-out ones to measure by."""

    loader: StepLoader
    held_out: list[LocalBatch]


# Twelve parameters: those of a stage, and what a supervised one adds.
def supervised_stage(
    *,
    name: str,
    title: str,
    section: str,
    trains: Kind,
    fold: str,
    topology: Topology,
    loss: Callable[[nnx.GraphDef[Any], RunConfig], LossFunction],
    inputs: Callable[[RunConfig], Mapping[Role, Stage]] = lambda config: {},
    batches: "Callable[[Session, Topology], Batches] | None" = None,
    **optional: Any,
) -> Stage:
    """Return a stage that trains a model by a loss of packed trees.

    Args:
        name: name of the stage.
        title: short description.
        section: its config section.
        trains: kind of the model.
        fold: fold of the data.
        topology: tree that each row becomes.
        loss: makes its loss from the graph definition of its model and the config.
        inputs: returns its inputs; "start" is the model whose weights it begins with, fresh ones without it.
        batches: makes the batches; those of the fold if not given.
        optional: further fields of the stage.
    """

    def work(run: Run, services: Services) -> None:
        session = Session(run, stage, profile_steps=services.profile_steps)
        model = initial_model(stage, run)
        made = (batches or fold_batches)(session, topology)
        anchor = (
            None if stage.anchored is None else Anchor(stage.inputs(run.config)["anchor"].load(run), stage.anchored)
        )
        task = SupervisedTask(session, loss(model.graphdef, run.config), made, model.frozen, anchor)
        session.train(task, model, session.settings.steps or steps_of_fold(stage, run))

    stage = Stage(
        name=name,
        title=title,
        section=section,
        trains=trains,
        fold=fold,
        topology=lambda config: topology,
        loss=lambda graphdef, config, capacity: loss(graphdef, config),
        inputs=inputs,
        work=work,
        **optional,
    )
    return stage


def initial_model(stage: Stage, run: Run) -> Model[Any]:
    """Return the model that training begins with: fresh, or with the weights of the stage's "start".

    A reward model that starts from a policy takes its decoder and keeps a fresh head. Frozen weights stay the base's.
    """
    start = stage.inputs(run.config).get("start")
    if start is None:
        return stage.fresh(run)
    loaded = start.load(run)
    if start.trains == stage.trains and start.adapter(run.config) == stage.adapter(run.config):
        return loaded
    weights = loaded.trained
    if start.trains != stage.trains:
        assert (start.trains, stage.trains) == (DECODER, REWARD_MODEL)
        weights = {f"decoder.{name}": value for name, value in weights.items()}
    return stage.fresh(run).with_trained(weights)


def steps_of_fold(stage: Stage, run: Run) -> int:
    """Return the steps of one pass over the stage's fold, by planning it."""
    packing, shards = stage.settings(run.config).packing, run.config.mesh.shards
    topology = stage.topology(run.config)
    seed = order_seed(run, stage)
    return count_steps(run.fold(stage.fold), topology, run.layout(packing), packing, shards=shards, seed=seed)


def order_seed(run: Run, stage: Stage) -> int:
    """Return the seed of the order in which a stage sees the rows of its fold."""
    return run.seed.of(stage.name, "order").number


def fold_batches(session: Session, topology: Topology) -> Batches:
    """Return planned batches of the stage's fold, and trees of the eval fold in the stage's shape, packed once."""
    run, stage, config = session.run, session.stage, session.settings
    layout, shards = run.layout(config.packing), run.shards
    loader = Loader(
        run.fold(stage.fold),
        topology,
        layout,
        config.packing,
        shards=shards,
        seed=order_seed(run, stage),
        config_hash=stage.hash(run),
    )
    held_out = run.fold("eval")
    trees = min(config.evaluate_trees, len(held_out))
    return Batches(loader, pack_trees_local(held_out.table, held_out.lengths()[:trees], topology, layout, shards))


class Anchor:
    """A frozen model that adds to batches what a loss needs of it.

    Args:
        model: the model.
        anchored: makes, from its graph definition, the function of its weights and a batch.
    """

    def __init__(self, model: Model[Any], anchored: Callable[[nnx.GraphDef[Any]], Callable[[Params, Arrays], Array]]):
        self.model, self._read = model, jax.jit(anchored(model.graphdef))

    def __call__(self, batch: Arrays) -> Arrays:
        """Return the batch with `ANCHORED`."""
        with self.model.on_mesh():
            return {**batch, ANCHORED: self._read(self.model.params, batch)}


class SupervisedTask:
    """The own half of a supervised stage: one optimizer step per planned step.

    Args:
        session: the stage at work.
        loss: its loss.
        batches: batches to train on and to measure by.
        frozen: the weights that do not train.
        anchor: adds to batches what the loss needs of it; None where it reads none.
    """

    log_every = 5

    def __init__(
        self,
        session: Session,
        loss: LossFunction,
        batches: Batches,
        frozen: Params,
        anchor: Anchor | None = None,
    ) -> None:
        self.loss, self._session, self._batches = loss, session, batches
        self._anchored: Callable[[Arrays], Arrays] = anchor or (lambda batch: batch)
        self._adapter = session.settings.adapter
        self._noise = session.run.seed.of(session.stage.name, "dropout")
        self.optimizer: OptimizerConfig = session.settings.optimizer
        self._sharding = row_sharding(session.run.mesh)
        self._evaluation = Evaluation(loss, frozen)

    def begin(self, step: int, restored: Restored | None) -> None:
        """Start the loader, after a restored state if there is one."""
        if restored is not None:
            self._batches.loader.restore(restored.loader["state"])
        self._feed, self._last_s = Feed(self._batches.loader, self._sharding), time.perf_counter()
        self._done = step

    def close(self) -> None:
        """Stop the loader."""
        self._batches.loader.close()

    def step(self, state: TrainState) -> tuple[TrainState, Mapping[str, Total | float]]:
        """Take the next planned step."""
        batch = next(self._feed)
        microbatches = self._with_noise([self._anchored(arrays) for arrays in batch.arrays])
        state, metrics = self._session.guard(state, microbatches, batch.examples)
        self._done += 1
        self._session.tokens += batch.tokens
        begin_s, self._last_s = self._last_s, time.perf_counter()
        return state, {
            **metrics,
            "perf/tokens_per_s": Total(jnp.float32(batch.tokens), jnp.float32(self._last_s - begin_s)),
            "perf/fill": batch.tokens / batch.slots,
            "perf/data_wait_s": batch.wait_s,
        }

    def _with_noise(self, microbatches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Return the microbatches of the next step, each with a random key of its own if adapters drop inputs."""
        if self._adapter is None or not self._adapter.dropout:
            return microbatches
        keys = (key_of(self._noise.of(self._done, number).number) for number in range(len(microbatches)))
        return [{**arrays, DROPOUT: jax.random.key_data(key)} for arrays, key in zip(microbatches, keys, strict=True)]

    def evaluate(self, state: TrainState) -> Mapping[str, float]:
        """Return the loss and metrics of the held-out batches."""
        arrays = (self._anchored(to_device(batch, self._sharding)) for batch in self._batches.held_out)
        return self._evaluation(state.params, arrays)

    def loader_state(self) -> Mapping[str, Any]:
        """Return the state of the loader after the last step that was used."""
        return {"state": self._feed.state()}

    def controller_state(self) -> Mapping[str, Any]:
        """Return the state of the guard."""
        return self._session.guard.state()

    def halt(self) -> PitError | None:
        """Return None: nothing but its last step ends a supervised stage."""
        return None
