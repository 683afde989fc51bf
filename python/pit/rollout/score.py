"""Scores of given answers: R_P on x -> y, and gaps in the orders that their form needs, by two kinds of judge."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32

from pit.config import GapForm, RewardForm
from pit.data.packing import Layout, pack_lists
from pit.data.template import gap_scoring, rollout
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel, row_logprobs
from pit.model.params import Params, merge
from pit.model.sharding import on_mesh, shards_of
from pit.types import Batch, Topology
from pit_kernels import centred_gap, symmetric_gap

Tokens = Sequence[Sequence[int]]


class Judge(ABC):
    """What scores r(y, ref) on packed trees of one static shape, and so tells the gap of an answer over a reference."""

    def __init__(self, params: Params, layout: Layout) -> None:
        self._params, self._layout, self._shards = params, layout, shards_of(params)

    @abstractmethod
    def _scores(self, batch: Batch, contents: Int32[np.ndarray, "G L"]) -> Float32[np.ndarray, "G L"]:
        """Scores of the leaves of a batch, whose segments hold so many tokens before the closing one."""

    def leaves(self, columns: Sequence[Tokens], topology: Topology) -> Float32[np.ndarray, "n L"]:
        """Scores of all leaves of the trees that the columns fill."""
        filled = sorted((each.leaf, each.column) for each in topology.segments if each.leaf >= 0)
        contents = np.array([[len(tokens) for tokens in columns[column]] for _, column in filled], np.int32).T
        result = np.zeros(contents.shape, np.float32)
        for batch in pack_lists(columns, topology, self._layout, shards=self._shards):
            with on_mesh(self._params):
                scores = self._scores(batch, contents[batch.example_id])
            present = batch.example_id >= 0
            result[batch.example_id[present]] = scores[present]
        return result

    def gap(
        self, inputs: Tokens, references: Tokens, outputs: Sequence[Tokens], form: GapForm
    ) -> Float32[np.ndarray, "G N"]:
        """The gap of N outputs over the reference of each input, in one form; `outputs[n][g]`."""
        n = len(outputs)
        topology, leaf = gap_scoring(n, identity=form == "centred", swapped=form == "symmetric")
        scores = self.leaves([inputs, references, *outputs], topology)
        raw = scores[:, list(leaf.raw)]
        if form == "raw":
            return raw
        gap: Array
        if form == "symmetric":
            gap = symmetric_gap(jnp.asarray(raw), jnp.asarray(scores[:, list(leaf.swapped)]))
        else:
            own, reference = scores[:, list(leaf.identity)], scores[:, [leaf.reference_identity]]
            gap = centred_gap(jnp.asarray(raw), jnp.asarray(own), jnp.asarray(np.broadcast_to(reference, own.shape)))
        return _zero_over_itself(np.asarray(gap), references, outputs)


class Scorer(Judge):
    """A reward model as a judge."""

    def __init__(self, graphdef: nnx.GraphDef[RewardModel], params: Params, layout: Layout) -> None:
        def score(
            params: Params,
            token: Int32[Array, "R T"],
            position: Int32[Array, "R T"],
            visible_until: Int32[Array, "R T"],
            leaf: Int32[Array, "G L 2"],
        ) -> Float32[Array, "G L"]:
            return merge(graphdef, params)(token, position, visible_until, leaf)

        super().__init__(params, layout)
        self._score = jax.jit(score)

    def _scores(self, batch: Batch, contents: Int32[np.ndarray, "G L"]) -> Float32[np.ndarray, "G L"]:
        arrays = (batch.token, batch.position, batch.visible_until, batch.leaf)
        return np.asarray(jax.device_get(self._score(self._params, *arrays)))

    def quality(self, inputs: Tokens, outputs: Sequence[Tokens]) -> Float32[np.ndarray, "G N"]:
        """r_P(x, y) of N outputs of each input; `outputs[n][g]`."""
        return self.leaves([inputs, *outputs], rollout(len(outputs), with_reference=False))

    def difference(self, inputs: Tokens, references: Tokens, outputs: Sequence[Tokens]) -> Float32[np.ndarray, "G N"]:
        """r_P(x, y) - r_P(x, y_ref) of N outputs of each input, by an ordinary reward model; `outputs[n][g]`.

        The ablation of the gap model: two scores that were not trained to be compared with a reference in sight.
        """
        scores = self.quality(inputs, [*outputs, references])
        return _zero_over_itself(scores[:, :-1] - scores[:, -1:], references, outputs)

    def reward(
        self, inputs: Tokens, references: Tokens, outputs: Sequence[Tokens], form: RewardForm
    ) -> Float32[np.ndarray, "G N"]:
        """What an improver is rewarded with, in any of the forms; the reward model must be the one that it needs."""
        if form == "difference":
            return self.difference(inputs, references, outputs)
        return self.gap(inputs, references, outputs, form)


class Likelihood(Judge):
    """An improver as a judge: r(y, ref) = log p(y | x, ref), nats, of all of y with its closing token.

    Its symmetric gap, half of log p(y | x, ref) - log p(ref | x, y), asks which of the two the improver rather turns
    into the other. Nothing is trained, and nothing is to be trained against it: an answer from which the reference
    cannot be got back scores high, so that reinforcement learning ends in answers that say nothing. It judges what an
    improver wrote.
    """

    def __init__(self, graphdef: nnx.GraphDef[Decoder], params: Params, layout: Layout) -> None:
        def logprobs(
            params: Params,
            token: Int32[Array, "R T"],
            position: Int32[Array, "R T"],
            visible_until: Int32[Array, "R T"],
            previous: Int32[Array, "R T"],
        ) -> Float32[Array, "R T"]:
            return row_logprobs(merge(graphdef, params), token, position, visible_until, previous)

        super().__init__(params, layout)
        self._logprobs = jax.jit(logprobs)

    def _scores(self, batch: Batch, contents: Int32[np.ndarray, "G L"]) -> Float32[np.ndarray, "G L"]:
        arrays = (batch.token, batch.position, batch.visible_until, batch.previous)
        logp = jax.device_get(self._logprobs(self._params, *arrays))
        before = np.pad(np.cumsum(logp, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        row, end = batch.leaf[:, :, 0], batch.leaf[:, :, 1]
        # A segment is contiguous: its content, and the closing token at `end`.
        scores = before[row, end + 1] - before[row, np.maximum(end - contents, 0)]
        return np.asarray(scores, np.float32)


def _zero_over_itself(
    gap: Float32[np.ndarray, "G N"], references: Tokens, outputs: Sequence[Tokens]
) -> Float32[np.ndarray, "G N"]:
    # The same text read at two places of a row may differ in the last bit; over itself the gap is 0 by definition.
    same = [[list(y) == list(ref) for y in ys] for *ys, ref in zip(*outputs, references, strict=True)]
    return np.where(np.array(same), np.float32(0), gap)
