"""Improvement of many prompts, batch by batch: y0 from the policy, then the rounds of a search."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from pit.config import ImproveConfig
from pit.data.tokens import Sequences, Tokens
from pit.improve.models import Models
from pit.improve.rounds import Round, search
from pit.seeds import Seed


@dataclass(frozen=True)
class Step:
    """One round: the best candidate of it, its gap over the answer before, and the answer that is kept."""

    candidate: list[int]
    gap: float
    accepted: bool
    answer: list[int]


@dataclass(frozen=True)
class Made:
    """One answer that was made for a prompt.

    tokens: its content.
    source: number of the answer that it was written from, y0 being 0; None for a draw of the policy.
    """

    tokens: list[int]
    source: int | None


@dataclass(frozen=True)
class Trajectory:
    """y0 of one prompt and the rounds after it. All token lists are contents, without closing tokens.

    made: all answers, y0 first, in the order in which they were made.
    """

    request: int
    prompt: list[int]
    first: list[int]
    steps: tuple[Step, ...]
    made: tuple[Made, ...] = ()

    def answer(self, iteration: int) -> list[int]:
        """Return the answer kept after `iteration` rounds; 0 is y0, and after the last round nothing changes."""
        number = min(iteration, len(self.steps))
        return self.first if number == 0 else self.steps[number - 1].answer


@dataclass(frozen=True)
class _SeededWriter:
    """A writer whose random numbers follow from the ids of its prompts and a seed."""

    models: Models
    prompts: Tokens
    requests: Sequence[int]
    config: ImproveConfig
    seed: Seed

    def draw(self, rows: Int64[np.ndarray, " m"], number: int) -> Tokens:
        """Return a draw of the policy for each row."""
        ids = [self.requests[row] for row in rows]
        return self.models.respond(self.prompts.take(rows), ids, self.config, self.seed.of("draw", number))

    def refine(self, rows: Int64[np.ndarray, " m"], references: Tokens, number: Sequence[int]) -> Tokens:
        """Return a candidate of the improver for each row and reference."""
        ids = [self.requests[row] for row in rows]
        return self.models.refine(self.prompts.take(rows), references, ids, self.config, self.seed, *number)


def improve(
    models: Models,
    prompts: Sequences,
    requests: Sequence[int],
    config: ImproveConfig,
    *,
    seed: Seed,
    answers: Sequences | None = None,
    stop_rule: bool = True,
) -> Iterator[Trajectory]:
    """Improve answers batch by batch.

    Args:
        models: the trained models.
        prompts: contents of x.
        requests: id of each prompt; with the seed it decides the random numbers, so results do not depend on batches.
        config: numbers of draws, passes and candidates, temperature and filters, rules, batch.
        seed: root of the random numbers.
        answers: given y0; sampled from the policy where None.
        stop_rule: accept by the rule; otherwise every candidate is kept (the paper's plain iteration).
    """
    prompts = Tokens.of(prompts)
    given = None if answers is None else Tokens.of(answers)
    for begin in range(0, len(prompts), config.batch):
        piece = slice(begin, begin + config.batch)
        xs, ids = prompts[piece], list(requests[piece])
        first = models.respond(xs, ids, config, seed) if given is None else given[piece]
        writer = _SeededWriter(models, xs, ids, config, seed)
        rounds = list(search(xs, first, writer, models, config, stop_rule=stop_rule))
        for row, request in enumerate(ids):
            tokens = first[row].tolist()
            yield Trajectory(request, xs[row].tolist(), tokens, steps_of(rounds, row), made_of(tokens, rounds, row))


def steps_of(rounds: Sequence[Round], row: int) -> tuple[Step, ...]:
    """Return the steps of one prompt of a batch."""
    return tuple(
        Step(r.candidates[row].tolist(), float(r.gaps[row]), bool(r.accepted[row]), r.answers[row].tolist())
        for r in rounds
    )


def made_of(first: list[int], rounds: Sequence[Round], row: int) -> tuple[Made, ...]:
    """Return all answers to one prompt of a batch, y0 first."""
    made = [Made(first, None)]
    for one in rounds:
        sources = one.read[row].tolist()
        made += [
            Made(column[row].tolist(), None if source < 0 else source)
            for column, source in zip(one.made, sources, strict=True)
        ]
    return tuple(made)
