"""A bounded queue before one worker thread, which takes what waits together in batches of one kind."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Generic, TypeVar

GRACE_S = 0.01
"""Seconds that an idle worker waits for more items after the first, so that a burst becomes one batch."""

Item = TypeVar("Item")


class QueueFullError(Exception):
    """The queue has no room for the items, or takes none any more."""


class Batcher(Generic[Item]):
    """A queue and its worker.

    The oldest item decides the kind of the next batch, so that none waits for ever.

    Args:
        work: does a batch; it runs in the worker thread alone.
        kind: returns the kind of an item; a batch holds one kind.
        fail: tells an item that its batch raised an error.
        most: largest batch.
        room: most items that wait.
        grace_s: seconds that an idle worker waits for more items.
    """

    # Six parameters: what is done with items, and the sizes.
    def __init__(
        self,
        work: Callable[[Sequence[Item]], None],
        *,
        kind: Callable[[Item], Hashable],
        fail: Callable[[Item, Exception], None],
        most: int,
        room: int,
        grace_s: float = GRACE_S,
    ) -> None:
        self._work, self._kind, self._fail = work, kind, fail
        self._most, self._room, self._grace_s = most, room, grace_s
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pit-serve", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of items that wait."""
        return len(self._items)

    def put(self, items: Collection[Item]) -> None:
        """Queue items, all or none.

        Raises:
            QueueFullError: there is no room for them, or the queue is closed.
        """
        with self._changed:
            if self._closed or len(self._items) + len(items) > self._room:
                raise QueueFullError
            self._items.extend(items)
            self._changed.notify_all()

    def discard(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take unwanted items out of the queue and return them; a batch in progress is not touched."""
        with self._changed:
            discarded = [item for item in self._items if unwanted(item)]
            self._items = deque(item for item in self._items if not unwanted(item))
            return discarded

    def close(self) -> None:
        """Take no more items; the worker ends once none waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the worker after `close`, and return whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._work(batch)
            except Exception as error:
                for item in batch:
                    self._fail(item, error)

    def _next(self) -> list[Item]:
        """Return the next batch; an empty one after the last."""
        with self._changed:
            while not self._items:
                if self._closed:
                    return []
                self._changed.wait()
                # The first of a burst: what arrives within a moment comes along.
                self._changed.wait_for(lambda: self._closed or len(self._items) >= self._most, self._grace_s)
            kind = self._kind(self._items[0])
            batch: list[Item] = []
            rest: deque[Item] = deque()
            for item in self._items:
                taken = len(batch) < self._most and self._kind(item) == kind
                (batch if taken else rest).append(item)
            self._items = rest
            return batch
