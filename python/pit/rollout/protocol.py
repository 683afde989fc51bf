"""The interfaces of samplers and scorers: what RL, evaluation and improvement ask of whatever draws or scores answers.

`pit.rollout.sample.Sampler` is PIT's own. Another one, such as an engine in another process that holds weights of its
own, is a class with these two methods; docs/rollouts.md says how weights reach it.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.config import GapForm
from pit.data.tokens import Sequences, Tokens
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rollout.sample import Ids, Samples
from pit.rollout.strategy import Strategy


@runtime_checkable
class SamplerProtocol(Protocol):
    """A sampler of the answers of any of a run's models.

    A sample is a function of the model's version, its prefix, its id, its number and the seed. Contents of inputs and
    references come without closing tokens, which are the sampler's to add, as `Template.closings` has them.
    """

    @property
    def capacity(self) -> int:
        """Most tokens of a sample, the EOS included."""

    def samples(
        self,
        model: Model[Decoder],
        ids: Ids,
        inputs: Sequences,
        references: Sequences | None = None,
        *,
        n: int,
        strategy: Strategy,
        seed: int,
    ) -> Samples:
        """Draw n samples of every prefix: the input, or the input and its reference.

        A sampler that holds weights of its own takes over those of `model` before it draws, unless it has its version.

        Args:
            model: the policy, or with references the improver.
            ids: id of each prompt, below 2^32.
            inputs: contents of x.
            references: contents of the references, None for the policy.
            n: samples per prefix.
            strategy: choice of each token.
            seed: root of the random numbers, below 2^64.

        Returns:
            Tokens, lengths, whether each sample ended in the template's EOS, the log-prob of each token under the model
            and under the distribution that it was drawn from, and the version of the weights that drew them.
        """

    def answers(
        self,
        model: Model[Decoder],
        ids: Ids,
        inputs: Sequences,
        references: Sequences | None = None,
        *,
        strategy: Strategy | float,
        seed: int,
    ) -> Tokens:
        """Draw one answer of every prefix, as the conversation after it shows it; a number is a temperature."""


@runtime_checkable
class GapScorer(Protocol):
    """A scorer of gaps, such as `pit.rollout.score.Scorer`."""

    def gap(
        self, inputs: Sequences, references: Sequences, outputs: Sequence[Sequences], form: GapForm
    ) -> Float32[np.ndarray, "G N"]:
        """Return the gap of N outputs over the reference of each input; `outputs[n][g]`."""


@runtime_checkable
class QualityScorer(Protocol):
    """A scorer of single answers, such as `pit.rollout.score.ModelScorer`."""

    def quality(self, inputs: Sequences, outputs: Sequence[Sequences]) -> Float32[np.ndarray, "G N"]:
        """Return r_P(x, y) of N outputs of each input; `outputs[n][g]`."""
