"""One process at a time works on a stage: two would write each other's checkpoints and logs.

`kill -9` of `pit run` leaves its stages at work until their next report finds nobody there; whoever starts the run
again meanwhile waits for them here.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pit.errors import PitError

FILE_NAME = "lock"
WAIT_S = 60.0
"""How long a stage waits for another process before it gives up."""

_POLL_S = 0.1


class Busy(PitError):
    """Another process works on the stage."""


@contextmanager
def claim(folder: Path, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold a stage's folder until the end of the block, or of the process, however it ends.

    Raises:
        Busy: another process held it all the while.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with (folder / FILE_NAME).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"{folder}: another process has worked on this stage for {wait_s:g} s; wait for it to end or "
                        "stop it, then run the command again"
                    ) from None
                time.sleep(_POLL_S)
        yield
