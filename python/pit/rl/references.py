"""References of the improver's RL: from the data, from M_P^RL, or its answers rewritten by an improver.

Answers of M_P^RL are sampled at the temperature of use. From RL,1 on the improver of the stage before may rewrite them,
as at inference, so that later stages meet references of the kind that they will meet in use.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from pit.config import ImproverRlConfig, Passes
from pit.data.store import Fold
from pit.data.tokens import Tokens
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rl.records import Prompts
from pit.rollout.protocol import SamplerProtocol
from pit.seeds import Seed
from pit.types import Source


class References:
    """Maker of references.

    Args:
        config: section of the stage.
        sampler: sampler of answers.
        writer: M_P^RL, None where no reference comes from it.
        rewriter: improver that rewrites its answers, None where none does.
        passes: number of its passes.
    """

    def __init__(
        self,
        config: ImproverRlConfig,
        sampler: SamplerProtocol,
        writer: Model[Decoder] | None,
        rewriter: Model[Decoder] | None = None,
        passes: Passes | None = None,
    ) -> None:
        self._sampler, self._writer, self._rewriter = sampler, writer, rewriter
        self._passes = passes or Passes()
        given = config.reference_temperature
        self._temperature = config.temperature if given is None else given

    def __call__(
        self, fold: Fold, ids: Int64[np.ndarray, " G"], sources: UInt8[np.ndarray, " G"], seed: Seed
    ) -> Prompts:
        """Return the inputs of some rows, each with a reference from its source."""
        inputs, better, worse = fold.columns(ids.tolist())
        references = worse.where(sources == Source.WORSE, better)
        by_policy = sources == Source.POLICY
        if self._writer is not None and by_policy.any():
            written = self._sampler.answers(
                self._writer, ids, inputs, strategy=self._temperature, seed=seed.of("writer").number
            )
            if self._rewriter is not None:
                written = self._rewritten(self._rewriter, ids, inputs, written, seed)
            references = written.where(by_policy, references)
        return Prompts(ids, inputs, references)

    def _rewritten(
        self, rewriter: Model[Decoder], ids: Int64[np.ndarray, " G"], inputs: Tokens, written: Tokens, seed: Seed
    ) -> Tokens:
        """Return the references after each one's number of passes; all go through every pass, for equal shapes."""
        count = np.array(passes_of(ids, self._passes, seed.of("passes")))
        for number in range(1, int(count.max()) + 1):
            once_more = self._sampler.answers(
                rewriter, ids, inputs, written, strategy=self._temperature, seed=seed.of("pass", number).number
            )
            written = once_more.where(number <= count, written)
        return written


def passes_of(ids: Sequence[int] | np.ndarray, passes: Passes, seed: Seed) -> list[int]:
    """Return the number of passes of each reference, uniform in [least, most], from the seed and the example alone."""
    return [int(np.random.default_rng((seed.number, int(i))).integers(passes.least, passes.most + 1)) for i in ids]
