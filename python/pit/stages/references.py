"""The prefixes of an RL step: inputs and, for the improver, references from the data, from M_P^RL, or from improvers.

Answers of M_P^RL are sampled at the temperature of use. From RL,1 on they may be rewritten, as at inference, by the
improver of the stage before, so that later iterations meet references of the kind that they were trained on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from pit.config import RlConfig, RolloutConfig, derived_seed
from pit.data.store import Fold
from pit.model.params import Params
from pit.rollout.sample import Samples, sample
from pit.rollout.strategy import Strategy, strategy_at
from pit.types import Source

Model = tuple[nnx.GraphDef[Any], Params]

_COLUMN = {Source.BETTER: 1, Source.WORSE: 2}


class Prompts(NamedTuple):
    """Prefixes of a step. ids: rows of the fold; inputs: contents of x; references: contents, None for the policy."""

    ids: list[int]
    inputs: list[list[int]]
    references: list[list[int]] | None


def prefixes(prompts: Prompts, closings: tuple[int, int, int]) -> list[list[int]]:
    """x, or x and its reference, each with its closing role token."""
    inputs = [[*x, closings[0]] for x in prompts.inputs]
    if prompts.references is None:
        return inputs
    return [[*x, *ref, closings[1]] for x, ref in zip(inputs, prompts.references, strict=True)]


class Sampling(NamedTuple):
    """What all samples of a stage share: closing role tokens, the most tokens of an answer, and how they are drawn."""

    closings: tuple[int, int, int]
    capacity: int
    rollout: RolloutConfig

    def draw(self, model: Model, prompts: Prompts, n: int, strategy: Strategy, seed: int) -> Samples:
        """Sample n answers of every prefix."""
        return sample(
            *model,
            prefixes(prompts, self.closings),
            prompts.ids,
            n=n,
            capacity=self.capacity,
            strategy=strategy,
            eos_ids=(self.closings[2],),
            seed=seed,
            config=self.rollout,
        )

    def answers(self, model: Model, prompts: Prompts, temperature: float, seed: int) -> list[list[int]]:
        """One answer of every prefix; greedy at temperature 0."""
        drawn = self.draw(model, prompts, 1, strategy_at(temperature), seed)
        return [drawn.answer(g, 0) for g in range(len(prompts.ids))]


class References:
    """Where the references of a stage come from.

    Args:
        config: of the stage.
        sampling: what samples share.
        policy: M_P^RL, None where no reference is asked of it.
        improver: rewrites its answers, None where none is asked to.
    """

    def __init__(self, config: RlConfig, sampling: Sampling, policy: Model | None, improver: Model | None) -> None:
        self._config, self._sampling, self._policy, self._improver = config, sampling, policy, improver
        given = config.reference_temperature
        self._temperature = config.temperature if given is None else given

    def of(self, fold: Fold, ids: list[int], sources: Sequence[int], seed: int) -> Prompts:
        """The inputs of some rows, each with a reference from its source."""
        rows = [fold.row(i) for i in ids]
        inputs = [[int(t) for t in row[0]] for row in rows]
        references = [
            [int(t) for t in row[_COLUMN[Source(source)]]] if source != Source.POLICY else []
            for row, source in zip(rows, sources, strict=True)
        ]
        if self._policy is not None and Source.POLICY in sources:
            plain = Prompts(ids, inputs, None)
            written = self._sampling.answers(self._policy, plain, self._temperature, seed)
            if self._improver is not None:
                written = self._rewritten(self._improver, plain._replace(references=written), seed)
            references = [
                own if source == Source.POLICY else given
                for own, given, source in zip(written, references, sources, strict=True)
            ]
        return Prompts(ids, inputs, references)

    def _rewritten(self, improver: Model, prompts: Prompts, seed: int) -> list[list[int]]:
        """The references after as many passes as were drawn for each; all go through each pass, for equal shapes."""
        passes = passes_of(prompts.ids, self._config.passes, seed)
        assert prompts.references is not None
        references = prompts.references
        for number in range(1, max(passes) + 1):
            asked, own = prompts._replace(references=references), derived_seed(seed, f"pass {number}")
            drawn = self._sampling.answers(improver, asked, self._temperature, own)
            references = [
                new if number <= count else old for new, old, count in zip(drawn, references, passes, strict=True)
            ]
        return references


def passes_of(ids: Sequence[int], between: tuple[int, int], seed: int) -> list[int]:
    """Passes of each reference, uniform in [low, high]: a function of the seed and the example alone."""
    low, high = between
    root = derived_seed(seed, "passes")
    return [int(np.random.default_rng((root, i)).integers(low, high + 1)) for i in ids]
