"""References of the improver's RL: from the data, from M_P^RL, or its answers rewritten by an improver.

Answers of M_P^RL are sampled at the temperature of use, and the best of several drafts may be taken. From RL,1 on the
improver of the stage before may rewrite them, as at inference, so that later stages meet references of the kind that
they will meet in use.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from pit.config import ImproverRlConfig, Passes
from pit.data.store import Fold
from pit.data.tokens import Tokens
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rl.records import Answers, Prompts
from pit.rl.reward import Reward
from pit.rollout.protocol import SamplerProtocol
from pit.rollout.strategy import sampling
from pit.seeds import Seed
from pit.types import Source


class Judges(NamedTuple):
    """Rewards that choose references.

    drafts: ranks the drafts of a reference; None where there is one each.
    passes: gap of a pass over the answer before it; None where every pass is kept.
    """

    drafts: Reward | None = None
    passes: Reward | None = None


NO_JUDGES = Judges()


class References:
    """Maker of references.

    Args:
        config: section of the stage.
        sampler: sampler of answers.
        writer: M_P^RL, None where no reference comes from it.
        rewriter: improver that rewrites its answers, None where none does.
        passes: number of its passes, and the gap that keeps one.
        judges: choose drafts and passes.
    """

    # Six parameters: a section, three models, and the rules.
    def __init__(
        self,
        config: ImproverRlConfig,
        sampler: SamplerProtocol,
        writer: Model[Decoder] | None,
        rewriter: Model[Decoder] | None = None,
        passes: Passes | None = None,
        judges: Judges = NO_JUDGES,
    ) -> None:
        self._sampler, self._writer, self._rewriter = sampler, writer, rewriter
        self._passes, self._judges = passes or Passes(), judges
        self._drafts, self._own_share = config.drafts, config.own_share
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
            written = self._written(self._writer, ids, inputs, seed.of("writer"))
            if self._rewriter is not None:
                written = self._rewritten(self._rewriter, ids, inputs, written, seed)
            references = written.where(by_policy, references)
        return Prompts(ids, inputs, references)

    def _written(self, writer: Model[Decoder], ids: Int64[np.ndarray, " G"], inputs: Tokens, seed: Seed) -> Tokens:
        """Return an answer of M_P^RL to each input, the best of its drafts; the first of equals."""
        if self._judges.drafts is None:
            return self._sampler.answers(writer, ids, inputs, strategy=self._temperature, seed=seed.number)
        strategy = sampling(self._temperature)
        samples = self._sampler.samples(writer, ids, inputs, n=self._drafts, strategy=strategy, seed=seed.number)
        drafts = samples.answers()
        best = self._judges.drafts(Answers(inputs, None, drafts)).argmax(axis=1)
        return Tokens.of([drafts[n][g] for g, n in enumerate(best.tolist())])

    def _rewritten(
        self, rewriter: Model[Decoder], ids: Int64[np.ndarray, " G"], inputs: Tokens, written: Tokens, seed: Seed
    ) -> Tokens:
        """Return the references after each one's number of passes; all go through every pass, for equal shapes."""
        count = np.array(passes_of(ids, self._passes, seed.of("passes")))
        if self._own_share < 1:
            count *= own_of(ids, self._own_share, seed.of("own"))
        for number in range(1, int(count.max()) + 1):
            once_more = self._sampler.answers(
                rewriter, ids, inputs, written, strategy=self._temperature, seed=seed.of("pass", number).number
            )
            kept = number <= count
            if self._judges.passes is not None:
                gap = self._judges.passes(Answers(inputs, written, [once_more]))[:, 0]
                kept &= gap > self._passes.threshold
            written = once_more.where(kept, written)
        return written


def own_of(ids: Sequence[int] | np.ndarray, share: float, seed: Seed) -> Bool[np.ndarray, " G"]:
    """Return which references go through passes: each with that chance, from the seed and the example alone."""
    return np.array([np.random.default_rng((seed.number, int(i))).random() < share for i in ids], bool)


def passes_of(ids: Sequence[int] | np.ndarray, passes: Passes, seed: Seed) -> list[int]:
    """Return the number of passes of each reference, uniform in [least, most], from the seed and the example alone."""
    return [int(np.random.default_rng((seed.number, int(i))).integers(passes.least, passes.most + 1)) for i in ids]
