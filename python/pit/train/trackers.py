"""Trackers of experiments: TensorBoard's files, Weights & Biases and trackio, behind one small interface.

Trackers other than TensorBoard work in a thread of their own, from the lines of `metrics.jsonl`: none of them slows a
step, and one that fails says so once and is left out. What it missed is sent when the stage resumes.
"""

import importlib.util
import json
import netrc
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

from pit.atomic import write_file
from pit.errors import PitError
from pit.terminal import printable

PROJECT = "pit"
"""Project of all runs, unless WANDB_PROJECT or TRACKIO_PROJECT names another."""

STATE = "trackers.json"
"""File in a stage's folder: of each tracker, the id of its run and the number of lines that it has."""

CLOSE_S = 30.0
"""Seconds that the end of a stage waits for a tracker."""


class TrackerError(PitError):
    """A tracker that was asked for and is not installed."""


class Identity(NamedTuple):
    """What a tracker calls a run.

    run: name of PIT's run, which groups its stages. stage: name of the stage. id: the tracker's own name of this run,
    the same whenever the stage resumes. config: the config as plain values.
    """

    run: str
    stage: str
    id: str
    config: Mapping[str, Any]


@runtime_checkable
class Tracker(Protocol):
    """A receiver of metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step; a step may come several times with other metrics."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """TensorBoard's event files in a folder; events after the resumed step are hidden."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        # Imported here: it brings Google's storage client where that is installed, half a second.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step or None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, online or, with WANDB_MODE=offline, in the folder `wandb` of the stage."""

    def __init__(self, identity: Identity, folder: Path) -> None:
        import wandb

        if not _logged_in():
            raise PermissionError("not logged in; run `wandb login`, or set WANDB_MODE=offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=identity.run,
            name=f"{identity.run}/{identity.stage}",
            job_type=identity.stage,
            id=identity.id,
            resume="allow",
            config=dict(identity.config),
            dir=str(folder),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics; those of one step become one row there."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _logged_in() -> bool:
    """Return whether Weights & Biases would not ask for a key; a question would wait for ever in a thread."""
    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Trackio:
    """A run of trackio: local, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

    def __init__(self, identity: Identity, folder: Path) -> None:
        import trackio

        del folder
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{identity.run}/{identity.stage} {identity.id}",
            group=identity.run,
            config=dict(identity.config),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


Maker = Callable[[Identity, Path], Tracker]

REMOTE: Mapping[str, Maker] = MappingProxyType({"wandb": Wandb, "trackio": Trackio})
"""Trackers that are packages of their own, by the name of package and extra."""


def require(names: Sequence[str]) -> None:
    """Raise unless the packages of all trackers are installed.

    Raises:
        TrackerError: one is not.
    """
    for name in names:
        if name in REMOTE and importlib.util.find_spec(name) is None:
            raise TrackerError(
                f"trackers = {name!r}: its package is not installed; `pip install {name}`, or leave it out: "
                "--tracker tensorboard"
            )


class Feed:
    """A tracker in a thread of its own, to which lines are handed by their number.

    Args:
        name: name of the tracker.
        make: opens it.
        folder: folder of the stage, which holds the state.
        facts: run, stage and config.
        note: shows a line that stays.
    """

    def __init__(self, name: str, make: Maker, folder: Path, facts: Identity, note: Callable[[str], None]) -> None:
        self.name, self._make, self._folder, self._note = name, make, folder, note
        state = read_state(folder).get(name, {})
        self._identity = facts._replace(id=state.get("id") or secrets.token_hex(6))
        self.sent: int = state.get("lines", 0)
        self._lines: queue.Queue[tuple[int, int, Mapping[str, float]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"pit-{name}", daemon=True)
        self._thread.start()

    def put(self, number: int, step: int, values: Mapping[str, float]) -> None:
        """Hand over line `number`, from 0; one that the tracker has already is left out."""
        if number >= self.sent:
            self._lines.put((number, step, dict(values)))

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Send what is left, for at most some seconds."""
        self._lines.put(None)
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._note(f"{self.name}: did not end within {wait_s:g} s and is left; metrics.jsonl has all metrics")

    def _work(self) -> None:
        try:
            tracker = self._make(self._identity, self._folder)
            while (line := self._lines.get()) is not None:
                number, step, values = line
                # First, so that a line is never sent twice, whenever the process is killed.
                self._has(number + 1)
                try:
                    tracker.log(step, values)
                except Exception:
                    self._has(number)
                    raise
            tracker.close()
        except Exception as error:  # Whatever a tracker raises; training has no part in it.
            reason = printable(" ".join(f"{type(error).__name__}: {error}".split())[:300])
            self._note(f"{self.name}: is left out from here on ({reason}); metrics.jsonl has all metrics")

    def _has(self, lines: int) -> None:
        write_state(self._folder, self.name, {"id": self._identity.id, "lines": lines})


_STATE = threading.Lock()


def read_state(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the state of each tracker; empty where there is none, or none that can be read."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    known = isinstance(state, dict) and all(
        isinstance(of, dict) and isinstance(of.get("id"), str) and type(of.get("lines")) is int for of in state.values()
    )
    return state if known else {}


def write_state(folder: Path, name: str, of_tracker: Mapping[str, Any]) -> None:
    """Replace the state of one tracker."""
    with _STATE:
        state = {**read_state(folder), name: dict(of_tracker)}
        write_file(folder / STATE, (json.dumps(state) + "\n").encode())


class Trackers:
    """All trackers of a stage.

    Args:
        names: their names.
        folder: folder of the stage.
        facts: run, stage and config; None tracks to TensorBoard alone.
        resumed_step: last step of an earlier process.
        kept: steps and metrics of the lines that are there, for trackers that lack some.
        note: shows a line that stays.
    """

    # Six parameters: which, where, of what, from when, and a voice.
    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        facts: Identity | None,
        *,
        resumed_step: int = 0,
        kept: Sequence[tuple[int, Mapping[str, float]]] = (),
        note: Callable[[str], None] = print,
    ) -> None:
        require(names)
        self._board = TensorBoard(folder, resumed_step) if "tensorboard" in names else None
        remote = [name for name in names if name in REMOTE]
        self._feeds = [] if facts is None else [Feed(name, REMOTE[name], folder, facts, note) for name in remote]
        self._lines = 0
        for step, values in kept:
            self._send(step, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a new line."""
        if self._board is not None:
            self._board.log(step, values)
        self._send(step, values)

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        for feed in self._feeds:
            feed.put(self._lines, step, values)
        self._lines += 1

    def close(self) -> None:
        """Send what is left."""
        if self._board is not None:
            self._board.close()
        for feed in self._feeds:
            feed.close()
