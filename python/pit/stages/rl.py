"""Reinforcement learning: M_P against R_P, the improver against the gap (PIT, section 3.4, algorithm 1).

A step draws (example, reference source) pairs from the curriculum, samples N answers of each prefix, scores them,
shapes the reward with the KL to an anchor, and takes one leave-one-out REINFORCE step on the packed trees of samples
(`policy_gradient.py`). RL,0 takes references from the data, RL,1 samples them from M_P^RL, RL,2 has them rewritten by
the improver that RL,1 made (`references.py`). A board looks on (`board.py`).
"""

import contextlib
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from pit.config import RewardForm, RlConfig
from pit.data.curriculum import DrawLoader, Draws, History, Visit
from pit.data.packing import pack_lists
from pit.data.store import Fold
from pit.data.template import rollout
from pit.losses.kl import token_kl
from pit.losses.rl import leave_one_out, sample_sum, shaped_reward
from pit.losses.total import Total
from pit.model.params import Params, copy
from pit.model.sharding import on_mesh, row_sharding
from pit.rollout.sample import Samples
from pit.rollout.score import Scorer
from pit.rollout.strategy import Temperature
from pit.stages.board import Board, Gold, Seen
from pit.stages.claim import claim
from pit.stages.context import STAGES, Run, StageClock, require_stage, reward_of
from pit.stages.controllers import Controllers
from pit.stages.curriculum import difficulty_of, examples_of, expected_visits, make_draws, source_weights
from pit.stages.policy_gradient import Reader, carry, charges_kl, policy_gradient
from pit.stages.references import Prompts, References, Sampling
from pit.train.feed import live_tokens, put, to_device
from pit.train.guard import Guard
from pit.train.log import StageLog
from pit.train.loop import run_steps
from pit.train.update import TrainState, Update, make_optimizer
from pit.types import Batch

PackedBatch = tuple[Batch, dict[str, Array]]
"""Packed trees of samples, and their arrays on the device."""

MARGIN_BLOCK = 1_024
"""Pairs whose margin is computed at once."""


class Rollouts(NamedTuple):
    """Samples of a step with their scores by the reward model, float32 [G, N]."""

    prompts: Prompts
    samples: Samples
    scores: Float32[np.ndarray, "G N"]

    @property
    def outputs(self) -> list[list[list[int]]]:
        """Contents of the answers, by sample and then by tree."""
        trees, n = self.samples.length.shape
        return [[self.samples.answer(g, i) for g in range(trees)] for i in range(n)]

    def seen(self) -> Seen:
        """What the board sees of them."""
        return Seen(self.prompts.inputs, self.prompts.references, self.outputs, self.scores, self.samples.length)


