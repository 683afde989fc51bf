"""Lines of a stream in batches: all of them, in order, and none that waits for another."""

import io
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data import arrivals
from pit.data.arrivals import arriving
from pit.data.errors import DataError


class Pieces(io.BytesIO):
    """A stream that hands out its bytes in pieces of given sizes."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        super().__init__(content)
        self._sizes = sizes

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(self._sizes.pop(0) if self._sizes else size)


LINES = st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=20)


@given(LINES, st.booleans(), st.lists(st.integers(1, 12), max_size=20), st.integers(1, 5))
def test_every_line_arrives_once_and_in_order_in_batches_of_at_most_the_limit(
    lines: list[bytes], ended: bool, sizes: list[int], most: int
) -> None:
    content = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    batches = list(arriving(Pieces(content, sizes), most))
    # As bytes.splitlines, but for the newline alone.
    expected = content.split(b"\n") if content else []
    assert [line for batch in batches for line in batch] == (
        expected[:-1] if expected and not expected[-1] else expected
    )
    assert all(1 <= len(batch) <= most for batch in batches)


def test_a_file_is_read_in_full_batches(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b"%d\n" % i for i in range(10)))
    with path.open("rb") as file:
        assert [len(batch) for batch in arriving(file, 4)] == [4, 4, 2]


def test_lines_in_a_pipe_are_handed_out_while_it_stays_open() -> None:
    """The writer waits for each answer before it writes the next line."""
    reading, writing = os.pipe()
    answered: list[list[bytes]] = []
    waiting = threading.Semaphore(0)

    def write() -> None:
        for line in (b"a\n", b"b\nc\n", b"d"):
            os.write(writing, line)
            if line.endswith(b"\n"):
                waiting.acquire(timeout=30)
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb") as source:
        for batch in arriving(source, 8):
            answered.append(batch)
            waiting.release()
    writer.join()
    assert answered == [[b"a"], [b"b", b"c"], [b"d"]]


def test_a_line_of_any_length_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(arrivals, "_CHUNK_BYTES", 8)
    source = io.BytesIO(b"a\nb\n" + b"x" * 1000)
    with pytest.raises(DataError, match=r"^line 3: has more than 100 bytes; write one object per line$"):
        list(arriving(source, 4))
