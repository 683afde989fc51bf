"""Samplers and scorers that remember: many searches over the same prompts make, and score, the same answers.

A sample is a function of the model's version, its prefix, its id and the seed, and a score one of the texts, so that
what is remembered is what would be made again.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from pit.config import GapForm
from pit.data.tokens import Sequences, Tokens
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rollout.protocol import GapScorer, QualityScorer, SamplerProtocol
from pit.rollout.sample import Ids, Samples
from pit.rollout.strategy import Strategy


def recalled(
    memory: dict[Hashable, Any], keys: Sequence[Hashable], make: Callable[[list[int]], Sequence[Any]]
) -> list[Any]:
    """Return the value of every key, making those that are not remembered, each once.

    Args:
        memory: the values so far.
        keys: the keys.
        make: returns the values of the keys at some places, in their order.
    """
    missing = list({key: place for place, key in reversed(list(enumerate(keys))) if key not in memory}.values())[::-1]
    if missing:
        memory.update(zip([keys[place] for place in missing], make(missing), strict=True))
    return [memory[key] for key in keys]


def _bytes(column: Sequences) -> list[bytes]:
    return [sequence.tobytes() for sequence in Tokens.of(column)]


class RememberedSampler:
    """A sampler that draws every answer once (`pit.rollout.protocol.SamplerProtocol`)."""

    def __init__(self, sampler: SamplerProtocol) -> None:
        self._sampler, self._answers = sampler, dict[Hashable, Any]()

    @property
    def capacity(self) -> int:
        """Most tokens of a sample, the EOS included."""
        return self._sampler.capacity

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
        """Draw n samples of every prefix, which are not remembered."""
        return self._sampler.samples(model, ids, inputs, references, n=n, strategy=strategy, seed=seed)

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
        """Return one answer of every prefix."""
        xs, numbers = Tokens.of(inputs), [int(i) for i in ids]
        refs = None if references is None else Tokens.of(references)
        read = [None] * len(xs) if refs is None else _bytes(refs)
        purpose = (model.version, strategy, seed)
        keys: list[Hashable] = [(purpose, *key) for key in zip(numbers, _bytes(xs), read, strict=True)]

        def make(places: list[int]) -> Tokens:
            reference = None if refs is None else refs.take(places)
            asked = [numbers[place] for place in places]
            return self._sampler.answers(model, asked, xs.take(places), reference, strategy=strategy, seed=seed)

        return Tokens.of(recalled(self._answers, keys, make))


class _RememberedScores:
    """Scores of answers by what they are scored for: each text once."""

    def __init__(self) -> None:
        self._scores: dict[Hashable, Any] = {}

    def of(
        self,
        purpose: Sequence[Hashable],
        outputs: Sequence[Sequences],
        score: Callable[[list[int], Tokens], Float32[np.ndarray, "m 1"]],
    ) -> Float32[np.ndarray, "G N"]:
        """Return the scores of N outputs of each row; `outputs[n][g]`.

        Args:
            purpose: what else a score depends on, by row.
            outputs: the answers.
            score: returns the scores of one answer to each of some rows.
        """
        columns = [Tokens.of(column) for column in outputs]
        texts = [_bytes(column) for column in columns]
        places = [(row, column) for row in range(len(purpose)) for column in range(len(columns))]
        keys: list[Hashable] = [(purpose[row], texts[column][row]) for row, column in places]

        def make(missing: list[int]) -> list[float]:
            rows, numbers = zip(*(places[place] for place in missing), strict=True)
            answers = Tokens.of([columns[column][row] for row, column in zip(rows, numbers, strict=True)])
            scores: list[float] = score(list(rows), answers)[:, 0].tolist()
            return scores

        return np.array(recalled(self._scores, keys, make), np.float32).reshape(len(purpose), len(columns))


class RememberedGap:
    """A scorer of gaps that scores every pair once (`pit.rollout.protocol.GapScorer`)."""

    def __init__(self, scorer: GapScorer) -> None:
        self._scorer, self._gaps = scorer, _RememberedScores()

    def gap(
        self, inputs: Sequences, references: Sequences, outputs: Sequence[Sequences], form: GapForm
    ) -> Float32[np.ndarray, "G N"]:
        """Return the gap of N outputs over the reference of each input; `outputs[n][g]`."""
        xs, refs = Tokens.of(inputs), Tokens.of(references)
        purpose = [(form, x, ref) for x, ref in zip(_bytes(xs), _bytes(refs), strict=True)]
        return self._gaps.of(
            purpose, outputs, lambda rows, answers: self._scorer.gap(xs.take(rows), refs.take(rows), [answers], form)
        )


class RememberedQuality:
    """A scorer of answers that scores every answer once (`pit.rollout.protocol.QualityScorer`)."""

    def __init__(self, scorer: QualityScorer) -> None:
        self._scorer, self._qualities = scorer, _RememberedScores()

    def quality(self, inputs: Sequences, outputs: Sequence[Sequences]) -> Float32[np.ndarray, "G N"]:
        """Return r_P(x, y) of N outputs of each input; `outputs[n][g]`."""
        xs = Tokens.of(inputs)
        return self._qualities.of(
            _bytes(xs), outputs, lambda rows, answers: self._scorer.quality(xs.take(rows), [answers])
        )
