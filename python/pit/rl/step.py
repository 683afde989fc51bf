"""One step of reinforcement learning: draws -> prompts -> rollout -> trees -> scores -> measures -> update.

PIT, section 3.4 and algorithm 1. RL,0 takes references from the data, RL,1 samples them from M_P^RL, RL,2 has them
rewritten by the improver of RL,1. Nothing here reads or writes a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Float32

from pit.config import ImproverRlConfig, RlConfig
from pit.data.curriculum import Draws
from pit.data.local import pack_local
from pit.data.packing import Layout
from pit.data.store import Fold
from pit.data.template import rollout as rollout_tree
from pit.data.tokens import Tokens
from pit.losses.total import Total, added
from pit.model.decoder import Decoder
from pit.model.global_arrays import put
from pit.model.model import Model
from pit.model.params import Params
from pit.rl.algorithm import Algorithm
from pit.rl.controllers import Controllers
from pit.rl.metrics import metrics
from pit.rl.readings import PolicyAndAnchor
from pit.rl.records import Answers, Measures, Prompts, Rollout, Rows, Trees, by_slot, renumbered
from pit.rl.references import References
from pit.rl.reward import Reward, score
from pit.rl.shaping import shaped
from pit.rollout.protocol import SamplerProtocol
from pit.rollout.sample import joined_samples
from pit.rollout.strategy import Temperature
from pit.seeds import Seed
from pit.train.feed import shapes_of, to_device
from pit.train.loop import StepError
from pit.train.update import Arrays, TrainState
from pit.types import LocalBatch, Shards

_SAMPLE_FACTS = {"length": np.int32, "finished": np.bool_}
"""Facts of samples that packed trees carry to the devices, by tree slot, and their dtypes."""


def packed_shapes(
    samples: int, layout: Layout, sharding: NamedSharding, *, referenced: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a microbatch of packed rollouts.

    Args:
        samples: samples per tree.
        layout: shape of packed rows.
        sharding: places of rows and trees.
        referenced: whether the trees have references.
    """
    shapes = shapes_of(rollout_tree(samples, referenced), layout, sharding)
    slots = shapes["leaf"].shape[:2]
    return shapes | {name: jax.ShapeDtypeStruct(slots, of, sharding=sharding) for name, of in _SAMPLE_FACTS.items()}


