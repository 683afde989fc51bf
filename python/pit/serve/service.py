"""The service behind the API: requests in, answers out through their listeners, one worker for all models."""

import secrets
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from pit.config import ImproveConfig
from pit.data.template import Template
from pit.improve import Models
from pit.rollout.strategy import Individual, individual
from pit.serve.answers import Answerer, Listener, Row, rows_of
from pit.serve.batcher import Batcher, QueueFullError
from pit.serve.protocol import MOST_CHOICES, ApiError, ChatRequest, chat_request

RETRY_AFTER_S = 2
"""Seconds after which a client that found the queue full is asked to try again."""


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
        self._lock = threading.Lock()
        self._batcher: Batcher[Row] = Batcher(self._answerer, kind=_kind, fail=self._fail, most=config.batch, room=room)

    def start(self) -> None:
        """Start the worker."""
        self._batcher.start()

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

    def submit(self, request: ChatRequest, listener: Listener) -> None:
        """Queue a request.

        Raises:
            ApiError: there is no room for it, or the service ends.
        """
        rows = rows_of(request, secrets.randbits(63) if request.seed is None else request.seed, listener)
        with self._lock:
            self._running.add(listener)
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
            running = list(self._running)
        self._batcher.discard(lambda row: True)
        for listener in running:
            listener.failed(ApiError("the server is shutting down; ask again later", status=503, code="shutdown"))

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


def _kind(row: Row) -> Individual:
    """Return the sampling that all rows of a batch share; temperature and top-p are each row's own."""
    return individual(row.request.strategy)[0]
