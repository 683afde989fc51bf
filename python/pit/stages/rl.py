"""Reinforcement learning: M_P against R_P, the improver against the gap (PIT, section 3.4, algorithm 1).

A step draws (example, reference source) pairs from the curriculum, samples N answers of each prefix, scores them,
shapes the reward with the KL to an anchor, and takes one leave-one-out REINFORCE step on the packed trees of samples.
RL,0 takes references from the data, RL,1 samples them from M_P^RL.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float32

from pit.config import RlConfig
from pit.data.curriculum import DrawLoader, History, Visit
from pit.data.packing import pack_lists
from pit.data.store import Fold
from pit.data.template import rollout
from pit.losses.rl import leave_one_out, reinforce, sequence_kl, shaped_reward
from pit.losses.total import Total
from pit.model.heads import row_logprobs
from pit.model.params import Params, copy, merge
from pit.model.sharding import on_mesh, row_sharding
from pit.rollout.sample import Samples, sample
from pit.rollout.score import Scorer
from pit.rollout.strategy import Temperature
from pit.stages.context import STAGES, Run, StageClock
from pit.stages.curriculum import difficulty_of, examples_of, expected_visits, make_draws
from pit.train.feed import live_tokens, put, to_device
from pit.train.log import StageLog
from pit.train.loop import run_steps
from pit.train.update import Arrays, LossFunction, TrainState, Update, make_optimizer
from pit.types import Batch, Source

MARGIN_BLOCK = 1_024
"""Pairs whose margin is computed at once."""


class Prompts(NamedTuple):
    """Prefixes of a step. ids: rows of the fold; inputs: contents of x; references: contents, None for the policy."""

    ids: list[int]
    inputs: list[list[int]]
    references: list[list[int]] | None


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


def sampled_logprobs(
    model: Any, batch: Arrays, samples: int, capacity: int, temperature: float
) -> tuple[Float32[Array, "G N C"], Bool[Array, "G N C"]]:
    """Log-probs of the sampled tokens of each tree, read off the packed rows, and which of the C places hold one."""
    rows = row_logprobs(
        model, batch["token"], batch["position"], batch["visible_until"], batch["previous"], temperature=temperature
    )
    leaf, length = batch["leaf"], batch["length"]
    # The closing token of an unfinished sample was appended, not sampled: its tokens end one place earlier.
    first = leaf[:, :, 1] - length + batch["finished"].astype(jnp.int32)
    offset = jnp.arange(capacity, dtype=jnp.int32)[None, None, :]
    sampled = (offset < length[:, :, None]) & (leaf[:, :, :1] >= 0)
    index = jnp.where(sampled, first[:, :, None] + offset, 0)
    logp = rows[jnp.where(sampled, leaf[:, :, :1], 0), index]
    return jnp.where(sampled, logp, jnp.float32(0.0)), sampled


def policy_gradient(graphdef: nnx.GraphDef[Any], config: RlConfig, capacity: int) -> LossFunction:
    """REINFORCE with the given advantages, on packed trees of samples."""

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        model = merge(graphdef, params)
        logp, sampled = sampled_logprobs(model, batch, config.samples, capacity, config.temperature)
        return reinforce(logp, batch["advantage"], sampled, batch["leaf"][:, 0, 0] >= 0), {}

    return loss


class RlStage:
    """Everything one stage holds in memory: the policy's definition, its anchor, the reward model, and the references.

    Resident models: the trained one, its anchor, one reward model and, in RL,1, the policy that writes references.
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
        start, reward = {
            "rl-policy": ("sft-policy", "reward-quality"),
            "rl-first": ("sft-improver", "reward-gap"),
            "rl-second": ("rl-first", "reward-gap"),
        }[name]
        self.graphdef, self.initial = run.trained(start)
        fine_tuned = "sft-improver" if self.with_reference else "sft-policy"
        self.anchor = run.trained(fine_tuned)[1] if self.config.anchor == "sft" else copy(self.initial)
        self.scorer = Scorer(*run.trained(reward), self.layout)
        self.writer = run.trained("rl-policy") if self.config.policy_references else None
        self._logprobs = jax.jit(self._sampled_logprobs)

    def _sampled_logprobs(self, params: Params, batch: Arrays) -> Float32[Array, "G N C"]:
        model = merge(self.graphdef, params)
        return sampled_logprobs(model, batch, self.config.samples, self.capacity, self.config.temperature)[0]

    def prompts(self, fold: Fold, ids: list[int], sources: list[int], seed: int) -> Prompts:
        """Contents of the prefixes: the input and, for the improver, a reference from its source."""
        rows = [fold.row(i) for i in ids]
        inputs = [[int(t) for t in row[0]] for row in rows]
        if not self.with_reference:
            return Prompts(ids, inputs, None)
        column = {Source.BETTER: 1, Source.WORSE: 2}
        references = [
            [int(t) for t in row[column[Source(source)]]] if source != Source.POLICY else []
            for row, source in zip(rows, sources, strict=True)
        ]
        if self.writer is not None and Source.POLICY in sources:
            written = self._sample(*self.writer, Prompts(ids, inputs, None), 1, seed)
            for g, source in enumerate(sources):
                if source == Source.POLICY:
                    references[g] = written.answer(g, 0)
        return Prompts(ids, inputs, references)

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
        """Symmetric gap of the better over the worse answer of the first examples of the fold, by the reward model."""
        margins = []
        for first in range(0, examples, MARGIN_BLOCK):
            rows = [self.fold.row(i) for i in range(first, min(first + MARGIN_BLOCK, examples))]
            inputs, better, worse = ([[int(t) for t in row[column]] for row in rows] for column in range(3))
            margins.append(self.scorer.gap(inputs, worse, [better], "symmetric")[:, 0])
        return np.concatenate(margins)

    def _sample(self, graphdef: nnx.GraphDef[Any], params: Params, prompts: Prompts, n: int, seed: int) -> Samples:
        return sample(
            graphdef,
            params,
            prefixes(prompts, self.layout.closings),
            prompts.ids,
            n=n,
            capacity=self.capacity,
            strategy=Temperature(self.config.temperature),
            eos_ids=(self.layout.closings[2],),
            seed=seed,
        )

    def rollouts(self, params: Params, prompts: Prompts, seed: int) -> Rollouts:
        """Sample N answers of every prefix and score them."""
        samples = self._sample(self.graphdef, params, prompts, self.config.samples, seed)
        drawn = Rollouts(prompts, samples, np.zeros(samples.length.shape, np.float32))
        if prompts.references is None:
            scores = self.scorer.quality(prompts.inputs, drawn.outputs)
        else:
            scores = self.scorer.gap(prompts.inputs, prompts.references, drawn.outputs, self.config.gap)
        return drawn._replace(scores=scores)

    def batches(self, drawn: Rollouts) -> list[tuple[Batch, dict[str, Array]]]:
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

    def measure(self, params: Params, drawn: Rollouts, batches: list[tuple[Batch, dict[str, Array]]]) -> "Measured":
        """KL to the anchor and shaped rewards; policy and anchor go through the same compiled function."""
        shape = drawn.samples.logp.shape
        logp, anchor = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for batch, arrays in batches:
            present = batch.example_id >= 0
            rows = batch.example_id[present]
            with on_mesh(params):
                logp[rows] = np.asarray(self._logprobs(params, arrays))[present]
                anchor[rows] = np.asarray(self._logprobs(self.anchor, arrays))[present]
        sampled = np.arange(shape[2], dtype=np.int32) < drawn.samples.length[:, :, None]
        kl_nats = sequence_kl(jnp.asarray(logp), jnp.asarray(anchor), jnp.asarray(sampled))
        config = self.config
        reward = shaped_reward(
            jnp.asarray(drawn.scores),
            kl_nats,
            jnp.asarray(drawn.samples.finished),
            beta=config.beta,
            no_eos_penalty=config.no_eos_penalty,
        )
        difference = np.abs(logp - drawn.samples.logp)[sampled]
        return Measured(np.asarray(kl_nats), np.asarray(reward), difference)

    def metrics(self, drawn: Rollouts, measured: "Measured") -> dict[str, float]:
        """What is logged of one set of rollouts, under the names that TRL's users know."""
        samples, prompts = drawn.samples, drawn.prompts
        values = {
            "objective/reward": float(drawn.scores.mean()),
            "objective/rlhf_reward": float(measured.reward.mean()),
            "objective/kl": float(measured.kl_nats.mean()),
            "completions/mean_length": float(samples.length.mean()),
            "completions/clipped_ratio": float(1.0 - samples.finished.mean()),
            "rollout/logp_gap_nats_mean": float(measured.logp_gap_nats.mean()),
            "rollout/logp_gap_nats_max": float(measured.logp_gap_nats.max()),
        }
        if prompts.references is not None:
            copies = [[y == ref for y, ref in zip(column, prompts.references, strict=True)] for column in drawn.outputs]
            values["rollout/copy_rate"] = float(np.mean(copies))
        return values


