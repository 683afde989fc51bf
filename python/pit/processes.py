"""The processes of one program on several hosts: how they find each other, wait, agree, and end together.

JAX runs one program on all of them, each with its own devices (multi-controller). Everything here goes through its
coordination service, which process 0 holds, and touches no device. In a program of one process nothing is sent: it is
the first process, waits for nobody and agrees with itself.
"""

import atexit
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pit.errors import PitError
from pit.terminal import say

HEARTBEAT_S = 60
"""Seconds after which a process that sends no heartbeat counts as dead, which ends all others."""

START_S = 300.0
"""Seconds in which all processes must have started."""

STALL_S = 3600.0
"""Seconds that a process may take from one meeting of all processes to the next; then it ends, and so do the others.

An environment variable, `PIT_STALL_S`, overrides it: a compilation of an RL step may take long at size.
"""

ALONE_S = 86_400.0
"""The same where process 0 works alone and the others wait."""

LATER_S = 60.0
"""Seconds after that in which a meeting that waits in vain says itself who is missing."""

GRACE_S = 5.0
"""Seconds that a process gets to end by itself after another one has failed."""

VARIABLES = ("PIT_COORDINATOR", "PIT_PROCESSES", "PIT_PROCESS", "PIT_DISTRIBUTED")
"""Environment variables that say who this process is."""

_FAILED = "pit/failed"
_POLL_S = 2.0


class ProcessError(PitError):
    """The processes of a program cannot start, disagree, or miss one of them."""


@dataclass(frozen=True)
class Members:
    """Address of process 0, number of processes, number of this one; all None: the cluster knows."""

    coordinator: str | None
    count: int | None
    process: int | None


CLUSTER = Members(None, None, None)
"""Members that the cluster knows."""


class _Group:
    """This process among the others, and its line to the coordination service."""

    def __init__(self, client: Any, process: int, count: int) -> None:
        self.client, self.process, self.count = client, process, count
        self.meetings, self.met_s, self.limit_s = 0, time.monotonic(), _stall_s()
        self.failed, self._ends = False, threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="pit-watch", daemon=True)
        self._watcher.start()

    def meet(self, purpose: str, limit_s: float) -> str:
        """Wait until all processes are here; return the place of the values of this meeting.

        Raises:
            ProcessError: one did not come in time.
        """
        self.meetings += 1
        place, self.limit_s = f"pit/{self.meetings}", limit_s
        try:
            self.client.wait_at_barrier(f"{place}/{purpose}", int(limit_s * 1000))
        except Exception as error:  # JAX raises one type for every error of the service.
            message = _missing(str(error), purpose, limit_s, self.count)
            self.fail(message)
            raise ProcessError(message) from error
        self.met_s, self.limit_s = time.monotonic(), _stall_s()
        if self.process == 0 and self.meetings > 1:
            # All have left the meeting before this one, so that nobody reads its values any more.
            self.client.key_value_delete(f"pit/{self.meetings - 1}")
        return place

    def put(self, value: bytes) -> None:
        """Bring a value to the next meeting."""
        self.client.key_value_set_bytes(f"pit/{self.meetings + 1}/{self.process}", value)

    def values(self, place: str) -> dict[int, bytes]:
        """Return the values that were brought to a meeting, by process."""
        return {int(key.rpartition("/")[2]): value for key, value in self.client.key_value_dir_get_bytes(f"{place}/")}

    def fail(self, message: str) -> None:
        """Tell all others that this process fails; the first to do so is heard."""
        self.failed = True
        # Where another one failed before, or the service is gone, the others know or see it.
        with suppress(Exception):
            self.client.key_value_set(_FAILED, f"{self.process} {message}")

    def leave(self) -> None:
        """Stop watching, before the line is closed."""
        self._ends.set()
        self._watcher.join()

    def _watch(self) -> None:
        """End this process if another one fails or is gone, or if it stalls: its main thread may wait for ever."""
        while not self._ends.is_set():
            try:
                failed = self.client.blocking_key_value_get(_FAILED, int(_POLL_S * 1000))
            except Exception as error:  # JAX raises one type for every error of the service.
                if "DEADLINE_EXCEEDED" not in str(error) and not self._ends.wait(_POLL_S):
                    self._end("process 0, which holds the coordination service, is gone")
            else:
                number, _, message = failed.partition(" ")
                self._end(message if int(number) == self.process else f"process {number} failed: {message}")
            since = time.monotonic() - self.met_s
            # A meeting that waits in vain ends before, and names who is missing.
            if since > self.limit_s + LATER_S:
                self.fail(f"no meeting of all processes for {since:.0f} s")
                self._end(f"no meeting of all processes for {since:.0f} s; PIT_STALL_S allows more", grace_s=0.0)

    def _end(self, reason: str, grace_s: float = GRACE_S) -> None:
        """End this process, whatever its threads wait for, unless it ends by itself meanwhile."""
        if not self._ends.wait(grace_s):
            say(f"pit: error: process {self.process}: {reason}; run the same command on all hosts again", error=True)
            os._exit(1)


_group: _Group | None = None