def parts_of(count: int, parts: int) -> list[slice]:
    """Return so many things as parts of neighbours, of equal sizes or nearly; parts without any are left out.

    >>> parts_of(5, 2), parts_of(1, 2)
    ([slice(0, 2, None), slice(2, 5, None)], [slice(0, 1, None)])
    """
    edges = [count * number // parts for number in range(parts + 1)]
    return [slice(first, end) for first, end in pairwise(edges) if first < end]


def peers_of(outputs: Sequence[Tokens], seed: Seed) -> Tokens:
    """Return one of the answers to each prompt, at random (BRPO, arXiv 2506.00103); `outputs[n][g]`."""
    count, samples = len(outputs[0]), len(outputs)
    chosen = np.random.default_rng(seed.number).integers(samples, size=count)
    return Tokens.of([outputs[n][g] for g, n in enumerate(chosen.tolist())])


class StaleSamplesError(StepError):
    """Samples that other weights drew than those that the step trains."""


UpdateFunction = Callable[[TrainState, Sequence[Arrays], Sequence[np.ndarray]], tuple[TrainState, dict[str, Total]]]
"""Takes an optimizer step on microbatches, given the rows of the fold in their tree slots."""


class Scored(NamedTuple):
    """A rollout with its packed trees, scores, measures and metrics."""

    rollout: Rollout
    trees: Trees
    scores: Float32[np.ndarray, "G N"]
    measures: Measures
    values: dict[str, float]


@dataclass(frozen=True)
class RlStep:
    """Everything that a step is made of.

    name: name of the stage. config: its section. fold: examples that prompts come from.
    seed: root of the step's random numbers.
    graphdef: definition of the policy. frozen: those of its weights that do not train. sampler: sampler of answers.
    references: maker of references, None for the policy's own stage. reward: reward of the samples.
    models: policy and anchor, for the KL. algorithm: loss and minibatches.
    layout, shards, sharding: shape of packed rows, and their places on processes and devices.
    scale: factor of the reward model's scores; None where they are in their own unit.
    """

    name: str
    config: RlConfig
    fold: Fold
    seed: Seed
    graphdef: nnx.GraphDef[Decoder]
    frozen: Params
    sampler: SamplerProtocol
    references: References | None
    reward: Reward
    models: PolicyAndAnchor
    algorithm: Algorithm
    layout: Layout
    shards: Shards
    sharding: NamedSharding
    scale: float | None = None

    def __call__(
        self, state: TrainState, draws: Draws, control: Controllers, update: UpdateFunction
    ) -> tuple[TrainState, dict[str, Total], Scored, Controllers]:
        """Take the step of some draws; returns also what was sampled, and the controllers that have seen its scores.

        All updates of a rollout count as one step; what they report is added up.
        """
        seed, algorithm, totals = self.seed.of("step", draws.step), self.algorithm, list[dict[str, Total]]()
        scored, control = self.collect(state.params, self.fold, draws, control, seed)
        rows = np.array([*scored.rollout.prompts.ids, -1])
        for minibatch in algorithm.prepare(scored.trees, scored.measures, control, seed.of("minibatches")):
            if totals:
                state = state._replace(step=state.step - 1)
            state, of_update = update(state, minibatch.arrays, [rows[slots] for slots in minibatch.examples])
            totals.append(of_update)
            if not algorithm.proceeds(of_update):
                break
        if algorithm.updates > 1:
            scored.values["policy/updates"] = float(len(totals))
        return state, added(totals), scored, control

    def collect(
        self, params: Params, fold: Fold, draws: Draws, control: Controllers, seed: Seed, *, adapt: bool = True
    ) -> tuple[Scored, Controllers]:
        """Sample, score and measure; without `adapt` the scale of the scores stays as it is.

        `params` are the policy's weights that train, after `draws.step` updates.
        """
        params = {**self.frozen, **params}
        prompts = self.prompts(fold, draws, seed.of("references"))
        rollout = self.sample(params, prompts, seed.of("samples"), draws.step)
        trees = self.pack(rollout)
        rows = Rows(fold, prompts.ids)
        answers = Answers(prompts.inputs, prompts.references, rollout.outputs, trees.batches, rows)
        if isinstance(self.config, ImproverRlConfig) and self.config.against == "peer":
            answers = answers._replace(references=peers_of(rollout.outputs, seed.of("peers")), packed=None)
        scores, parts = score(self.reward, answers)
        control = control.seen(self.config, scores) if adapt else control
        measures = self.measure(params, rollout, trees, scores, control)
        values = metrics(self.config, rollout, scores, measures, control) | parts
        if self.scale is not None:
            values["rewards/scale"] = self.scale
        return Scored(rollout, trees, scores, measures, values), control

    def prompts(self, fold: Fold, draws: Draws, seed: Seed) -> Prompts:
        """Return the prefixes: inputs and, for the improver, references from the drawn sources."""
        if self.references is None:
            return Prompts(draws.ids, fold.columns(draws.ids.tolist())[0], None)
        return self.references(fold, draws.ids, draws.sources, seed)

    def sample(self, params: Params, prompts: Prompts, seed: Seed, updates: int) -> Rollout:
        """Sample N answers of every prefix from the weights after a number of updates.

        More prompts than those of a step are sampled as many at a time, by the programs of a step.

        Raises:
            StaleSamplesError: the sampler drew them from other weights.
        """
        policy = Model(self.graphdef, params, version=f"{self.name}@{updates}")
        strategy, size = Temperature(self.config.temperature), self.config.prompts
        blocks = [prompts.block(first, size) for first in range(0, len(prompts.ids), size)]
        samples = joined_samples(
            [
                self.sampler.samples(policy, *block, n=self.config.samples, strategy=strategy, seed=seed.number)
                for block in blocks
            ]
        )
        if samples.version != policy.version:
            raise StaleSamplesError(
                f"samples.version = {samples.version!r}: the step trains {policy.version!r}, and its gradient is that "
                "of samples of these very weights; hand them to the sampler before it draws"
            )
        return Rollout(prompts, samples)

    def pack(self, rollout: Rollout) -> Trees:
        """Pack the trees x -> [reference ->] samples; the batches go to the devices with what the samples add."""
        topology, columns = rollout_tree(self.config.samples, self.references is not None), rollout.columns
        batches, minibatch = list[LocalBatch](), list[int]()
        for number, part in enumerate(parts_of(len(rollout.prompts.ids), self.algorithm.minibatches)):
            packed = pack_local([column[part] for column in columns], topology, self.layout, self.shards)
            batches += [renumbered(batch, part.start) for batch in packed]
            minibatch += [number] * len(packed)
        samples = {name: getattr(rollout.samples, name) for name in _SAMPLE_FACTS}
        arrays = []
        for batch in batches:
            slots = {name: put(by_slot(values, batch), self.sharding) for name, values in samples.items()}
            arrays.append({**to_device(batch, self.sharding), **slots})
        return Trees(batches, arrays, self.sharding, minibatch)

    def measure(
        self,
        params: Params,
        rollout: Rollout,
        trees: Trees,
        scores: Float32[np.ndarray, "G N"],
        control: Controllers,
    ) -> Measures:
        """Return the KL to the anchor and the shaped rewards; policy and anchor go through the same program."""
        samples = rollout.samples
        logp, anchor_logp, kl, anchored = self.models.read(params, trees, len(scores))
        scaled = scores / np.float32(control.scores.deviation)
        beta = np.float32(control.beta)
        of_samples = shaped(self.config, scaled, beta, logp, anchor_logp, kl, samples.finished, samples.length)
        kl_nats, penalty_nats, entropy_nats, reward = map(np.asarray, of_samples)
        return Measures(kl_nats, penalty_nats, entropy_nats, reward, np.abs(logp - samples.logp), logp, anchored)
