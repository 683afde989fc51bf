"""Records of an RL step, in the order in which it makes them: prompts, rollout, packed trees, measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float32, Float64, Int64

from pit.data.store import Fold
from pit.data.tokens import Sequences, Tokens
from pit.model.global_arrays import whole
from pit.rollout.sample import Samples
from pit.types import Batch, LocalBatch


class Rows(NamedTuple):
    """Rows of the data that some inputs come from: a fold, and the place of each in it."""

    fold: Fold
    ids: Int64[np.ndarray, " G"]


class Answers(NamedTuple):
    """N answers to each of G inputs, as a reward scores them.

    inputs: contents of x. references: contents of the references; None where there are none.
    outputs: contents of the answers, `outputs[n][g]`.
    packed: the trees x -> [reference ->] outputs, packed; a reward that scores these very trees reads them.
    rows: rows of the data that the inputs come from; None for other inputs.
    """

    inputs: Tokens
    references: Tokens | None
    outputs: Sequence[Tokens]
    packed: Sequence[LocalBatch] | None = None
    rows: Rows | None = None


Gold = Callable[[Sequences, Sequences], Float64[np.ndarray, " n"]]
"""True worth of answers, higher is better: of the contents of n inputs and of an answer to each."""

Labeller = Callable[[Sequences, Sequences, Sequences], Int64[np.ndarray, " n"]]
"""Preferences: of the contents of n inputs and two answers to each, 1 for the first, -1 for the second, 0 for a tie."""


class Prompts(NamedTuple):
    """Prefixes of a step.

    ids: rows of the fold. inputs: contents of x. references: contents of the references, None for the policy.
    """

    ids: Int64[np.ndarray, " G"]
    inputs: Tokens
    references: Tokens | None

    def block(self, first: int, size: int) -> "Prompts":
        """Return `size` of the prompts, or as many as are left, from one on."""
        part = slice(first, first + size)
        references = None if self.references is None else self.references[part]
        return Prompts(self.ids[part], self.inputs[part], references)


@dataclass(frozen=True)
class Rollout:
    """N samples of each prompt, with their contents as columns."""

    prompts: Prompts
    samples: Samples

    @cached_property
    def outputs(self) -> list[Tokens]:
        """Contents of the answers: a column per sample number, a sequence per tree."""
        return self.samples.answers()

    @property
    def columns(self) -> list[Tokens]:
        """Columns of the trees x -> [reference ->] outputs."""
        references = [] if self.prompts.references is None else [self.prompts.references]
        return [self.prompts.inputs, *references, *self.outputs]

    @property
    def sampled(self) -> Bool[np.ndarray, "G N C"]:
        """Whether each place holds a sampled token."""
        return np.arange(self.samples.token.shape[2]) < self.samples.length[:, :, None]


class Trees(NamedTuple):
    """Rollouts packed for training.

    batches: on the host, as far as this process has them. arrays: the same on the devices, with facts of the samples by
    tree slot.
    sharding: places of rows and trees.
    minibatch: number of the minibatch of each batch; empty where all are of one.
    """

    batches: Sequence[LocalBatch]
    arrays: Sequence[dict[str, Array]]
    sharding: NamedSharding
    minibatch: Sequence[int] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens that are not padding."""
        return sum(batch.tokens for batch in self.batches)

    @property
    def slots(self) -> int:
        """Number of token slots, padding included."""
        return sum(batch.slots for batch in self.batches)

    def unpacked(self, values: Sequence[Array], n: int) -> np.ndarray:
        """Return values by tree, from values by tree slot of each batch; 0 for trees that are nowhere.

        Args:
            values: of each batch, arrays [slots, ...].
            n: number of trees.
        """
        result = np.zeros((n, *values[0].shape[1:]), values[0].dtype)
        for batch, array in zip(self.batches, values, strict=True):
            present = batch.example_id >= 0
            result[batch.example_id[present]] = whole(array)[present]
        return result


def by_slot(values: np.ndarray, batch: Batch | LocalBatch) -> np.ndarray:
    """Return rows of `values` (one per tree) in the order of the batch's tree slots, 0 where a slot is empty."""
    present = batch.example_id >= 0
    result = np.zeros((len(batch.example_id), *values.shape[1:]), values.dtype)
    result[present] = values[batch.example_id[present]]
    return result


def renumbered(batch: LocalBatch, first: int) -> LocalBatch:
    """Return a batch of some trees whose numbers begin with another than 0."""
    present = batch.example_id >= 0
    return replace(batch, example_id=np.where(present, batch.example_id + first, batch.example_id))


class Measures(NamedTuple):
    """Measures of each sample before the update, in nats and in units of the score.

    kl_nats: KL to the anchor by k1; penalty_nats: KL by the config's estimator; entropy_nats: -log p(sample).
    reward: shaped reward. logp_gap_nats: |trainer - sampler| of each sampled token, 0 elsewhere.
    logp_nats: log-probs of the sampled tokens under the policy that sampled, by the trainer's program; 0 elsewhere.
    anchored: of each batch, what the loss needs of the anchor.
    """

    kl_nats: Float32[np.ndarray, "G N"]
    penalty_nats: Float32[np.ndarray, "G N"]
    entropy_nats: Float32[np.ndarray, "G N"]
    reward: Float32[np.ndarray, "G N"]
    logp_gap_nats: Float32[np.ndarray, "G N C"]
    logp_nats: Float32[np.ndarray, "G N C"]
    anchored: Sequence[dict[str, Array]]


class Minibatch(NamedTuple):
    """Microbatches of one optimizer step, and the row of the fold in each of their tree slots, -1 where empty."""

    arrays: Sequence[dict[str, Array]]
    examples: Sequence[Int64[np.ndarray, " slots"]]
