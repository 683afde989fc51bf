"""A small search for a good answer: draws of the policy, passes of the improver over them, and a choice among all.

Passes repair what a draft has wrong, and get stuck at the same fault again and again; draws start anew and repeat the
policy's own faults. Both fail on different prompts, so a search makes some of each. With one draw and one candidate per
pass it is the paper's Algorithm 2; with draws alone it is best-of-n; with `restart=0` it is resampling.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from pit.config import ImproveConfig
from pit.data.tokens import Tokens
from pit.improve.models import Models
from pit.improve.pool import Pool


@runtime_checkable
class Writer(Protocol):
    """The side of a search that writes answers, to the prompts of some rows of its batch.

    Each call has random numbers of its own, which follow from its numbers.
    """

    def draw(self, rows: Int64[np.ndarray, " m"], number: int) -> Tokens:
        """Return a draw of the policy for each row; numbers begin at 1, because 0 is y0."""

    def refine(self, rows: Int64[np.ndarray, " m"], references: Tokens, number: Sequence[int]) -> Tokens:
        """Return a candidate of the improver for each row and reference.

        Args:
            rows: rows of the batch.
            references: the answers that the improver reads.
            number: number of the pass, from 1; then those of the chain and the candidate, unless both are 0.
        """


class Round(NamedTuple):
    """One round over a batch: a choice among draws, or a pass. Answers are numbered as they were made; y0 is 0.

    made: answers of the round, a column each.
    read: number of the answer that each was written from, -1 for a draw of the policy.
    candidates: for each prompt the answer that replaced the one before; where none did, the one that came nearest.
    gaps: gap of each candidate over the answer before.
    accepted: where the candidate is the answer now.
    kept: number of the answer now.
    answers: the answers now.
    """

    made: tuple[Tokens, ...]
    read: Int64[np.ndarray, "n m"]
    candidates: Tokens
    gaps: Float32[np.ndarray, " n"]
    accepted: Bool[np.ndarray, " n"]
    kept: Int64[np.ndarray, " n"]
    answers: Tokens


# Six parameters: what is improved, by what, and the rule.
def search(
    prompts: Tokens, first: Tokens, writer: Writer, models: Models, config: ImproveConfig, *, stop_rule: bool = True
) -> Iterator[Round]:
    """Yield the rounds of a search over a batch of prompts, one after the other.

    Args:
        prompts: contents of x.
        first: contents of y0.
        writer: writes draws and candidates.
        models: the gap that accepts, and R_P and the calibration where the config uses them.
        config: numbers of draws, passes and candidates, and the rules.
        stop_rule: accept by the rule; otherwise every candidate is kept.
    """
    state = _State(prompts, first, writer, models, config, stop_rule)
    if config.draws > 1:
        yield state.choose_among_draws()
    state.begin_chains()
    for number in range(1, config.iterations + 1):
        yield state.make_pass(number)


class _State:
    """A search in progress.

    Attributes:
        standing: number of the answer that each chain has kept, by prompt.
        refused: passes that each chain has refused in a row.
        kept: number of the answer now, by prompt.
    """

    # Six parameters: those of `search`.
    def __init__(
        self, prompts: Tokens, first: Tokens, writer: Writer, models: Models, config: ImproveConfig, stop_rule: bool
    ) -> None:
        self._prompts, self._writer, self._models, self._config = prompts, writer, models, config
        self._stop_rule = stop_rule
        self._pool = Pool(prompts, first, models.scorer, models.quality)
        self._rows = np.arange(len(prompts))
        self.kept = np.zeros(len(prompts), np.int64)
        self.standing = self.refused = np.zeros((len(prompts), 1), np.int64)

    def choose_among_draws(self) -> Round:
        """Draw further answers, and keep the best."""
        made = [self._writer.draw(self._rows, number) for number in range(1, self._config.draws)]
        self._pool.add(made)
        before = self.kept
        self.kept = self._best_of_all()
        candidates = np.maximum(self.kept, 1)
        gaps = self._gaps_over(before, candidates)
        return self._round(made, np.full((len(self._rows), len(made)), -1), candidates, gaps, self.kept > 0)

    def begin_chains(self) -> None:
        """Begin a chain with every draw, or one with the best."""
        shape = (len(self._rows), self._config.roots)
        every = self._config.chains == "each"
        self.standing = np.broadcast_to(np.arange(shape[1]) if every else self.kept[:, None], shape).copy()
        self.refused = np.zeros(shape, np.int64)

    def make_pass(self, number: int) -> Round:
        """Let every chain make its candidates and keep the best of them or what it had; choose the answer."""
        config, before, begin = self._config, self.kept, len(self._pool)
        made: list[Tokens] = []
        read, gaps = [], []
        for chain in range(config.roots):
            standing, place = self.standing[:, chain].copy(), len(self._pool)
            references, stuck = self._pool.pick(standing), self._stuck(chain)
            candidates = [self._candidates((number, chain, index), references, stuck) for index in range(config.width)]
            self._pool.add(candidates)
            over = self._models.scorer.gap(self._prompts, references, candidates, config.gap)
            best, accepted = self._accepted(over, standing, place)
            self.standing[:, chain] = np.where(accepted, place + best, standing)
            self.refused[:, chain] = np.where(accepted, 0, self.refused[:, chain] + 1)
            made += candidates
            read += [np.where(stuck, -1, standing)] * config.width
            gaps.append(over)
        self.kept = self._answer()
        every = np.concatenate(gaps, axis=1)
        # A choice among all may also return to an answer that was passed over before.
        changed = self.kept != before
        candidates_now = np.where(changed, self.kept, begin + every.argmax(axis=1))
        # The one chain has compared its candidates with the answer before.
        alone = config.roots == 1 and config.select == "kept"
        shown = every[self._rows, candidates_now - begin] if alone else self._gaps_over(before, candidates_now)
        return self._round(made, np.stack(read, axis=1), candidates_now, shown, changed)

    def _stuck(self, chain: int) -> Bool[np.ndarray, " n"]:
        """Return the prompts at which a chain draws anew instead of improving."""
        restart = self._config.restart
        return np.zeros(len(self._rows), bool) if restart is None else self.refused[:, chain] >= restart

    def _candidates(self, number: tuple[int, int, int], references: Tokens, stuck: Bool[np.ndarray, " n"]) -> Tokens:
        """Return one candidate per prompt: the improver's, or where the chain is stuck a draw.

        Args:
            number: numbers of the pass, the chain and the candidate.
            references: what the improver reads.
            stuck: where the policy draws anew.
        """
        config, (passes, chain, index) = self._config, number
        name = number if chain or index else (passes,)
        fresh, others = self._rows[stuck], self._rows[~stuck]
        draw = config.draws + ((passes - 1) * config.roots + chain) * config.width + index
        drawn = self._writer.draw(fresh, draw) if len(fresh) else Tokens.of([])
        if not len(others):
            return drawn
        refined = self._writer.refine(others, references.take(others), name)
        if not len(fresh):
            return refined
        return Tokens.of([*drawn, *refined]).take(np.argsort(np.concatenate([fresh, others])))

    def _accepted(
        self, gaps: Float32[np.ndarray, "n m"], standing: Int64[np.ndarray, " n"], place: int
    ) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Return the place of the best candidate of a chain among its candidates, and whether it replaces the answer.

        Args:
            gaps: gap of each candidate over the answer of the chain.
            standing: number of that answer.
            place: number of the first candidate.
        """
        values: Float[np.ndarray, "n m"] = gaps
        threshold = self._config.threshold
        if self._config.accept == "calibrated":
            calibration, quality = self._models.calibration, self._pool.quality()
            if calibration is None:
                raise ValueError("calibration = None: improve.accept = calibrated needs one; load the models for it")
            differences = quality[:, place:] - quality[self._rows, standing][:, None]
            values, threshold = calibration.probability(gaps, differences), calibration.threshold
        best = values.argmax(axis=1)
        accepted = values[self._rows, best] > threshold
        return best, accepted if self._stop_rule else np.ones_like(accepted)

    def _answer(self) -> Int64[np.ndarray, " n"]:
        """Return the number of the answer now: the best of all, or of those that the chains have kept."""
        if self._config.select == "all":
            return self._best_of_all()
        if self._config.roots == 1:
            return self.standing[:, 0].copy()
        among = np.zeros((len(self._rows), len(self._pool)), bool)
        np.put_along_axis(among, self.standing, values=True, axis=1)
        return self._pool.best(self._config.rank, among)

    def _best_of_all(self) -> Int64[np.ndarray, " n"]:
        return self._pool.best(self._config.rank, np.ones((len(self._rows), len(self._pool)), bool))

    def _gaps_over(
        self, before: Int64[np.ndarray, " n"], candidates: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, " n"]:
        references, outputs = self._pool.pick(before), self._pool.pick(candidates)
        return self._models.scorer.gap(self._prompts, references, [outputs], self._config.gap)[:, 0]

    # Five parameters: the fields of a round that are not known here.
    def _round(
        self,
        made: Sequence[Tokens],
        read: Int64[np.ndarray, "n m"],
        candidates: Int64[np.ndarray, " n"],
        gaps: Float32[np.ndarray, " n"],
        accepted: Bool[np.ndarray, " n"],
    ) -> Round:
        answers = self._pool.pick(self.kept)
        return Round(tuple(made), read, self._pool.pick(candidates), gaps, accepted, self.kept.copy(), answers)
