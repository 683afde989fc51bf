"""Stages of reinforcement learning: the models that each role brings, draws and their history, the hacking board.

The step itself is `pit.rl.step`; this is the half of a stage that meets files, as `supervised.py` is for batches.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float32

from pit import processes
from pit.config import ImproverRlConfig, OptimizerConfig, Passes, RewardForm, RewrittenRlConfig, RlConfig, RunConfig
from pit.data.curriculum import DrawLoader, Draws, History, Visit
from pit.data.packing import Layout
from pit.data.store import Fold
from pit.data.template import rollout as rollout_tree
from pit.errors import PitError
from pit.losses.total import Total
from pit.model.heads import RewardModel
from pit.model.model import Model
from pit.model.sharding import row_sharding
from pit.rl import function
from pit.rl.algorithms import algorithm_of
from pit.rl.board import Board
from pit.rl.controllers import Controllers
from pit.rl.curriculum import difficulty_of, examples_of, expected_visits, make_draws, source_weights
from pit.rl.readings import PolicyAndAnchor
from pit.rl.records import Answers, Gold
from pit.rl.references import Judges, References
from pit.rl.reward import mixed, model_reward, scored_tree
from pit.rl.scale import log_odds_scale
from pit.rl.step import RlStep, Scored
from pit.run.copies import made_by_first
from pit.run.folder import Run
from pit.run.session import Session
from pit.run.stage import DECODER, Role, Services, Stage
from pit.stages import reward
from pit.train.checkpoint import Restored
from pit.train.update import REFUSED, LossFunction, TrainState
from pit.types import Topology

MARGIN_BLOCK = 1_024
"""Pairs whose margin is computed at once."""


def rl_stage(
    *, name: str, title: str, section: str, inputs: Callable[[RunConfig], Mapping[Role, Stage]], **optional: Any
) -> Stage:
    """Return a stage that trains a policy or an improver by reinforcement learning.

    Args:
        name: name of the stage.
        title: short description.
        section: its config section.
        inputs: returns its inputs: "start", "anchor", "reward" and, for references, "writer", "rewriter" and "ranker".
        optional: further fields of the stage.
    """

    def work(run: Run, services: Services) -> None:
        session = Session(run, stage, profile_steps=services.profile_steps)
        _keep_source(stage, run)
        models = stage.models(run)
        task = RlTask(session, models, services.gold(run))
        visits = expected_visits(session.settings, examples_of(session.settings, task.steps.fold))
        facts = {"visits_per_example": round(visits, 3)}
        updates = task.steps.algorithm.updates
        session.train(task, models.pop("start"), session.settings.steps, updates=updates, **facts)

    def topology(config: RunConfig) -> Topology:
        settings = stage.settings(config)
        return rollout_tree(settings.samples, isinstance(settings, ImproverRlConfig))

    def loss(graphdef: nnx.GraphDef[Any], config: RunConfig, capacity: int) -> LossFunction:
        settings = stage.settings(config)
        return algorithm_of(settings, section)(graphdef, settings, capacity).loss

    stage = Stage(
        name=name,
        title=title,
        section=section,
        trains=DECODER,
        fold="rl",
        topology=topology,
        loss=loss,
        inputs=inputs,
        work=work,
        scored=lambda config: _scored(stage.settings(config)),
        check=lambda config: _check(stage, config),
        sources=lambda run: _sources(stage, run),
        after=lambda config: (reward.JUDGE,) if config.board.gold == "judge" else (),
        **optional,
    )
    return stage


def _form(settings: RlConfig) -> RewardForm | None:
    """Return the form of the gap that an improver's stage maximises, None for a policy's."""
    return settings.gap if isinstance(settings, ImproverRlConfig) else None


def _scored(settings: RlConfig) -> tuple[Topology, ...]:
    """Return the trees in which reward models score samples, and drafts of references where there are several."""
    tree = scored_tree(settings.samples, _form(settings))
    drafts = settings.drafts if isinstance(settings, ImproverRlConfig) else 1
    return (tree,) if drafts == 1 else (tree, scored_tree(drafts, None))


def _check(stage: Stage, config: RunConfig) -> None:
    settings: RlConfig = stage.settings(config)
    algorithm_of(settings, stage.section)
    if settings.reward.function is not None:
        function.load(settings.reward.function)


def _sources(stage: Stage, run: Run) -> tuple[str, ...]:
    name = stage.settings(run.config).reward.function
    return () if name is None else (function.digest_of(name, _kept(run, stage)),)


def _keep_source(stage: Stage, run: Run) -> None:
    """Keep the file of the reward function, if there is one."""
    settings = stage.settings(run.config)
    name = settings.reward.function
    if name is None:
        return
    path = _kept(run, stage)
    # All processes open checkpoints together, so that the first one cannot look alone.
    with stage.checkpoints(run, keep=settings.keep) as checkpoints:
        trained = checkpoints.latest is not None

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        function.keep_source(name, path, stage.name, trained)

    made_by_first(run, keep, f"reward function of {stage.name}")


def _kept(run: Run, stage: Stage) -> Path:
    """Return where a stage keeps the file of its reward function."""
    return run.stage_folder(stage.name) / "reward.py"


def make_step(session: Session, models: Mapping[Role, Model[Any]]) -> RlStep:
    """Return the step of a stage, from the models of its roles."""
    run, config = session.run, session.settings
    layout, sampler = run.layout(config.packing), run.sampler(config.rollout)
    graphdef, capacity = models["start"].graphdef, sampler.capacity
    references = None
    if isinstance(config, ImproverRlConfig):
        passes = config.passes if isinstance(config, RewrittenRlConfig) else None
        judges = judges_of(config, passes, layout, models)
        references = References(config, sampler, models.get("writer"), models.get("rewriter"), passes, judges)
    scale = None
    if config.reward.scale == "log_odds":
        reward_model, form = models["reward"], _form(config) or "difference"
        pairs = held_out_margins(run.fold(session.stage.fold), reward_model, layout, form)
        scale = log_odds_scale(pairs, f"{session.stage.section}.reward.scale = {config.reward.scale!r}")
    return RlStep(
        name=session.stage.name,
        config=config,
        fold=run.fold(session.stage.fold),
        seed=run.seed.of(session.stage.name),
        graphdef=graphdef,
        frozen=models["start"].frozen,
        sampler=sampler,
        references=references,
        reward=mixed(config.reward, run.template, layout, models.get("reward"), _form(config), scale),
        models=PolicyAndAnchor(graphdef, config, models["anchor"].params, capacity),
        algorithm=algorithm_of(config, session.stage.section)(graphdef, config, capacity),
        layout=layout,
        shards=run.shards,
        sharding=row_sharding(run.mesh),
        scale=scale,
    )


def judges_of(
    config: ImproverRlConfig, passes: Passes | None, layout: Layout, models: Mapping[Role, Model[Any]]
) -> Judges:
    """Return the rewards that choose the references of a stage, from the models of its roles."""
    drafts = model_reward(models["ranker"], layout, None) if "ranker" in models else None
    keeps = passes is not None and passes.threshold is not None
    return Judges(drafts, model_reward(models["reward"], layout, config.gap) if keeps else None)


def stage_draws(session: Session, step: RlStep, reward_model: Model[RewardModel] | None) -> DrawLoader:
    """Return the curriculum's draws of a stage, from its first step on; a reward model is needed for margins alone."""
    config = step.config
    difference = isinstance(config, ImproverRlConfig) and config.gap == "difference"
    form: RewardForm = "difference" if difference else "symmetric"
    return make_draws(
        session.stage.section,
        config,
        examples_of(config, step.fold),
        seed=step.seed,
        config_hash=session.stage.hash(session.run),
        data_hash=step.fold.hash,
        difficulty=difficulty_of(config, step.fold, partial(margins, step.fold, reward_model, step.layout, form)),
    )


