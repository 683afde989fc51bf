"""Lines of a stream in batches as they arrive: full batches from a file, the lines that are there from a pipe."""

import select
from collections.abc import Iterator
from io import UnsupportedOperation
from typing import Protocol, runtime_checkable

from pit.data.errors import DataError
from pit.data.readers.streams import MAX_LINE_BYTES

GRACE_S = 0.02
"""Seconds to wait for a further line before those in hand are handed out."""

_CHUNK_BYTES = 1 << 16


@runtime_checkable
class ByteStream(Protocol):
    """A stream of bytes, such as a file opened with "rb" or the buffer of stdin."""

    def read1(self, size: int, /) -> bytes:
        """Return at most `size` bytes by at most one read; none at the end."""

    def fileno(self) -> int:
        """Return the number of the file; raise `UnsupportedOperation` for bytes in memory."""


def arriving(source: ByteStream, most: int, *, grace_s: float = GRACE_S) -> Iterator[list[bytes]]:
    """Yield the lines of a stream in order, without their line ends, in batches of 1 to `most`.

    A batch is smaller than `most` where the next line is not there yet: whoever writes a line and waits for its answer
    gets one.

    Args:
        source: the stream, read by nobody else.
        most: largest batch.
        grace_s: seconds to wait for a further line.

    Raises:
        DataError: a line is longer than `MAX_LINE_BYTES`.
    """
    batch: list[bytes] = []
    rest: list[bytes] = []
    number = 1
    while chunk := source.read1(_CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for piece in others:
            batch.append(b"".join(rest))
            rest = [piece]
            number += 1
            if len(batch) == most:
                yield batch
                batch = []
        if sum(map(len, rest)) > MAX_LINE_BYTES:
            raise DataError(f"line {number}: has more than {MAX_LINE_BYTES} bytes; write one object per line")
        if batch and not _ready(source, grace_s):
            yield batch
            batch = []
    last = b"".join(rest)
    if last:
        batch.append(last)
    if batch:
        yield batch


def _ready(source: ByteStream, wait_s: float) -> bool:
    """Return whether a read would return at once, as it always does from a file and in memory."""
    try:
        return bool(select.select([source.fileno()], [], [], wait_s)[0])
    except UnsupportedOperation:
        return True
