"""The service behind the API: requests in, answers out through their listeners, one worker for all models."""

import contextlib
import itertools
import json
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from pit.config import ImproveConfig
from pit.data.template import Template
from pit.improve import Models
from pit.rollout.sizes import few
from pit.rollout.strategy import Individual, individual
from pit.serve.answers import Answer, Answerer, Listener, Row, rows_of
from pit.serve.batcher import Batcher, QueueFullError
from pit.serve.protocol import MOST_CHOICES, ApiError, ChatRequest, chat_request
from pit.types import Message

RETRY_AFTER_S = 2
"""Seconds after which a client that found the queue full is asked to try again."""


class _Nobody:
    """The listener of answers that nobody waits for."""

    gone = False

    def grew(self, choice: int, text: str) -> None:
        """Take no text."""

    def finished(self, choice: int, answer: Answer) -> None:
        """Take no answer."""

    def failed(self, error: ApiError) -> None:
        """Take no error: the answerer raises its own."""


class Service:
    """A run's models behind a bounded queue.

    Args:
        template: layout of text.
        models: the models.
        config: sampling where a request names none, passes, batch.
        room: most answers that wait for their batch.
        tell: receives a line about an error that nobody expected.

    Attributes:
        template: layout of text.

    Raises:
        ValueError: `room` does not hold one request of the most choices.
    """

    def __init__(
        self,
        template: Template,
        models: Models,
        config: ImproveConfig,
        *,
        room: int,
        tell: Callable[[str], None],
    ) -> None:
        if room < MOST_CHOICES:
            raise ValueError(f"room = {room}: must hold the {MOST_CHOICES} choices of one request; set it larger")
        self.template, self._config, self._tell = template, config, tell
        self._answerer = Answerer(template, models, config)
        self._running: set[Listener] = set()
        self._ended = False
        self._lock = threading.Lock()
        self._batcher: Batcher[Row] = Batcher(self._answerer, kind=_kind, fail=self._fail, most=config.batch, room=room)

    def start(self) -> None:
        """Start the worker."""
        self._batcher.start()

    def warm_up(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> tuple[list[int], list[int]]:
        """Answer and improve conversations in batches of many sizes, so that requests need not wait for a compiler.

        The sizes are those that `pit.rollout.sizes.few` rounds to: one answer first, then from the largest batch down,
        as a burst makes them.

        Args:
            conversations: as those that requests will hold; sizes of programs follow from their lengths.
            budget_s: seconds after which no further size is begun.
            clock: tells the time.

        Returns:
            The sizes of batches that were drawn, and those that were left out.
        """
        requests = []
        for conversation in conversations:
            fields = {"model": "improved", "messages": [message._asdict() for message in conversation]}
            with contextlib.suppress(ApiError):
                requests.append(self.read(json.dumps(fields).encode()))
        most, begin_s = self._config.batch, clock()
        one, *others = sorted({min(few(size), most) for size in range(1, most + 1)})
        left, drawn = [one, *reversed(others)], []
        while requests and left and clock() - begin_s <= budget_s:
            size = left.pop(0)
            batch = itertools.islice(itertools.cycle(requests), size)
            self._answerer([row for seed, each in enumerate(batch) for row in rows_of(each, seed, _Nobody())])
            drawn.append(size)
        return sorted(drawn), sorted(left)

    @property
    def waiting(self) -> int:
        """Number of answers that wait for their batch."""
        return self._batcher.waiting

    def read(self, body: bytes) -> ChatRequest:
        """Return the request in a body.

        Raises:
            ApiError: it breaks a rule.
        """
        return chat_request(body, self.template, self._config)

    def enter(self, listener: Listener) -> None:
        """Let a request that arrives hear of the end of the service; `leave` ends that.

        Raises:
            ApiError: the service has ended.
        """
        with self._lock:
            if self._ended:
                raise _shutdown()
            self._running.add(listener)

    def submit(self, request: ChatRequest, listener: Listener) -> None:
        """Queue a request that has entered.

        Raises:
            ApiError: there is no room for it, or the service ends.
        """
        rows = rows_of(request, secrets.randbits(63) if request.seed is None else request.seed, listener)
        try:
            self._batcher.put(rows)
        except QueueFullError:
            self.leave(listener)
            raise ApiError(
                f"the server has no room for the request: {self.waiting} answers wait; try again later",
                status=503,
                code="overloaded",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            ) from None

    def leave(self, listener: Listener) -> None:
        """Forget a request that has ended, or whose client has gone; what waits of it leaves the queue."""
        with self._lock:
            self._running.discard(listener)
        self._batcher.discard(lambda row: row.listener is listener)

    def close(self) -> None:
        """Take no more requests; those that wait are answered."""
        self._batcher.close()

    def end(self) -> None:
        """End all requests by an error, and what is drawn for them as soon as possible."""
        self.close()
        self._answerer.stop()
        with self._lock:
            self._ended = True
            running = list(self._running)
        self._batcher.discard(lambda row: True)
        for listener in running:
            listener.failed(_shutdown())

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the worker after `close`, and return whether it has come."""
        return self._batcher.join(timeout_s)

    def unexpected(self, error: Exception) -> ApiError:
        """Tell of an error that nobody expected, and return the one that its client gets."""
        # The message may repeat what a user wrote, so only type and place are told.
        frames = traceback.extract_tb(error.__traceback__)
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        self._tell(f"pit: an answer failed: {type(error).__name__}{place}")
        return ApiError("the server failed to answer; its log names the error", status=500, code="internal")

    def _fail(self, row: Row, error: Exception) -> None:
        row.listener.failed(self.unexpected(error))


def _shutdown() -> ApiError:
    return ApiError("the server is shutting down; ask again later", status=503, code="shutdown")


def _kind(row: Row) -> Individual:
    """Return the sampling that all rows of a batch share; temperature and top-p are each row's own."""
    return individual(row.request.strategy)[0]