class Measured(NamedTuple):
    """kl_nats and shaped reward of each sample; logp_gap_nats: |trainer - sampler| of each sampled token."""

    kl_nats: Float32[np.ndarray, "G N"]
    reward: Float32[np.ndarray, "G N"]
    logp_gap_nats: Float32[np.ndarray, " tokens"]


def prefixes(prompts: Prompts, closings: tuple[int, int, int]) -> list[list[int]]:
    """x, or x and its reference, each with its closing role token."""
    inputs = [[*x, closings[0]] for x in prompts.inputs]
    if prompts.references is None:
        return inputs
    return [[*x, *ref, closings[1]] for x, ref in zip(inputs, prompts.references, strict=True)]


def by_slot(values: np.ndarray, batch: Batch) -> np.ndarray:
    """Rows of `values` (one a tree) in the order of the batch's tree slots, 0 where a slot is empty."""
    present = batch.example_id >= 0
    result = np.zeros((len(batch.example_id), *values.shape[1:]), values.dtype)
    result[present] = values[batch.example_id[present]]
    return result


def advantages(reward: Float32[np.ndarray, "G N"], *, normalise: bool) -> Float32[np.ndarray, "G N"]:
    """Leave-one-out advantages, over their standard deviation in the step if asked; 0 where all rewards are equal."""
    advantage = np.asarray(leave_one_out(jnp.asarray(reward)))
    if not normalise:
        return advantage
    deviation = float(advantage.std())
    return advantage / np.float32(deviation) if deviation > 0 else np.zeros_like(advantage)