def start(members: Members) -> None:
    """Join the processes of this program, before anything asks JAX for a device; called once.

    Args:
        members: who they are; of `CLUSTER` JAX asks the cluster that it runs on (Cloud TPU, SLURM, Open MPI).

    Raises:
        ProcessError: they are not a valid group, or did not start in time.
    """
    global _group
    import jax
    from jax._src import distributed  # The coordination service has no public name.

    _require_valid(members)
    if members.count == 1:
        return
    # Its handler of SIGTERM would take the place of the one that saves a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    waiting = threading.Timer(START_S - 5.0, _late, (members,))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            members.coordinator,
            members.count,
            members.process,
            local_device_ids=None,
            cluster_detection_method=None if members.coordinator is None else "deactivate",
            initialization_timeout=int(START_S),
            heartbeat_timeout_seconds=int(os.environ.get("PIT_HEARTBEAT_S", HEARTBEAT_S)),
        )
    except (ValueError, RuntimeError) as error:
        raise ProcessError(
            f"{_named(members)}: the processes cannot start ({' '.join(str(error).split())[:300]}); name them: "
            "--coordinator HOST:PORT --processes N --process K"
        ) from error
    finally:
        waiting.cancel()
    state = distributed.global_state
    _group = _Group(state.client, state.process_id, state.num_processes)
    atexit.register(_group.leave)


def _require_valid(members: Members) -> None:
    coordinator, count, process = members.coordinator, members.count, members.process
    if members == CLUSTER:
        return
    if None in (coordinator, count, process):
        raise ProcessError(
            f"{_named(members)}: must be given all three; for example --coordinator HOST:1234 --processes 4 --process 0"
        )
    assert coordinator is not None
    assert count is not None
    assert process is not None
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ProcessError(f"--coordinator = {coordinator!r}: must be HOST:PORT of process 0; for example host0:1234")
    if not 0 <= process < count:
        raise ProcessError(f"--process = {process}: must be from 0 to {count - 1}, as --processes = {count}")


def _named(members: Members) -> str:
    if members == CLUSTER:
        return "--distributed"
    return f"--coordinator = {members.coordinator}, --processes = {members.count}, --process = {members.process}"


def _late(members: Members) -> None:
    """End this process, which waits in JAX; JAX itself would end it with a stack trace."""
    say(
        f"pit: error: {_named(members)}: not all processes have started within {START_S:.0f} s; start the same command "
        "on every host, each with its own --process, and let them reach the coordinator's port",
        error=True,
    )
    os._exit(1)


def _stall_s() -> float:
    return float(os.environ.get("PIT_STALL_S", STALL_S))


def _missing(error: str, purpose: str, limit_s: float, count: int) -> str:
    names = re.findall(r"(?:task:)?(\d+)", error.partition("timed out task names:")[2].partition("RPC")[0])
    if "DEADLINE_EXCEEDED" in error and names:
        who = f"process {', '.join(names)} of {count}"
        return f"{purpose}: {who} did not come within {limit_s:.0f} s; look at its output, then start all again"
    return f"{purpose}: the processes lost each other ({' '.join(error.split())[:200]}); start all again"


def many() -> bool:
    """Return whether this program runs in more than one process."""
    return _group is not None and _group.count > 1


def first() -> bool:
    """Return whether this is the first process: the one that writes logs, records and reports."""
    return _group is None or _group.process == 0


def meet(purpose: str) -> None:
    """Wait until all processes are here.

    Raises:
        ProcessError: one did not come in time; the message names it.
    """
    if _group is not None:
        _group.meet(purpose, _stall_s())


def agreed(wish: bool, purpose: str) -> bool:
    """Return whether any process wishes it: the same answer on all.

    Raises:
        ProcessError: a process did not come in time.
    """
    if _group is None:
        return wish
    if wish:
        _group.put(b"1")
    return bool(_group.values(_group.meet(purpose, _stall_s())))


def require_same(name: str, value: str) -> None:
    """Raise, on all processes, unless all give the same value.

    Raises:
        ProcessError: they differ; or one did not come in time.
    """
    if _group is None:
        return
    _group.put(value.encode())
    values = _group.values(_group.meet(name, _stall_s()))
    other = [number for number in sorted(values) if values[number] != values[0]]
    if other:
        raise ProcessError(
            f"{name}: process {', '.join(map(str, other))} has {values[other[0]].decode()}, but process 0 has "
            f"{values[0].decode()}; give all processes the same command, but for --process, and the same files"
        )


def from_first(make: Callable[[], bytes], purpose: str) -> bytes:
    """Return on all processes what the first one alone makes.

    Raises:
        ProcessError: a process did not come in time.
        Exception: the first process's own.
    """
    if _group is None:
        return make()
    if _group.process == 0:
        _group.put(_alone(_group, make))
    return _group.values(_group.meet(purpose, ALONE_S))[0]


def by_first(make: Callable[[], None], purpose: str) -> None:
    """Let the first process alone do something, and wait for it.

    Raises:
        ProcessError: a process did not come in time.
        Exception: the first process's own.
    """
    if _group is None:
        make()
        return
    if _group.process == 0:
        _alone(_group, make)
    _group.meet(purpose, ALONE_S)


def _alone(group: _Group, make: Callable[[], Any]) -> Any:
    """Return what this process makes while the others wait; if it fails, they are told at once."""
    group.limit_s = ALONE_S
    try:
        return make()
    except Exception as error:
        group.fail(" ".join(str(error).split())[:500])
        raise
    finally:
        group.met_s, group.limit_s = time.monotonic(), _stall_s()


def failed() -> bool:
    """Return whether this process has told the others that it fails."""
    return _group is not None and _group.failed


def fail(message: str) -> None:
    """Tell the other processes that this one fails: they end, and so does this one if it does not by itself."""
    if _group is not None and not _group.failed:
        _group.fail(message)


def end_failed(status: int = 1) -> None:
    """End this process without waiting for others that were told of its failure; otherwise do nothing."""
    if not many():
        return
    assert _group is not None
    if not _group.failed:
        return
    if _group.process == 0:
        # The others hear of it, and end, through the service that ends here: without it JAX aborts them.
        time.sleep(GRACE_S + _POLL_S)
    os._exit(status)
