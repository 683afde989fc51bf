"""PIT's reward models as scorers with every method: text, packed rows, loss and gradients.

`RowModelScorer` reads packed rows and needs no tokenizer; `CheckpointScorer` adds text, for a stage of a run.
"""

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
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.rollout.score import ModelScorer
from pit.run.folder import Run
from pit.run.stage import REWARD_MODEL
from pit.stages.graph import STAGES, stage_named
from pit.stages.reward import gap_loss, quality_loss
from pit.testing.errors import CheckError
from pit.testing.rows import RowFormat, RowGradients
from pit.testing.scorers import HALF_ROUNDING, ROUNDING, Prompt
from pit.types import Batch, SegmentKind

RewardKind = Literal["gap", "quality"]
"""R_PIT, which reads a reference, or R_P, which does not."""

_EMBEDDING = "decoder.embedding"

_TEXT_ROWS, _TEXT_TREES = 8, 64
"""Rows (of twice the longest path) and tree slots per batch for text; small, because most calls hold a few items."""


class RowModelScorer:
    """A row scorer made of a PIT reward model and its weights.

    Args:
        graphdef: graph definition of a `RewardModel`.
        params: its weights.
        format: the tokens and trees that it reads.
    """

    def __init__(self, graphdef: nnx.GraphDef[Any], params: Params, format: RowFormat) -> None:
        loss = (gap_loss if format.reads_reference else quality_loss)(graphdef)

        def score(params: Params, token: Array, position: Array, visible_until: Array, leaf: Array) -> Array:
            scores: Array = merge(graphdef, params)(token, position, visible_until, leaf)
            return scores

        def weighted(params: Params, places: Array, batch: dict[str, Array], weight: Array) -> Array:
            # An embedding table with one entry per place of the rows, so that its gradient is per place.
            by_place = {**params, _EMBEDDING: places}
            token = jnp.arange(batch["token"].size, dtype=jnp.int32).reshape(batch["token"].shape)
            return jnp.sum(score(by_place, token, batch["position"], batch["visible_until"], batch["leaf"]) * weight)

        def gradients(params: Params, batch: dict[str, Array], weight: Array) -> tuple[Params, Array]:
            places = params[_EMBEDDING][batch["token"].reshape(-1)]
            by_name, by_place = jax.grad(weighted, argnums=(0, 1))(params, places, batch, weight)
            table = jnp.zeros_like(params[_EMBEDDING]).at[batch["token"].reshape(-1)].add(by_place)
            return {**by_name, _EMBEDDING: table}, by_place.reshape(*batch["token"].shape, -1)

        self.format, self._params = format, params
        half = merge(graphdef, params).decoder.config.compute_dtype != "float32"
        self.rounding = HALF_ROUNDING if half else ROUNDING
        self._score, self._gradients = jax.jit(score), jax.jit(gradients)
        self._loss = jax.jit(lambda params, batch: loss(params, batch)[0])

    def score_rows(self, batch: Batch) -> Float32[np.ndarray, "G L"]:
        """Return the score of each leaf."""
        rows = batch.token, batch.position, batch.visible_until, batch.leaf
        scores: np.ndarray = np.asarray(self._score(self._params, *rows))
        return scores

    def loss_rows(self, batch: Batch) -> tuple[float, float]:
        """Return (sum, weight) of the stage's training loss; the weight is the number of trees."""
        total = self._loss(self._params, _arrays(batch))
        return float(total.sum), float(total.weight)

    def grad_rows(self, batch: Batch, weight: Float32[np.ndarray, "G L"]) -> RowGradients:
        """Return the gradient of sum(weight * score)."""
        parameters, places = jax.device_get(self._gradients(self._params, _arrays(batch), jnp.asarray(weight)))
        return RowGradients(parameters, places)


def _arrays(batch: Batch) -> dict[str, Array]:
    names = ("token", "position", "visible_until", "leaf")
    return {name: jnp.asarray(getattr(batch, name)) for name in names}


