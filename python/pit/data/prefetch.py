"""Prefetching through Grain, with a thread that ends before the interpreter does.

A thread that returns from C++ while the interpreter finalizes aborts the process, and Grain's own clean-up at that time
prints a traceback.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grain

_T = TypeVar("_T")


class Prefetcher(Iterator[_T]):
    """Iterator over a Grain data set whose elements a thread makes ahead.

    The thread ends at `close`, when the prefetcher is collected, or when the process exits, whichever comes first.

    Args:
        dataset: the data set.
        ahead: number of elements that are made ahead, at least 1.
        wake: called before the thread is joined, to wake it if it may wait for something.
    """

    def __init__(self, dataset: grain.IterDataset[_T], ahead: int, wake: Callable[[], None] | None = None) -> None:
        iterator = iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=ahead))
        # A list, which the finalizer empties, so that nothing holds the iterator when the interpreter finalizes.
        self._iterators: list[Any] = [iterator]
        self._last_state: dict[str, Any] = {}
        self._end = weakref.finalize(self, _end, self._iterators, wake)

    @property
    def closed(self) -> bool:
        """True once the thread has ended for good."""
        return not self._end.alive

    def __next__(self) -> _T:
        element: _T = next(self._iterators[0])
        return element

    def state(self) -> dict[str, Any]:
        """Return Grain's state after the last element that was handed out; it stays available after `close`."""
        state: dict[str, Any] = self._last_state if self.closed else self._iterators[0].get_state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after a state."""
        self._iterators[0].set_state(state)

    def close(self) -> None:
        """End the thread; there are no further elements."""
        self._last_state = self.state()
        self._end()


def _end(iterators: list[Any], wake: Callable[[], None] | None) -> None:
    if wake is not None:
        wake()
    iterators.pop().close()