class RlStage:
    """Everything one stage holds in memory: the policy's definition, its anchor, the reward model, and the references.

    Resident models: the trained one, its anchor, one reward model, in RL,1 the policy that writes references, and in
    RL,2 also the improver that rewrites them.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.config: RlConfig = getattr(run.config, STAGES[name].section)
        self.with_reference = name != "rl-policy"
        self.capacity = run.config.windows.output - 1
        self.layout = run.layout(self.config.packing)
        self.topology = rollout(self.config.samples, with_reference=self.with_reference)
        self.fold = run.fold("rl")
        self.sharding = row_sharding(run.mesh)
        self.graphdef, self.initial = run.trained(STAGES[name].start)
        fine_tuned = "sft-improver" if self.with_reference else "sft-policy"
        self.anchor = run.trained(fine_tuned)[1] if self.config.anchor == "sft" else copy(self.initial)
        self.scorer = Scorer(*run.trained(reward_of(name, run.config)), self.layout)
        self.sampling = Sampling(self.layout.closings, self.capacity, self.config.rollout)
        writer = run.trained("rl-policy") if self.config.policy_references else None
        # The first step consumes the buffers of the initial weights.
        improver = (self.graphdef, copy(self.initial)) if self.config.passes[1] else None
        self.references = References(self.config, self.sampling, writer, improver)
        self.reader = Reader(self.graphdef, self.config, self.capacity)

    def prompts(self, fold: Fold, ids: list[int], sources: list[int], seed: int) -> Prompts:
        """Contents of the prefixes: the input and, for the improver, a reference from its source."""
        if self.with_reference:
            return self.references.of(fold, ids, sources, seed)
        return Prompts(ids, [[int(t) for t in fold.row(i)[0]] for i in ids], None)

    def draws(self) -> DrawLoader:
        """The curriculum's draws, from the first step on."""
        return make_draws(
            self.name,
            self.config,
            examples_of(self.config, self.fold),
            run_seed=self.run.config.seed,
            config_hash=self.run.stage_hash(self.name),
            data_hash=self.fold.hash,
            difficulty=difficulty_of(self.config, self.fold, self.margin),
        )

    def margin(self, examples: int) -> Float32[np.ndarray, " n"]:
        """Gap of the better over the worse answer of the first examples: symmetric, or the difference of R_P."""
        margins = []
        for first in range(0, examples, MARGIN_BLOCK):
            rows = [self.fold.row(i) for i in range(first, min(first + MARGIN_BLOCK, examples))]
            inputs, better, worse = ([[int(t) for t in row[column]] for row in rows] for column in range(3))
            form: RewardForm = "difference" if self.config.gap == "difference" else "symmetric"
            margins.append(self.scorer.reward(inputs, worse, [better], form)[:, 0])
        return np.concatenate(margins)

    def rollouts(self, params: Params, prompts: Prompts, seed: int) -> Rollouts:
        """Sample N answers of every prefix and score them."""
        model, strategy = (self.graphdef, params), Temperature(self.config.temperature)
        samples = self.sampling.draw(model, prompts, self.config.samples, strategy, seed)
        drawn = Rollouts(prompts, samples, np.zeros(samples.length.shape, np.float32))
        if prompts.references is None:
            scores = self.scorer.quality(prompts.inputs, drawn.outputs)
        else:
            scores = self.scorer.reward(prompts.inputs, prompts.references, drawn.outputs, self.config.gap)
        return drawn._replace(scores=scores)

    def sampled(self, params: Params, draws: Draws, done: int, control: Controllers) -> "Sampled":
        """What the step after `done` steps is taken on, and its metrics so far."""
        root = 2 * (self.run.config.seed * 100_003 + done)
        prompts = self.prompts(self.fold, draws.ids.tolist(), draws.sources.tolist(), seed=root + 1)
        drawn = self.rollouts(params, prompts, seed=root)
        batches = self.batches(drawn)
        seen = control.seen(self.config, drawn.scores)
        measured = self.measure(params, drawn, batches, seen)
        ready = self.ready(measured, batches, seen)
        return Sampled(drawn, batches, ready, seen, self.metrics(drawn, measured, seen))

    def batches(self, drawn: Rollouts) -> list[PackedBatch]:
        """Packed trees of samples, on the device, with the lengths of the samples of each tree slot."""
        prompts = drawn.prompts
        columns = [prompts.inputs, *([prompts.references] if prompts.references else []), *drawn.outputs]
        shards = self.run.config.mesh.shards
        result = []
        for batch in pack_lists(columns, self.topology, self.layout, shards=shards):
            arrays = to_device(batch, self.sharding)
            for key, values in (("length", drawn.samples.length), ("finished", drawn.samples.finished)):
                arrays[key] = put(by_slot(values, batch), self.sharding)
            result.append((batch, arrays))
        return result

    def measure(self, params: Params, drawn: Rollouts, batches: list[PackedBatch], control: Controllers) -> "Measured":
        """KL to the anchor and shaped rewards; policy and anchor go through the same compiled function."""
        shape, kl = drawn.samples.logp.shape, self.config.kl
        logp, anchor, vocabulary = (np.zeros(shape, np.float32) for _ in range(3))
        carried = []
        for batch, arrays in batches:
            present = batch.example_id >= 0
            rows = batch.example_id[present]
            with on_mesh(params):
                own, other = self.reader.read(params, arrays), self.reader.read(self.anchor, arrays)
                logp[rows], anchor[rows] = np.asarray(own.logp)[present], np.asarray(other.logp)[present]
                if kl.estimator == "full":
                    tokens = self.reader.full_kl(params, own, self.anchor, other, arrays)
                    vocabulary[rows] = np.asarray(tokens)[present]
            carried.append(carry(self.graphdef, self.config, self.anchor, other))
        sampled = jnp.arange(shape[2], dtype=jnp.int32)[None, None, :] < jnp.asarray(drawn.samples.length)[:, :, None]
        log_ratio = jnp.asarray(logp - anchor)
        estimate = jnp.asarray(vocabulary) if kl.estimator == "full" else token_kl(kl.estimator, log_ratio)
        penalty_nats = sample_sum(estimate, sampled)
        return Measured(
            kl_nats=np.asarray(sample_sum(log_ratio, sampled)),
            penalty_nats=np.asarray(penalty_nats),
            entropy_nats=np.asarray(sample_sum(-jnp.asarray(logp), sampled)),
            reward=np.asarray(self._reward(drawn, penalty_nats, control)),
            logp_gap_nats=np.abs(logp - drawn.samples.logp)[np.asarray(sampled)],
            carried=carried,
        )

    def _reward(self, drawn: Rollouts, penalty_nats: Array, control: Controllers) -> Array:
        config = self.config
        return shaped_reward(
            jnp.asarray(drawn.scores / np.float32(control.scores.deviation)),
            penalty_nats if config.kl.place == "reward" else jnp.zeros_like(penalty_nats),
            jnp.asarray(drawn.samples.finished),
            jnp.asarray(drawn.samples.length),
            beta=control.beta,
            no_eos_penalty=config.no_eos_penalty,
            length_cost=config.length_cost,
            length_free=config.length_free,
        )

    def ready(self, measured: "Measured", batches: list[PackedBatch], control: Controllers) -> list[dict[str, Array]]:
        """Batches with all that the loss reads: advantages, and the KL's coefficient where it is charged there."""
        advantage, scale = advantages(measured.reward, normalise=self.config.normalise)
        # What is missing of the gradient of a KL in the reward is scaled as the advantages are.
        beta = control.beta * (scale if self.config.kl.place == "reward" else 1.0)
        coefficient = np.full(len(advantage), beta, np.float32)
        result = []
        for (batch, arrays), carried in zip(batches, measured.carried, strict=True):
            values = {"advantage": advantage, **({"kl_coefficient": coefficient} if charges_kl(self.config) else {})}
            slots = {name: put(by_slot(each, batch), self.sharding) for name, each in values.items()}
            result.append({**arrays, **carried, **slots})
        return result

    def metrics(self, drawn: Rollouts, measured: "Measured", control: Controllers) -> dict[str, float]:
        """What is logged of one set of rollouts, under the names that TRL's users know (docs/rl.md explains each)."""
        samples, references, scores = drawn.samples, drawn.prompts.references, drawn.scores
        length = samples.length
        values = {
            "objective/reward": scores.mean(),
            "objective/rlhf_reward": measured.reward.mean(),
            "objective/non_score_reward": (measured.reward - scores / np.float32(control.scores.deviation)).mean(),
            "objective/kl": measured.kl_nats.mean(),
            "objective/kl_penalty": measured.penalty_nats.mean(),
            "objective/kl_coef": control.beta,
            "objective/entropy": measured.entropy_nats.mean(),
            "rewards/std": scores.std(axis=1).mean(),
            "rewards/zero_std_ratio": (scores.std(axis=1) == 0).mean(),
            "completions/mean_length": length.mean(),
            "completions/min_length": length.min(),
            "completions/max_length": length.max(),
            "completions/clipped_ratio": 1.0 - samples.finished.mean(),
            "rollout/slot_fill": samples.fill,
            "rollout/logp_gap_nats_mean": measured.logp_gap_nats.mean(),
            "rollout/logp_gap_nats_max": measured.logp_gap_nats.max(),
        }
        if references is not None:
            copies = [[y == ref for y, ref in zip(column, references, strict=True)] for column in drawn.outputs]
            values["rollout/copy_rate"] = np.mean(copies)
            if self.config.gap != "raw":
                values |= {"rewards/margin": scores.mean(), "rewards/accuracy": (scores > 0).mean()}
        return {name: float(value) for name, value in values.items()}