class CheckpointScorer(RowModelScorer):
    """A scorer with every method, made of a PIT reward model and its template (tokenizer and windows).

    The gap of R_PIT is the raw score r(y, ref), whose offset is arbitrary; `centred` removes it. The gap of R_P is the
    difference of two scores.

    Args:
        graphdef: graph definition of a `RewardModel`.
        params: its weights.
        template: tokenizer, closing tokens and windows.
        kind: whether the model is R_PIT ("gap") or R_P ("quality").
    """

    def __init__(self, graphdef: nnx.GraphDef[Any], params: Params, template: Template, kind: RewardKind) -> None:
        super().__init__(graphdef, params, row_format(template, kind))
        layout = replace(self.format.wide, rows=_TEXT_ROWS, trees=_TEXT_TREES)
        self._scorer, self._template, self._kind = ModelScorer(Model(graphdef, params), layout), template, kind

    @classmethod
    def open(cls, folder: Path, stage: str = "reward-gap") -> "CheckpointScorer":
        """Load the reward model of a finished stage.

        Args:
            folder: folder of the run.
            stage: name of the stage.

        Raises:
            CheckError: the stage does not train a reward model.
            ConfigError: the folder does not hold a run.
            CheckpointError: the stage has not finished.
        """
        named = stage_named(stage)
        if named is None or named.trains != REWARD_MODEL:
            rewards = ", ".join(stage.name for stage in STAGES if stage.trains == REWARD_MODEL)
            raise CheckError(f"--stage {stage}: is not a reward model of {folder}; give one of {rewards}")
        run = Run.open(folder)
        model, kinds = named.load(run), {segment.kind for segment in named.topology(run.config).segments}
        kind: RewardKind = "gap" if SegmentKind.REFERENCE in kinds else "quality"
        return cls(model.graphdef, model.params, run.template, kind)

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Return the raw gap of R_PIT, or the difference of two scores of R_P."""
        return self._score_text(prompts, outputs, references, "raw")

    def centred(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Return the gap without its offset: 0 for an answer over itself."""
        return self._score_text(prompts, outputs, references, "centred")

    def encode(self, prompt: Prompt, output: str, reference: str) -> tuple[list[int], list[int], list[int]]:
        """Return the token contents of prompt, output and reference, truncated to the run's windows."""
        template = self._template
        return template.encode_prompt(prompt), template.encode_answer(output), template.encode_answer(reference)

    def _score_text(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str], form: GapForm
    ) -> Float32[np.ndarray, " n"]:
        if not prompts:
            return np.zeros(0, np.float32)
        encoded: dict[str, list[int]] = {}
        for text in (*outputs, *references):
            if text not in encoded:
                encoded[text] = self._template.encode_answer(text)
        xs = [self._template.encode_prompt(prompt) for prompt in prompts]
        ys, refs = [encoded[text] for text in outputs], [encoded[text] for text in references]
        if self._kind == "quality":
            return self._scorer.difference(xs, refs, [ys])[:, 0]
        return self._scorer.gap(xs, refs, [ys], form)[:, 0]


def row_format(template: Template, kind: RewardKind) -> RowFormat:
    """Return the format of the rows that a reward model reads under a template."""
    trees = (gap(), gap_scoring(2, identity=True, swapped=True)[0]) if kind == "gap" else (quality(), rollout(3, False))
    return RowFormat(
        closings=template.closings,
        pad=template.pad,
        content=content_of(template),
        longest=template.longest,
        topologies=trees,
        trained=trees[0],
        reads_reference=kind == "gap",
    )


def content_of(template: Template) -> tuple[int, int]:
    """Return the smallest and largest id of the longest range of token ids without special tokens."""
    edges = sorted({-1, *template.special_ids, template.tokenizer.vocab_size})
    before, after = max(itertools.pairwise(edges), key=lambda pair: pair[1] - pair[0])
    return before + 1, after - 1
