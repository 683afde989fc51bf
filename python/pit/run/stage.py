"""Stages as values: what a stage trains, from which other stages, and what its result depends on.

Inputs are named by role, so that order, hashes, resident models and commands follow from the values; nothing compares
the names of stages.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from flax import nnx
from jaxtyping import Array

from pit.config import AdapterConfig, ConfigError, FieldError, ModelConfig, RunConfig, digest
from pit.model.adapters import targets
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.model import Model, adapted, on_base, with_head
from pit.model.params import Params
from pit.model.sharding import shard_params
from pit.records import read_object
from pit.rl.records import Gold, Labeller
from pit.run.folder import Run
from pit.train.checkpoint import CheckpointError, Checkpoints
from pit.train.update import Arrays, LossFunction
from pit.types import Topology

LossOf = Callable[[nnx.GraphDef[Any], RunConfig, int], LossFunction]
"""Makes the loss of a stage from the graph definition of its model, the config, and the most tokens of an answer."""

Role = Literal["start", "anchor", "reward", "writer", "rewriter", "ranker"]
"""Use that a stage makes of another one's model.

start: weights that training begins with. anchor: model of the KL term. reward: reward model that is maximised. writer:
policy that writes references or samples. rewriter: improver that rewrites them. ranker: reward model that chooses among
drafts of a reference.
"""


class Services(NamedTuple):
    """Help from the layers above, handed to whatever a job does.

    profile_steps: steps to trace with the JAX profiler.
    gold: returns the true worth of answers for the hacking board, or None where nobody knows it.
    labeller: returns a labeller of pairs of samples.
    """

    profile_steps: int = 0
    gold: Callable[[Run], Gold | None] = lambda run: None
    labeller: Callable[[Run], Labeller] | None = None


class Kind(NamedTuple):
    """A kind of model: its class, and the config field of its shape."""

    module: Any
    shape: str

    def config(self, config: RunConfig) -> ModelConfig:
        """Return the shape of such a model in a run."""
        shape: ModelConfig = getattr(config, self.shape)
        return shape


ANCHORED = "anchored"
"""What a loss needs of the anchor, among the arrays of its batches."""

DECODER = Kind(Decoder, "policy")
REWARD_MODEL = Kind(RewardModel, "reward_model")


RECORD: Mapping[str, Any] = MappingProxyType(
    {
        "hash": str,
        "steps": int,
        "tokens": int,
        "seconds": int | float,
        "compile_seconds": int | float,
        "peak_memory_bytes": int,
    }
)
"""Fields of a finished stage's record (done.json) that are read back, and their types."""


def _nothing(config: RunConfig) -> tuple[Any, ...]:
    return ()


def _always(config: RunConfig) -> bool:
    return True