class Sampled(NamedTuple):
    """The rollouts of a step, packed; what its loss reads; the controllers that have seen the scores; metrics."""

    drawn: Rollouts
    batches: list[PackedBatch]
    ready: list[dict[str, Array]]
    seen: Controllers
    values: dict[str, float]


class Measured(NamedTuple):
    """What is known of each sample before the step, in nats and in units of the score.

    kl_nats: KL to the anchor by k1; penalty_nats: by the estimator of the config; entropy_nats: -log p(sample).
    reward: shaped; logp_gap_nats: |trainer - sampler| of each sampled token.
    carried: of each batch, what the loss reads of the anchor.
    """

    kl_nats: Float32[np.ndarray, "G N"]
    penalty_nats: Float32[np.ndarray, "G N"]
    entropy_nats: Float32[np.ndarray, "G N"]
    reward: Float32[np.ndarray, "G N"]
    logp_gap_nats: Float32[np.ndarray, " tokens"]
    carried: list[dict[str, Array]]


def by_slot(values: np.ndarray, batch: Batch) -> np.ndarray:
    """Rows of `values` (one a tree) in the order of the batch's tree slots, 0 where a slot is empty."""
    present = batch.example_id >= 0
    result = np.zeros((len(batch.example_id), *values.shape[1:]), values.dtype)
    result[present] = values[batch.example_id[present]]
    return result


