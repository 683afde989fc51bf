"""PIT's policies as scorers with one method, `draw`: their samples, and the log-probs that a trainer computes.

The invariants of `pit.testing.invariants.draws` compare the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
from pit.rollout.strategy import sampling
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.testing.checkpoint import content_of
from pit.testing.scorers import HALF_ROUNDING, ROUNDING
from pit.types import Batch


@dataclass(frozen=True)
class DrawFormat:
    """The tokens that a policy reads and writes.

    closing: tokens that end a prompt.
    eos: token that ends an answer.
    content: smallest and largest id of a content token of a prompt.
    longest: maximum content tokens of a prompt.
    capacity: maximum tokens of an answer, EOS included.
    prefixes: prompts per call, a static shape.
    filters: whether `draw` takes filters.
    """

    closing: tuple[int, ...]
    eos: int
    content: tuple[int, int]
    longest: int
    capacity: int
    prefixes: int = 4
    filters: bool = False


@runtime_checkable
class Sampler(Protocol):
    """A policy under test."""

    format: DrawFormat

    def draw(self, prompts: Sequence[Sequence[int]], temperature: float, seed: int) -> Samples:
        """Return two samples per prompt, with their log-probs in nats; prompts include the closing tokens.

        Where the format says so, there is a fourth argument, the numbers of filters by name (see
        `pit.rollout.strategy.FILTERS`).
        """

    def logprob_rows(self, batch: Batch, temperature: float) -> Float32[np.ndarray, "R T"]:
        """Return the log-prob of each token of packed rows as the trainer computes it, in nats."""


class PolicyScorer:
    """A sampler made of a PIT decoder and its weights.

    Args:
        graphdef: graph definition of a `Decoder`.
        params: its weights.
        format: the tokens that it reads and writes.
    """

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
        """Load the policy or improver of a finished stage.

        Args:
            folder: folder of the run.
            stage: the stage.

        Raises:
            ConfigError: the folder does not hold a run.
            CheckpointError: the stage has not finished.
        """
        run = Run.open(folder)
        model = stage.load(run)
        return cls(model.graphdef, model.params, draw_format(run.template))

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        temperature: float,
        seed: int,
        filters: Mapping[str, float] = MappingProxyType({}),
    ) -> Samples:
        """Return two samples per prompt."""
        form = self.format
        return sample(
            Model(self._graphdef, self._params),
            prompts,
            list(range(len(prompts))),
            n=2,
            capacity=form.capacity,
            strategy=sampling(temperature, **filters),
            eos_ids=(form.eos,),
            seed=seed,
        )

    def logprob_rows(self, batch: Batch, temperature: float) -> Float32[np.ndarray, "R T"]:
        """Return the log-prob of each token given the path before it, in nats."""
        rows = {name: getattr(batch, name) for name in ("token", "position", "visible_until", "previous")}
        logp: np.ndarray = np.asarray(self._read(self._params, rows, temperature=temperature))
        return logp


def draw_format(template: Template) -> DrawFormat:
    """Return the format of a policy's tokens under a template."""
    return DrawFormat(
        closing=template.closings.input,
        eos=template.closings.eos,
        content=content_of(template),
        longest=template.longest[0],
        capacity=template.capacity,
        filters=True,
    )
