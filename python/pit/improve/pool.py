"""The answers that were made for a batch of prompts, and their order by R_P, by a round-robin of gaps, or by both.

A round-robin lets every answer meet every other one: its score is its mean symmetric gap over them. Equal answers to a
prompt are compared once.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from pit.config import Rank
from pit.data.tokens import Tokens
from pit.rollout.protocol import GapScorer, QualityScorer


def round_robin(gaps: Float64[np.ndarray, "m m"]) -> Float64[np.ndarray, " m"]:
    """Return the mean gap of each answer over the others; `gaps[i, j]` is that of i over j.

    >>> round_robin(np.array([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]])).tolist()
    [1.5, 0.0, -1.5]
    """
    others = max(len(gaps) - 1, 1)
    return np.asarray((gaps.sum(axis=1) - np.diag(gaps)) / others, np.float64)


def standardised(scores: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """Return the scores less their mean, over their standard deviation; 0 where all are equal.

    >>> standardised(np.array([1.0, 3.0])).tolist(), standardised(np.array([2.0, 2.0])).tolist()
    ([-1.0, 1.0], [0.0, 0.0])
    """
    if np.all(scores == scores[0]):
        return np.zeros_like(scores)
    return np.asarray((scores - scores.mean()) / scores.std(), np.float64)


class Pool:
    """Answers to n prompts, in the order in which they were made; every prompt has equally many.

    Args:
        prompts: contents of x.
        first: contents of y0.
        scorer: the gap.
        quality: R_P, None where no order asks for it.
    """

    def __init__(self, prompts: Tokens, first: Tokens, scorer: GapScorer, quality: QualityScorer | None) -> None:
        self._prompts, self._scorer, self._reward_model = prompts, scorer, quality
        self._columns: list[Tokens] = []
        self._quality: list[Float32[np.ndarray, " n"]] = []
        # Different answers to each prompt, the number of each, and the gaps between them that are known.
        self._texts: list[list[np.ndarray]] = [[] for _ in prompts]
        self._number: list[dict[bytes, int]] = [{} for _ in prompts]
        self._of_column: list[list[int]] = [[] for _ in prompts]
        self._gaps: list[dict[tuple[int, int], float]] = [{} for _ in prompts]
        self.add([first])

    def __len__(self) -> int:
        return len(self._columns)

    def add(self, columns: Sequence[Tokens]) -> None:
        """Take the next answers to every prompt."""
        for column in columns:
            self._columns.append(column)
            for row, answer in enumerate(column):
                texts, number = self._texts[row], self._number[row].setdefault(answer.tobytes(), len(self._texts[row]))
                if number == len(texts):
                    texts.append(answer)
                self._of_column[row].append(number)

    def pick(self, numbers: Int64[np.ndarray, " n"]) -> Tokens:
        """Return one answer to every prompt, by its number in the pool."""
        return Tokens.of([self._columns[number][row] for row, number in enumerate(numbers)])

    def quality(self) -> Float32[np.ndarray, "n m"]:
        """Return R_P of all answers.

        Raises:
            ValueError: there is no R_P.
        """
        if self._reward_model is None:
            raise ValueError("quality = None: R_P takes part in this choice; load the models for its config")
        new = self._columns[len(self._quality) :]
        if new:
            self._quality += list(self._reward_model.quality(self._prompts, new).T)
        return np.stack(self._quality, axis=1)

    def scores(self, rank: Rank, among: Bool[np.ndarray, "n m"]) -> Float64[np.ndarray, "n m"]:
        """Return the score of the answers that compete, minus infinity for the others; more is better.

        Args:
            rank: R_P, the round-robin, or the sum of both, standardised over the answers that compete for a prompt.
            among: which answers compete.
        """
        if rank != "quality":
            self._compare(among)
        quality = self.quality().astype(np.float64) if rank != "gap" else None
        result = np.full(among.shape, -np.inf)
        for row, competing in enumerate(among):
            columns = np.flatnonzero(competing)
            tables = [] if quality is None else [quality[row, columns]]
            if rank != "quality":
                tables.append(round_robin(self._table(row, columns)))
            result[row, columns] = tables[0] if rank != "both" else sum(map(standardised, tables))
        return result

    def best(self, rank: Rank, among: Bool[np.ndarray, "n m"]) -> Int64[np.ndarray, " n"]:
        """Return the number of the best answer that competes for each prompt, the first one at ties."""
        return np.asarray(self.scores(rank, among).argmax(axis=1), np.int64)

    def _table(self, row: int, columns: Int64[np.ndarray, " m"]) -> Float64[np.ndarray, "m m"]:
        numbers, gaps = [self._of_column[row][column] for column in columns], self._gaps[row]

        def over(a: int, b: int) -> float:
            if a == b:
                return 0.0
            return gaps[a, b] if a < b else -gaps[b, a]

        return np.array([[over(a, b) for b in numbers] for a in numbers], np.float64)

    def _compare(self, among: Bool[np.ndarray, "n m"]) -> None:
        """Score the pairs of different answers that compete and have not met."""
        pairs = []
        for row, competing in enumerate(among):
            numbers = sorted({self._of_column[row][column] for column in np.flatnonzero(competing)})
            every = [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1 :]]
            pairs += [(row, a, b) for a, b in every if (a, b) not in self._gaps[row]]
        if not pairs:
            return
        inputs = self._prompts.take([row for row, _, _ in pairs])
        ones = Tokens.of([self._texts[row][a] for row, a, _ in pairs])
        others = Tokens.of([self._texts[row][b] for row, _, b in pairs])
        gaps = self._scorer.gap(inputs, others, [ones], "symmetric")[:, 0]
        for (row, a, b), gap in zip(pairs, gaps.tolist(), strict=True):
            self._gaps[row][a, b] = gap
