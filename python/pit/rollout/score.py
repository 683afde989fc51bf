"""Scores of given answers: R_P on x -> y, and gaps in the orders that their form needs, by two kinds of scorer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from pit.config import GapForm
from pit.data.local import pack_local
from pit.data.packing import Layout, batch_shapes
from pit.data.template import GapLeaves, gap_scoring, rollout
from pit.data.tokens import Sequences, Tokens
from pit.model.decoder import Decoder
from pit.model.global_arrays import put_local, whole
from pit.model.heads import RewardModel, row_logprobs
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.model.programs import Program
from pit.model.sharding import mesh_of, row_sharding
from pit.types import LocalBatch, Topology
from pit_kernels import centred_gap, symmetric_gap


def gap_tree(outputs: int, form: GapForm) -> tuple[Topology, GapLeaves]:
    """Return the tree in which outputs are scored against a reference, and its leaves; see `Scorer.gap`."""
    return gap_scoring(outputs, identity=form == "centred", swapped=form == "symmetric")


class Scorer(ABC):
    """A model that scores r(y, ref) on packed trees of one static shape, and so gaps of answers over references."""

    def __init__(self, model: Model[Any], layout: Layout) -> None:
        self.model, self.layout = model, layout

    @abstractmethod
    def _scores(self, batch: LocalBatch, contents: Int32[np.ndarray, "G L"]) -> Float32[np.ndarray, "G L"]:
        """Return the scores of a batch's leaves; `contents` counts the tokens of each before its EOS."""

    def _placed(self, batch: LocalBatch, *names: str) -> tuple[np.ndarray | Array, ...]:
        """Return arrays of a batch, their rows or trees split over the devices of the model."""
        mesh, arrays = mesh_of(self.model.params), [getattr(batch.local, name) for name in names]
        if mesh is None:
            return tuple(arrays)
        return tuple(put_local(values, batch.shards, row_sharding(mesh)) for values in arrays)

    def leaves(
        self, columns: Sequence[Sequences], topology: Topology, packed: Sequence[LocalBatch] | None = None
    ) -> Float32[np.ndarray, "n L"]:
        """Return the scores of all leaves of the trees that the columns fill.

        Args:
            columns: contents, a column per segment of the tree.
            topology: the tree.
            packed: these very trees where they are packed already, in the scorer's layout.
        """
        tokens = [Tokens.of(column) for column in columns]
        filled = sorted((segment.leaf, segment.column) for segment in topology.segments if segment.leaf >= 0)
        contents = np.stack([tokens[column].length for _, column in filled], axis=1)
        scores = np.zeros(contents.shape, np.float32)
        parts = pack_local(tokens, topology, self.layout, self.model.row_shards) if packed is None else packed
        for batch in parts:
            with self.model.on_mesh():
                of_batch = self._scores(batch, contents[batch.example_id])
            present = batch.example_id >= 0
            scores[batch.example_id[present]] = of_batch[present]
        return scores

    def gap(
        self,
        inputs: Sequences,
        references: Sequences,
        outputs: Sequence[Sequences],
        form: GapForm,
        packed: Sequence[LocalBatch] | None = None,
    ) -> Float32[np.ndarray, "G N"]:
        """Return the gap of N outputs over the reference of each input, in one form; `outputs[n][g]`.

        Args:
            inputs: contents of x.
            references: contents of the references.
            outputs: contents of the answers.
            form: raw r(y, ref); centred, less the mean of r(y, y) and r(ref, ref); or symmetric, half of r(y, ref)
                less r(ref, y). Centred and symmetric are exactly 0 where the output is the reference.
            packed: the trees x -> ref -> outputs where they are packed already (raw form alone).
        """
        references, columns = Tokens.of(references), [Tokens.of(column) for column in outputs]
        topology, leaf = gap_tree(len(columns), form)
        scores = self.leaves([inputs, references, *columns], topology, packed)
        raw = scores[:, list(leaf.raw)]
        if form == "raw":
            return raw
        gap: Array
        if form == "symmetric":
            gap = symmetric_gap(jnp.asarray(raw), jnp.asarray(scores[:, list(leaf.swapped)]))
        else:
            own, reference = scores[:, list(leaf.identity)], scores[:, [leaf.reference_identity]]
            gap = centred_gap(jnp.asarray(raw), jnp.asarray(own), jnp.asarray(np.broadcast_to(reference, own.shape)))
        return zero_over_itself(np.asarray(gap), references, columns)