def margins(
    fold: Fold, model: Model[RewardModel] | None, layout: Layout, form: RewardForm, examples: int
) -> Float32[np.ndarray, " n"]:
    """Return the gap of the better over the worse answer of the first examples of a fold."""
    assert model is not None, "the config asks for a reward model where its margin is asked for"
    gap, blocks = model_reward(model, layout, form), []
    for first in range(0, examples, MARGIN_BLOCK):
        inputs, better, worse = fold.columns(range(first, min(first + MARGIN_BLOCK, examples)))
        blocks.append(gap(Answers(inputs, worse, [better]))[:, 0])
    return np.concatenate(blocks)


def held_out_margins(
    fold: Fold, model: Model[RewardModel], layout: Layout, form: RewardForm
) -> Float32[np.ndarray, " n"]:
    """Return the margin of the better answer in one form, over the first pairs of a fold, half of it in each order."""
    inputs, better, worse = fold.columns(range(min(MARGIN_BLOCK, len(fold))))
    gap = model_reward(model, layout, form)
    forward, backward = (gap(Answers(inputs, ref, [y])) for ref, y in ((worse, better), (better, worse)))
    margins: Float32[np.ndarray, " n"] = (forward - backward)[:, 0] / np.float32(2)
    return margins


def _digest_of(scored: Scored) -> str:
    """Return a digest of the samples of a step and of their scores."""
    samples = scored.rollout.samples
    return hashlib.blake2b(samples.token.tobytes() + scored.scores.tobytes(), digest_size=8).hexdigest()


