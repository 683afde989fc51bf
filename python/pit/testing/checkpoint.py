"""PIT's own reward models as scorers of every level: text, packed rows, loss and gradients."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

from pit.config import GapForm
from pit.data.template import Template, gap, gap_scoring, quality, rollout
from pit.data.tokenizer import Tokenizer
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.rollout.score import ModelScorer
from pit.run.folder import Run
from pit.run.stage import REWARD_MODEL, Stage
from pit.stages.graph import GRAPH, stage_named
from pit.stages.reward import gap_loss, quality_loss
from pit.testing.faults import CheckError
from pit.testing.rows import RowFormat, RowGradients
from pit.testing.scorers import HALF_ROUNDING, ROUNDING, Prompt
from pit.types import Batch, SegmentKind

Reads = Literal["gap", "quality"]

_EMBEDDING = "decoder.embedding"

_TEXT_ROWS, _TEXT_TREES = 8, 64
"""Rows of twice the longest path, and trees, in which questions of text are packed: small, as most are asked a few."""


class RowModel:
    """A PIT reward model and its weights, asked for packed rows; it needs no tokenizer.

    Args:
        graphdef: of a `RewardModel`.
        params: its weights.
        format: the tokens that it reads.
    """

    def __init__(self, graphdef: nnx.GraphDef[Any], params: Params, format: RowFormat) -> None:
        loss = (gap_loss if format.reads_reference else quality_loss)(graphdef)

        def score(params: Params, token: Array, position: Array, visible_until: Array, leaf: Array) -> Array:
            scores: Array = merge(graphdef, params)(token, position, visible_until, leaf)
            return scores

        def weighted(params: Params, places: Array, batch: dict[str, Array], weight: Array) -> Array:
            # A table with an entry for each place of the rows: its gradient is that of the places.
            own = {**params, _EMBEDDING: places}
            token = jnp.arange(batch["token"].size, dtype=jnp.int32).reshape(batch["token"].shape)
            return jnp.sum(score(own, token, batch["position"], batch["visible_until"], batch["leaf"]) * weight)

        def gradients(params: Params, batch: dict[str, Array], weight: Array) -> tuple[Params, Array]:
            places = params[_EMBEDDING][batch["token"].reshape(-1)]
            own, by_place = jax.grad(weighted, argnums=(0, 1))(params, places, batch, weight)
            table = jnp.zeros_like(params[_EMBEDDING]).at[batch["token"].reshape(-1)].add(by_place)
            return {**own, _EMBEDDING: table}, by_place.reshape(*batch["token"].shape, -1)

        self.format, self._params = format, params
        half = merge(graphdef, params).decoder.config.compute_dtype != "float32"
        self.rounding = HALF_ROUNDING if half else ROUNDING
        self._score, self._gradients = jax.jit(score), jax.jit(gradients)
        self._loss = jax.jit(lambda params, batch: loss(params, batch)[0])

    def score_rows(self, batch: Batch) -> Float32[np.ndarray, "G L"]:
        """Score of each leaf."""
        rows = batch.token, batch.position, batch.visible_until, batch.leaf
        scores: np.ndarray = np.asarray(self._score(self._params, *rows))
        return scores

    def loss_rows(self, batch: Batch) -> tuple[float, float]:
        """The stage's training loss: its sum, and the trees it is of."""
        total = self._loss(self._params, _arrays(batch))
        return float(total.sum), float(total.weight)

    def grad_rows(self, batch: Batch, weight: Float32[np.ndarray, "G L"]) -> RowGradients:
        """Gradient of sum(weight * score)."""
        parameters, places = jax.device_get(self._gradients(self._params, _arrays(batch), jnp.asarray(weight)))
        return RowGradients(parameters, places)


def _arrays(batch: Batch) -> dict[str, Array]:
    names = ("token", "position", "visible_until", "leaf")
    return {name: jnp.asarray(getattr(batch, name)) for name in names}


class CheckpointScorer(RowModel):
    """A PIT reward model with its tokenizer: every level.

    The gap of R_PIT is the raw score r(y, ref), whose offset is free; `centred` removes it. That of R_P is the
    difference of two scores.
    """

    def __init__(self, graphdef: nnx.GraphDef[Any], params: Params, template: Template, reads: Reads) -> None:
        super().__init__(graphdef, params, row_format(template, reads))
        layout = replace(self.format.wide, rows=_TEXT_ROWS, trees=_TEXT_TREES)
        self._scorer, self._template, self._reads = ModelScorer(Model(graphdef, params), layout), template, reads

    @classmethod
    def open(cls, folder: Path, stage: str = "reward-gap") -> "CheckpointScorer":
        """The reward model of a finished stage of a run.

        Raises:
            CheckError: the stage trains no reward model.
            ConfigError, CheckpointError: no run is there, or the stage has not finished.
        """
        named = stage_named(stage)
        if named is None or named.trains != REWARD_MODEL:
            rewards = ", ".join(job.name for job in GRAPH if isinstance(job, Stage) and job.trains == REWARD_MODEL)
            raise CheckError(f"stage {stage!r} of {folder}: must be one that trains a reward model, one of {rewards}")
        run = Run.open(folder)
        model, kinds = named.load(run), {segment.kind for segment in named.topology(run.config).segments}
        reads: Reads = "gap" if SegmentKind.REFERENCE in kinds else "quality"
        return cls(model.graphdef, model.params, run.template, reads)

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """The raw gap of R_PIT, the difference of R_P."""
        return self._ask(prompts, outputs, references, "raw")

    def centred(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """The gap without its offset."""
        return self._ask(prompts, outputs, references, "centred")

    def encode(self, prompt: Prompt, output: str, reference: str) -> tuple[list[int], list[int], list[int]]:
        """Token contents of prompt, output and reference, cut to the run's windows."""
        template = self._template
        return template.encode_prompt(prompt), template.encode_answer(output), template.encode_answer(reference)

    def _ask(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str], form: GapForm
    ) -> Float32[np.ndarray, " n"]:
        if not prompts:
            return np.zeros(0, np.float32)
        known: dict[str, list[int]] = {}
        for text in (*outputs, *references):
            if text not in known:
                known[text] = self._template.encode_answer(text)
        xs = [self._template.encode_prompt(prompt) for prompt in prompts]
        ys, refs = [known[text] for text in outputs], [known[text] for text in references]
        if self._reads == "quality":
            return self._scorer.difference(xs, refs, [ys])[:, 0]
        return self._scorer.gap(xs, refs, [ys], form)[:, 0]


def row_format(template: Template, reads: Reads) -> RowFormat:
    """The rows of a reward model under a template."""
    windows = template.windows
    trees = (
        (gap(), gap_scoring(2, identity=True, swapped=True)[0]) if reads == "gap" else (quality(), rollout(3, False))
    )
    return RowFormat(
        closings=template.closings,
        pad=template.pad,
        content=content_of(template.tokenizer),
        longest=(windows[0] - 1, windows[1] - 1, windows[2] - 1),
        topologies=trees,
        trained=trees[0],
        reads_reference=reads == "gap",
    )


def content_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """Least and greatest id of the longest stretch of token ids without role tokens."""
    edges = sorted({-1, *tokenizer.role_ids.values(), tokenizer.vocab_size})
    before, after = max(itertools.pairwise(edges), key=lambda pair: pair[1] - pair[0])
    return before + 1, after - 1