_SCORED = ("token", "position", "visible_until", "leaf")
"""Arrays of a batch that a reward model reads."""


class ModelScorer(Scorer):
    """A reward model as a scorer."""

    def __init__(self, model: Model[RewardModel], layout: Layout) -> None:
        def score(
            params: Params,
            token: Int32[Array, "R T"],
            position: Int32[Array, "R T"],
            visible_until: Int32[Array, "R T"],
            leaf: Int32[Array, "G L 2"],
        ) -> Float32[Array, "G L"]:
            return merge(model.graphdef, params)(token, position, visible_until, leaf)

        super().__init__(model, layout)
        self._score = jax.jit(score)

    def program(self, topology: Topology) -> Program:
        """Return the program that scores a batch of trees, where the model's weights are shapes."""
        shapes, mesh = batch_shapes(self.model.shards, topology, self.layout), mesh_of(self.model.params)
        assert mesh is not None
        arrays = (jax.ShapeDtypeStruct(*shapes[name], sharding=row_sharding(mesh)) for name in _SCORED)
        return Program("scores", self._score, (self.model.params, *arrays))

    def _scores(self, batch: LocalBatch, contents: Int32[np.ndarray, "G L"]) -> Float32[np.ndarray, "G L"]:
        arrays = self._placed(batch, *_SCORED)
        scores: Float32[np.ndarray, "G L"] = whole(self._score(self.model.params, *arrays))
        return scores

    def quality(
        self, inputs: Sequences, outputs: Sequence[Sequences], packed: Sequence[LocalBatch] | None = None
    ) -> Float32[np.ndarray, "G N"]:
        """Return r_P(x, y) of N outputs of each input; `outputs[n][g]`. `packed` as in `leaves`."""
        return self.leaves([inputs, *outputs], rollout(len(outputs), with_reference=False), packed)

    def difference(
        self, inputs: Sequences, references: Sequences, outputs: Sequence[Sequences]
    ) -> Float32[np.ndarray, "G N"]:
        """Return r_P(x, y) - r_P(x, y_ref) of N outputs of each input, by an ordinary reward model; `outputs[n][g]`.

        This is the ablation of the gap model: its two scores were not trained with a reference in sight.
        """
        references, columns = Tokens.of(references), [Tokens.of(column) for column in outputs]
        scores = self.quality(inputs, [*columns, references])
        return zero_over_itself(scores[:, :-1] - scores[:, -1:], references, columns)


class LikelihoodScorer(Scorer):
    """An improver as a scorer: r(y, ref) = log p(y | x, ref), nats, of all of y with its EOS.

    Its symmetric gap, half of log p(y | x, ref) - log p(ref | x, y), says into which of the two the improver rather
    turns the other. Nothing is trained for it, and nothing must be trained against it: an answer from which the
    reference cannot be recovered scores high, so reinforcement learning would end in answers that say nothing. It is
    meant for answers that an improver wrote.
    """

    def __init__(self, model: Model[Decoder], layout: Layout) -> None:
        def logprobs(
            params: Params,
            token: Int32[Array, "R T"],
            position: Int32[Array, "R T"],
            visible_until: Int32[Array, "R T"],
            previous: Int32[Array, "R T"],
        ) -> Float32[Array, "R T"]:
            return row_logprobs(merge(model.graphdef, params), token, position, visible_until, previous)

        super().__init__(model, layout)
        self._logprobs = jax.jit(logprobs)

    def _scores(self, batch: LocalBatch, contents: Int32[np.ndarray, "G L"]) -> Float32[np.ndarray, "G L"]:
        *arrays, leaves = self._placed(batch, "token", "position", "visible_until", "previous", "leaf")
        logp, leaf = whole((self._logprobs(self.model.params, *arrays), leaves))
        before = np.pad(np.cumsum(logp, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        row, end = leaf[:, :, 0], leaf[:, :, 1]
        # An output is contiguous: its content, and EOS at `end`.
        scores = before[row, end + 1] - before[row, np.maximum(end - contents, 0)]
        return np.asarray(scores, np.float32)


def zero_over_itself(
    gap: Float32[np.ndarray, "G N"], references: Tokens, outputs: Sequence[Tokens]
) -> Float32[np.ndarray, "G N"]:
    """Return the gaps, 0 where an output is its reference: one text at two places may differ in its last bit."""
    same = np.stack([column.equal(references) for column in outputs], axis=1)
    return np.where(same, np.float32(0), gap)