class RlTask:
    """The own half of an RL stage.

    Args:
        session: the stage at work.
        models: models of its roles.
        gold: true worth of answers for the hacking board, None where nobody knows it.
    """

    log_every = 1

    def __init__(self, session: Session, models: Mapping[Role, Model[Any]], gold: Gold | None) -> None:
        self.steps, self._session, self._gold = make_step(session, models), session, gold
        self.loss: LossFunction = self.steps.algorithm.loss
        self.optimizer: OptimizerConfig = session.settings.optimizer
        self._config: RlConfig = session.settings
        self._draws = stage_draws(session, self.steps, models.get("reward"))
        self._open = ExitStack()
        self._control = Controllers(self._config.beta)
        self._before: bytes | None = None

    def begin(self, step: int, restored: Restored | None) -> None:
        """Start at a step, from restored draws, controllers and board if there are any."""
        session, stage = self._session, self._session.stage
        state = None
        if restored is not None:
            self._draws.restore(restored.loader["draws"], step)
            self._control, state = Controllers.of(restored.controllers), restored.controllers["board"]
        self._board = Board(session.run.config.board, stage.name, stage.command(session.run), self._gold, state)
        # All processes make the same draws; the first one writes them.
        self._history = self._open.enter_context(History(session.folder, step)) if processes.first() else None
        self._done = step

    def close(self) -> None:
        """Stop drawing ahead, and close the history."""
        self._draws.close()
        self._open.close()

    def step(self, state: TrainState) -> tuple[TrainState, Mapping[str, Total | float]]:
        """Take the next step of the curriculum."""
        session, config = self._session, self._config
        begin_s = perf_counter()
        # Of a step that cannot be taken, the checkpoint of the state before it needs the draws before it.
        self._before = self._draws.state()
        draws = next(self._draws)
        wait_s = perf_counter() - begin_s
        state, totals, scored, control = self.steps(state, draws, self._control, session.guard)
        self._before = None
        self._done += 1
        # Whatever steers the next steps follows from these, in every process by itself.
        processes.require_same(f"samples of step {self._done} of {session.stage.name}", _digest_of(scored))
        values = scored.values | self._board.signals(self._done, scored.rollout, scored.scores, scored.values)
        # The next rollout waits for this step anyway; one with a refused update teaches the controllers nothing.
        session.guard.settle()
        if not float(totals[REFUSED].sum):
            self._control = control.adapted(config, values["objective/kl_penalty"])
        self._draws.update(draws, scored.scores)
        gaps = scored.scores.mean(axis=1) if isinstance(config, ImproverRlConfig) else None
        if self._history is not None:
            self._history.add(Visit(draws, gaps))
        for line in self._board.judge(self._done, values):
            session.log.reporter.note(line)
        tokens = scored.trees.tokens
        session.tokens += tokens
        return state, {**totals, **values, "perf/fill": tokens / scored.trees.slots, "perf/data_wait_s": wait_s}

    def evaluate(self, state: TrainState) -> Mapping[str, float]:
        """Return the metrics of fixed prompts of the eval fold under fixed random numbers, with the last sources."""
        fold, config = self._session.run.fold("eval"), self._config
        ids = np.arange(min(config.evaluate_prompts, len(fold)))
        weights = source_weights(config)[-1][1]
        cycle = np.repeat(np.arange(len(weights), dtype=np.uint8), weights)
        draws = Draws(int(state.step), ids, cycle[ids % len(cycle)])
        seed = self.steps.seed.of("held-out")
        return self.steps.collect(state.params, fold, draws, self._control, seed, adapt=False)[0].values

    def loader_state(self) -> Mapping[str, Any]:
        """Return the state of the draws."""
        return {"draws": self._draws.state() if self._before is None else self._before}

    def controller_state(self) -> Mapping[str, Any]:
        """Return the state of controllers, guard and board."""
        return {**self._control.state(), **self._session.guard.state(), "board": self._board.state()}

    def halt(self) -> PitError | None:
        """Return the board's reason to stop, if it has one."""
        return self._board.stopped()