def _never(run: Run) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of a run: `pit NAME --run FOLDER`.

    name: name of the job and of its command.
    title: short description.
    work: does the job.
    after: returns the jobs that must be finished before, beyond a stage's inputs.
    included: returns whether a config includes the job in a run.
    option: setting that includes an optional job, as `--set` takes it.
    flags: further options of its command: each one's name, the setting that it stands for, and its help.
    finished: returns whether there is nothing left to do.
    """

    name: str
    title: str
    work: Callable[[Run, Services], None]
    after: Callable[[RunConfig], tuple["Job", ...]] = _nothing
    included: Callable[[RunConfig], bool] = _always
    option: str = ""
    flags: tuple[tuple[str, str, str], ...] = ()
    finished: Callable[[Run], bool] = _never

    def needs(self, config: RunConfig) -> tuple["Job", ...]:
        """Return the jobs that must be finished before this one."""
        return self.after(config)

    def done(self, run: Run) -> bool:
        """Return whether there is nothing left to do."""
        return self.finished(run)

    def command(self, run: Run) -> str:
        """Return the command that does the job."""
        return shlex.join(["pit", self.name, "--run", str(run.folder)])

    def require(self, config: RunConfig) -> None:
        """Raise if the run does not include the job.

        Raises:
            ConfigError: it is optional and the config leaves it out.
        """
        if not self.included(config):
            raise ConfigError(f"stage {self.name}: is not part of this run; start a run with --set {self.option}")


def _unchecked(config: RunConfig) -> None:
    """Accept any config."""


def _no_sources(run: Run) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Stage(Job):
    """A job that trains a model.

    section: config section of the stage.
    trains: kind of the model.
    inputs: returns the stages whose models it uses, by role.
    fold: fold of the data that it trains on.
    topology: returns the tree that each of its examples becomes.
    loss: makes the loss of a microbatch.
    scored: returns further trees that it packs, in which a reward model scores what it trains on.
    check: raises a ConfigError where the config cannot work, before anything is trained.
    sources: returns digests of code of the user that the result depends on.
    anchored: makes, from the anchor's graph definition, the function of its weights and a batch whose values the loss
        finds in the batch as `ANCHORED`; None where the loss reads no anchor there.

    With an adapter in its section, a stage trains adapters, and a head, on the run's base.
    """

    section: str
    trains: Kind
    inputs: Callable[[RunConfig], Mapping[Role, "Stage"]]
    fold: str
    topology: Callable[[RunConfig], Topology]
    loss: LossOf
    scored: Callable[[RunConfig], tuple[Topology, ...]] = _nothing
    check: Callable[[RunConfig], None] = _unchecked
    sources: Callable[[Run], tuple[str, ...]] = _no_sources
    anchored: Callable[[nnx.GraphDef[Any]], Callable[[Params, Arrays], Array]] | None = None

    def needs(self, config: RunConfig) -> tuple[Job, ...]:
        """Return the stages of the inputs, and the other jobs that must be finished before."""
        return tuple(dict.fromkeys((*self.inputs(config).values(), *self.after(config))))

    def maximises(self, config: RunConfig) -> bool:
        """Return whether training maximises a reward model, as RL stages do."""
        return "reward" in self.inputs(config)

    def settings(self, config: RunConfig) -> Any:
        """Return the stage's section of a config."""
        return getattr(config, self.section)

    def adapter(self, config: RunConfig) -> AdapterConfig | None:
        """Return the adapter that the stage trains; None where it trains all weights."""
        adapter: AdapterConfig | None = self.settings(config).adapter
        return adapter

    def validate(self, config: RunConfig) -> None:
        """Raise if the config cannot work, before anything is trained.

        Raises:
            ConfigError: the stage's own check fails, or its adapter does not fit the base or the stage's start.
        """
        self.check(config)
        adapter, section, shape = self.adapter(config), self.section, self.trains.config(config)
        start = self.inputs(config).get("start")
        if start is not None and _same(start.adapter(config)) != _same(adapter):
            rule = f"stage {self.name} starts from {start.name}, so that it trains the same kind of weights"
            remedy = f"give {section}.adapter and {start.section}.adapter the same fields (dropout may differ), or none"
            raise FieldError(f"{section}.adapter", adapter, rule, remedy)
        if adapter is None:
            return
        try:
            targets(adapter, shape.layers)
        except FieldError as error:
            raise error.inside(f"{section}.") from None
        if shape != config.policy:
            rule = f"the base has the shape of `policy`, but {self.trains.shape} differs"
            remedy = f"set the fields of {self.trains.shape} as those of policy, or {{path}}=none"
            raise FieldError(f"{section}.adapter", adapter, rule, remedy)

    def base_digest(self, run: Run) -> str:
        """Return the digest of the weights that the stage freezes; empty where it trains all."""
        return "" if self.adapter(run.config) is None else run.base_digest

    def checkpoints(self, run: Run, *, keep: int) -> Checkpoints:
        """Open the checkpoints of the stage, which hold the weights that it trains."""
        return run.checkpoints(self.name, keep=keep, base=self.base_digest(run))

    def hash(self, run: Run) -> str:
        """Return a digest of all that the result depends on: config, model, base, data, seed, inputs, code of users."""
        config = run.config
        return digest(
            self.name,
            self.settings(config),
            self.trains.config(config),
            config.windows,
            config.seed,
            config.mesh.shards,
            run.store.hash,
            run.base_digest if config.base.path is not None else self.base_digest(run),
            *run.template.facts,
            *self.sources(run),
            {role: stage.hash(run) for role, stage in self.inputs(config).items()},
        )

    def record(self, run: Run) -> dict[str, Any] | None:
        """Return the record of the finished stage, None if it is not finished or was made from something else.

        Raises:
            DamagedFileError: the record is damaged.
        """
        path = run.stage_folder(self.name) / "done.json"
        if not path.is_file():
            return None
        record = read_object(path, f"delete it and run `{self.command(run)}`, which writes it again", RECORD)
        return record if record["hash"] == self.hash(run) else None

    def finished_record(self, run: Run) -> dict[str, Any]:
        """Return the record of the finished stage.

        Raises:
            CheckpointError: the stage has not finished with this config and data.
            DamagedFileError: the record is damaged.
        """
        record = self.record(run)
        if record is None:
            raise self._unfinished(run)
        return record

    def _unfinished(self, run: Run) -> CheckpointError:
        return CheckpointError(
            f"{run.stage_folder(self.name)}: stage {self.name} has not finished with this config and data; run "
            f"`{self.command(run)}` first"
        )

    def done(self, run: Run) -> bool:
        """Return whether the stage is finished."""
        return self.record(run) is not None

    def fresh(self, run: Run) -> Model[Any]:
        """Return the stage's model with initial weights, on the mesh: random ones, or those of the pretrained model.

        An adapter is random in either case, and lies on the frozen base; so is the head of a reward model.
        """
        seed = run.seed.of(self.name, "weights").number
        shape, adapter = self.trains.config(run.config), self.adapter(run.config)
        if adapter is not None:
            model = adapted(self.trains.module, shape, run.base, adapter, seed)
            return model.with_trained(shard_params(model.trained, run.mesh))
        if run.pretrained is not None:
            decoder = run.pretrained.load(run.mesh, "float32", shape)
            return decoder if self.trains == DECODER else with_head(decoder, shape, run.mesh, seed)
        return Model.build(self.trains.module, shape, run.vocab_size, seed).sharded(run.mesh)

    def load(self, run: Run) -> Model[Any]:
        """Return the trained model.

        Raises:
            CheckpointError: the stage has not finished with this config and data, or its last checkpoint is gone,
                damaged or another stage's.
            DamagedFileError: its record is damaged.
        """
        record = self.finished_record(run)
        last: int = record["steps"]
        shape, adapter = self.trains.config(run.config), self.adapter(run.config)
        graphdef, shapes = Model.abstract(self.trains.module, shape, run.vocab_size, run.mesh, adapter)
        with self.checkpoints(run, keep=1) as checkpoints:
            params: Params = checkpoints.restore_params(shapes, last, record["hash"])
        version = f"{self.name}@{last}"
        if adapter is None:
            return Model(graphdef, params, version=version)
        return Model(graphdef, on_base(run.base, params), frozenset(params), version)

    def models(self, run: Run) -> dict[Role, Model[Any]]:
        """Return the models of the inputs by role, each stage loaded once; "start" has buffers of its own."""
        inputs = self.inputs(run.config)
        loaded = {name: stage.load(run) for name, stage in {stage.name: stage for stage in inputs.values()}.items()}
        shared = [stage.name for stage in inputs.values()]
        models: dict[Role, Model[Any]] = {}
        for role, stage in inputs.items():
            model = loaded[stage.name]
            # Training consumes the buffers that it starts from.
            models[role] = model.copy() if role == "start" and shared.count(stage.name) > 1 else model
        return models


def _same(adapter: AdapterConfig | None) -> AdapterConfig | None:
    """Return what two stages must share for one to start from the other's adapters."""
    return None if adapter is None else replace(adapter, dropout=0.0)
