"""Answers of a finished run to requests: drawn together, shown while they grow, cut at their limits, and improved.

An answer depends on the request, its seed and the number of the choice alone, not on the batch: the random numbers of a
sample are folded from its id (see `pit.rollout.sample`).
"""

import json
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64

from pit.config import ImproveConfig
from pit.data.template import Template
from pit.data.tokens import Tokens
from pit.improve import Models, Round, made_of, search, steps_of
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rollout.sample import Sampler
from pit.seeds import Seed
from pit.serve.growing import Ended, Finish, Growing, Limits
from pit.serve.protocol import ApiError, ChatRequest
from pit.serve.record import record_of

_SEED = Seed((0, "serve"))
"""Root of all random numbers; the ids of rows hold the seeds of the requests."""


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    text: the text.
    finish: its end.
    tokens: tokens that were drawn for it, those of replaced and refused answers included.
    hidden: those of them that are not in the text.
    record: the answers after each round and the steps, as `pit improve` writes them; None for the policy's.
    """

    text: str
    finish: Finish
    tokens: int
    hidden: int
    record: dict[str, Any] | None


@runtime_checkable
class Listener(Protocol):
    """The side of a request that waits for its answers; it is called in the worker thread."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more."""

    def grew(self, choice: int, text: str) -> None:
        """Take more text of an answer."""

    def finished(self, choice: int, answer: Answer) -> None:
        """Take an answer that has ended; its text includes what was taken before."""

    def failed(self, error: ApiError) -> None:
        """Take the error that ends the request."""


@dataclass(frozen=True)
class Row:
    """One answer to draw: a request, the number of the choice, and who listens.

    id: decides the random numbers, with the purpose of a draw.
    """

    request: ChatRequest
    choice: int
    id: int
    listener: Listener = field(compare=False)

    @property
    def limits(self) -> Limits:
        """Limits of its answers."""
        return Limits(self.request.limit, self.request.stop)


def rows_of(request: ChatRequest, seed: int, listener: Listener) -> list[Row]:
    """Return a row for each choice of a request under a seed."""
    prompt = request.question.prompt
    return [
        Row(request, choice, zlib.crc32(json.dumps([seed, choice, prompt]).encode()), listener)
        for choice in range(request.choices)
    ]


