"""PIT's policies as scorers of one level: what is drawn, and what a trainer says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

from pit.data.template import Template
from pit.model.heads import row_logprobs
from pit.model.model import Model
from pit.model.params import Params, merge
from pit.rollout.sample import Samples, sample
from pit.rollout.strategy import strategy_at
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.testing.checkpoint import content_of
from pit.testing.scorers import HALF_ROUNDING, ROUNDING
from pit.types import Batch


@dataclass(frozen=True)
class DrawFormat:
    """The tokens that a policy reads and writes.

    closing: token that ends the prompt; eos: the one that ends an answer.
    content: least and greatest id of a content token of a prompt.
    longest: most content tokens of a prompt; capacity: most tokens of an answer, its eos included.
    prefixes: prompts of a call, a static shape.
    """

    closing: int
    eos: int
    content: tuple[int, int]
    longest: int
    capacity: int
    prefixes: int = 4


@runtime_checkable
class Sampler(Protocol):
    """What is asked of a policy.

    draw(prompts, temperature, seed): two samples of each prompt (closing token included), with the log-probs recorded.
    logprob_rows(batch, temperature): log-prob of each token of packed rows as the trainer computes it, nats.
    """

    format: DrawFormat

    def draw(self, prompts: Sequence[Sequence[int]], temperature: float, seed: int) -> Samples:
        """Samples."""

    def logprob_rows(self, batch: Batch, temperature: float) -> Float32[np.ndarray, "R T"]:
        """Log-probs."""


class PolicyScorer:
    """A PIT decoder and its weights."""

    def __init__(self, graphdef: nnx.GraphDef[Any], params: Params, format: DrawFormat) -> None:
        def read(params: Params, rows: dict[str, Array], temperature: float) -> Array:
            model = merge(graphdef, params)
            logp: Array = row_logprobs(model, **rows, temperature=temperature)
            return logp

        self.format, self._graphdef, self._params = format, graphdef, params
        half = merge(graphdef, params).config.compute_dtype != "float32"
        self.rounding = HALF_ROUNDING if half else ROUNDING
        self._read = jax.jit(read, static_argnames="temperature")

    @classmethod
    def open(cls, folder: Path, stage: Stage) -> "PolicyScorer":
        """The policy (or improver) of a finished stage of a run.

        Raises:
            ConfigError, CheckpointError: no run is there, or the stage has not finished.
        """
        run = Run.open(folder)
        model = stage.load(run)
        return cls(model.graphdef, model.params, draw_format(run.template))

    def draw(self, prompts: Sequence[Sequence[int]], temperature: float, seed: int) -> Samples:
        """Two samples of each prompt."""
        form = self.format
        return sample(
            Model(self._graphdef, self._params),
            prompts,
            list(range(len(prompts))),
            n=2,
            capacity=form.capacity,
            strategy=strategy_at(temperature),
            eos_ids=(form.eos,),
            seed=seed,
        )

    def logprob_rows(self, batch: Batch, temperature: float) -> Float32[np.ndarray, "R T"]:
        """Log-prob of each token given its own path."""
        rows = {name: getattr(batch, name) for name in ("token", "position", "visible_until", "previous")}
        logp: np.ndarray = np.asarray(self._read(self._params, rows, temperature=temperature))
        return logp


def draw_format(template: Template) -> DrawFormat:
    """The tokens of a policy under a template."""
    return DrawFormat(
        closing=template.closings[0],
        eos=template.closings[2],
        content=content_of(template.tokenizer),
        longest=template.windows[0] - 1,
        capacity=template.windows[2] - 1,
    )