def advantages(reward: Float32[np.ndarray, "G N"], *, normalise: bool) -> tuple[Float32[np.ndarray, "G N"], float]:
    """Leave-one-out advantages, over their standard deviation in the step if asked (0 where all rewards are equal).

    Also what one unit of reward became.
    """
    advantage = np.asarray(leave_one_out(jnp.asarray(reward)))
    if not normalise:
        return advantage, 1.0
    deviation = float(advantage.std())
    if deviation == 0:
        return np.zeros_like(advantage), 0.0
    return advantage / np.float32(deviation), 1.0 / deviation


def run_rl(run: Run, name: str, *, profile_steps: int = 0, gold: Gold | None = None) -> None:
    """Train one RL stage, resuming from its newest checkpoint; `gold` is what the board holds rewards against.

    Raises:
        BoardStopped: a signal of the board went beyond a limit that stops.
    """
    require_stage(name, run.config)
    clock = StageClock(run, name)
    stage = RlStage(run, name)
    config, stage_hash = stage.config, run.stage_hash(name)
    loss = policy_gradient(stage.graphdef, config, stage.capacity)
    update = Update(loss, make_optimizer(config.optimizer, config.steps))
    control, refused, board_state = Controllers(config.beta), 0, None
    state = update.start(stage.initial)
    del stage.initial  # The first step consumes its buffers.
    with (
        claim(run.stage_folder(name)),
        contextlib.closing(stage.draws()) as loader,
        run.checkpoints(name, keep=config.keep) as checkpoints,
    ):
        restored = checkpoints.restore(state, stage_hash)
        if restored is not None:
            state = restored.state
            loader.restore(restored.loader["draws"], int(state.step))
            control, refused = Controllers.of(restored.controllers), restored.controllers["refused_in_a_row"]
            board_state = restored.controllers["board"]
            clock.tokens = restored.meta["tokens"]
        guard = Guard(update, run.stage_folder(name), name, limit=config.optimizer.refusals, in_a_row=refused)
        board = Board(run.config.board, name, run.command(name), gold, board_state)
        meta = {"hash": stage_hash, "tokens": clock.tokens}
        done = int(state.step)

        def step(state: TrainState) -> tuple[TrainState, Mapping[str, Total | float]]:
            nonlocal done, control
            begin = time.perf_counter()
            draws = next(loader)
            wait_s = time.perf_counter() - begin
            drawn, batches, ready, seen, values = stage.sampled(state.params, draws, done, control)
            values |= board.signals(done + 1, drawn.seen(), values)
            rows = np.array([*drawn.prompts.ids, -1])
            state, metrics = guard(state, ready, [rows[batch.example_id] for batch, _ in batches])
            # The next rollout waits for this step anyway; a refused one teaches the controllers nothing.
            if not guard.settle():
                control = seen.adapted(config, values["objective/kl_penalty"])
            loader.update(draws, drawn.scores)
            history.add(Visit(draws, drawn.scores.mean(axis=1) if stage.with_reference else None))
            done += 1
            for line in board.judge(done, values):
                log.reporter.note(line)
            tokens = sum(live_tokens(batch) for batch, _ in batches)
            clock.tokens += tokens
            meta["tokens"] = clock.tokens
            slots = sum(batch.token.size for batch, _ in batches)
            performance = {"perf/fill": tokens / slots, "perf/data_wait_s": wait_s}
            return state, {**metrics, **values, **performance}

        folder = run.stage_folder(name)
        with StageLog(folder, name, resumed_step=done, every=1) as log, History(folder, done) as history:
            run_steps(
                state,
                steps=config.steps,
                step=step,
                log=log,
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint_every,
                loader_state=lambda: {"draws": loader.state()},
                controllers=lambda: {**control.state(), **guard.state(), "board": board.state()},
                meta=meta,
                evaluate=lambda s: held_out(stage, s.params, control),
                evaluate_every=config.evaluate_every,
                profile_steps=profile_steps,
                halt=board.stopped,
            )
    visits = expected_visits(config, examples_of(config, stage.fold))
    clock.finish(config.steps, visits_an_example=round(visits, 3))


def held_out(stage: RlStage, params: Params, control: Controllers) -> dict[str, float]:
    """The same metrics on fixed prompts of the eval fold with fixed random numbers, with the stage's last sources."""
    fold, config = stage.run.fold("eval"), stage.config
    ids = list(range(min(config.evaluate_prompts, len(fold))))
    weights = source_weights(stage.name, config)[-1][1]
    cycle = np.repeat(np.arange(len(weights)), weights)
    drawn = stage.rollouts(params, stage.prompts(fold, ids, cycle[np.array(ids) % len(cycle)].tolist(), seed=1), seed=0)
    return stage.metrics(drawn, stage.measure(params, drawn, stage.batches(drawn), control), control)