class Answerer:
    """The models of a run, and how they answer.

    Args:
        template: layout of text.
        models: the models.
        config: draws, passes of the improver, form of the gap, rules.

    Raises:
        TypeError: there is no policy, or the sampler is not PIT's own, which alone shows samples while it draws them.
    """

    def __init__(self, template: Template, models: Models, config: ImproveConfig) -> None:
        if not isinstance(models.sampler, Sampler):
            raise TypeError(f"models.sampler: {type(models.sampler).__name__} shows no samples while it draws them")
        if models.policy is None:
            raise TypeError("models.policy: is None, and requests without an answer need one; load it")
        self._template, self._models, self._config, self._sampler = template, models, config, models.sampler
        self._policy = models.policy
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the answers in progress as soon as possible, without results."""
        self._stopped.set()

    def __call__(self, rows: Sequence[Row]) -> None:
        """Answer rows of one kind of sampling, and tell their listeners."""
        lacking = [row for row in rows if row.request.question.answer is None and not row.listener.gone]
        drawn = self._draw(self._policy, lacking, None, _SEED.of("y0")) if lacking else []
        improving: list[tuple[Row, Ended]] = []
        for row, ended in zip(lacking, drawn, strict=True):
            if row.request.model == "improved":
                improving.append((row, ended))
            else:
                row.listener.finished(row.choice, Answer(ended.text, ended.finish, ended.tokens, 0, None))
        for row in rows:
            answer = row.request.question.answer
            if answer is not None:
                improving.append((row, Ended(row.request.question.tokens.better, answer, "stop", 0)))
        self._improve([pair for pair in improving if not pair[0].listener.gone])

    def _improve(self, firsts: Sequence[tuple[Row, Ended]]) -> None:
        """Improve first answers, which are trimmed and encoded as the conversation after them shows them."""
        if not firsts or self._stopped.is_set():
            return
        rows = [row for row, _ in firsts]
        prompts = Tokens.of([row.request.question.tokens.prompt for row in rows])
        writer = _Writer(self, rows, [[ended] for _, ended in firsts])
        first = self._sampler.served(Tokens.of([ended.ids for _, ended in firsts]))
        rounds: list[Round] = []
        for one in search(prompts, first, writer, self._models, self._config):
            rounds.append(one)
            if self._stopped.is_set() or all(row.listener.gone for row in rows):
                return
        for number, row in enumerate(rows):
            answer = self._improved(first[number].tolist(), rounds, number, writer.made[number])
            row.listener.finished(row.choice, answer)

    def _improved(self, first: list[int], rounds: Sequence[Round], number: int, made: Sequence[Ended]) -> Answer:
        """Return the answer of one row after all rounds; `made` are all answers to it, y0 first."""
        kept = made[int(rounds[-1].kept[number])]
        record = record_of(self._template, first, steps_of(rounds, number), made_of(first, rounds, number))
        tokens = sum(ended.tokens for ended in made)
        return Answer(record["answers"][-1], kept.finish, tokens, tokens - kept.tokens, record)

    def write(self, rows: Sequence[Row], references: Tokens | None, seed: Seed) -> tuple[list[Ended], Tokens]:
        """Return a draw of the policy for each row, or with references a candidate of the improver; also as served."""
        model = self._policy if references is None else self._models.improver
        ended = self._draw(model, rows, references, seed)
        return ended, self._sampler.served(Tokens.of([answer.ids for answer in ended]))

    def _draw(self, model: Model[Decoder], rows: Sequence[Row], references: Tokens | None, seed: Seed) -> list[Ended]:
        """Return an answer for each row, of the policy, or with references a candidate of the improver.

        What the policy answers for itself is shown while it grows.
        """
        shows = [row.request.stream and row.request.model == "policy" for row in rows]
        growing = [Growing(self._template, row.limits, shows=show) for row, show in zip(rows, shows, strict=True)]

        def watch(token: Int32[np.ndarray, "G N C"], length: Int32[np.ndarray, "G N"]) -> Bool[np.ndarray, "G N"]:
            wanted = np.zeros(length.shape, bool)
            for number, (row, answer) in enumerate(zip(rows, growing, strict=True)):
                if self._stopped.is_set() or row.listener.gone or answer.done:
                    continue
                more = answer.grow(token[number, 0, : length[number, 0]].tolist())
                if more:
                    row.listener.grew(row.choice, more)
                wanted[number] = not answer.done
            return wanted

        samples = self._sampler.samples(
            model,
            [row.id for row in rows],
            Tokens.of([row.request.question.tokens.prompt for row in rows]),
            references,
            n=1,
            strategy=[row.request.strategy for row in rows],
            seed=seed.number,
            watch=watch,
        )
        ends = []
        for number, (row, answer) in enumerate(zip(rows, growing, strict=True)):
            ended, more = answer.end(samples.token[number, 0, : samples.length[number, 0]].tolist())
            if more:
                row.listener.grew(row.choice, more)
            ends.append(ended)
        return ends


@dataclass(frozen=True)
class _Writer:
    """The writer of a search for requests; `made` keeps all answers to each row, in the order of the search."""

    answerer: Answerer
    rows: Sequence[Row]
    made: list[list[Ended]]

    def draw(self, rows: Int64[np.ndarray, " m"], number: int) -> Tokens:
        """Return a draw of the policy for each row."""
        return self._kept(rows, None, _SEED.of("draw", number))

    def refine(self, rows: Int64[np.ndarray, " m"], references: Tokens, number: Sequence[int]) -> Tokens:
        """Return a candidate of the improver for each row and reference."""
        return self._kept(rows, references, _SEED.of("pass", *number))

    def _kept(self, rows: Int64[np.ndarray, " m"], references: Tokens | None, seed: Seed) -> Tokens:
        ended, served = self.answerer.write([self.rows[row] for row in rows], references, seed)
        for row, answer in zip(rows, ended, strict=True):
            self.made[row].append(answer)
        return served