def run_rl(run: Run, name: str, *, profile_steps: int = 0) -> None:
    """Train one RL stage, resuming from its newest checkpoint."""
    clock = StageClock(run, name)
    stage = RlStage(run, name)
    config, stage_hash, seed = stage.config, run.stage_hash(name), run.config.seed
    update = Update(
        policy_gradient(stage.graphdef, config, stage.capacity), make_optimizer(config.optimizer, config.steps)
    )
    state = update.start(stage.initial)
    del stage.initial  # The first step consumes its buffers.
    with contextlib.closing(stage.draws()) as loader, run.checkpoints(name, keep=config.keep) as checkpoints:
        restored = checkpoints.restore(state, stage_hash)
        if restored is not None:
            state = restored.state
            loader.restore(restored.loader["draws"], int(state.step))
            clock.tokens = restored.meta["tokens"]
        meta = {"hash": stage_hash, "tokens": clock.tokens}
        done = int(state.step)

        def step(state: TrainState) -> tuple[TrainState, Mapping[str, Total | float]]:
            nonlocal done
            begin = time.perf_counter()
            draws = next(loader)
            wait_s = time.perf_counter() - begin
            ids, sources = draws.ids.tolist(), draws.sources.tolist()
            prompts = stage.prompts(stage.fold, ids, sources, seed=2 * (seed * 100_003 + done) + 1)
            drawn = stage.rollouts(state.params, prompts, seed=2 * (seed * 100_003 + done))
            batches = stage.batches(drawn)
            measured = stage.measure(state.params, drawn, batches)
            advantage = advantages(measured.reward, normalise=config.normalise)
            ready = [
                {**arrays, "advantage": put(by_slot(advantage, batch), stage.sharding)} for batch, arrays in batches
            ]
            state, metrics = update(state, ready)
            loader.update(draws, drawn.scores)
            history.add(Visit(draws, drawn.scores.mean(axis=1) if stage.with_reference else None))
            done += 1
            tokens = sum(live_tokens(batch) for batch, _ in batches)
            clock.tokens += tokens
            meta["tokens"] = clock.tokens
            slots = sum(batch.token.size for batch, _ in batches)
            performance = {"perf/fill": tokens / slots, "perf/data_wait_s": wait_s}
            return state, {**metrics, **stage.metrics(drawn, measured), **performance}

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
                meta=meta,
                evaluate=lambda s: held_out(stage, s.params),
                evaluate_every=config.evaluate_every,
                profile_steps=profile_steps,
            )
    visits = expected_visits(config, examples_of(config, stage.fold))
    clock.finish(config.steps, visits_an_example=round(visits, 3))


def held_out(stage: RlStage, params: Params) -> dict[str, float]:
    """The same metrics on fixed prompts of the eval fold with fixed random numbers."""
    fold = stage.run.fold("eval")
    ids = list(range(min(stage.config.evaluate_prompts, len(fold))))
    weights = np.array([0, *stage.config.sources]) if stage.with_reference else np.array([1, 0, 0, 0])
    cycle = np.repeat(np.arange(len(weights)), weights)
    drawn = stage.rollouts(params, stage.prompts(fold, ids, cycle[np.array(ids) % len(cycle)].tolist(), seed=1), seed=0)
    return stage.metrics(drawn, stage.measure(params, drawn, stage.batches(drawn)))
