"""A program of several processes that meets in every way of `pit.processes`; each case prints what it saw."""

import argparse
import os
import signal
import time
from pathlib import Path

from pit import processes
from pit.errors import PitError


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    given = parser.parse_args()
    processes.start(processes.Members(given.coordinator, given.processes, given.process))
    try:
        CASES[given.case](given.process, given.folder)
    except PitError as error:
        print(f"error: {error}", flush=True)
        processes.fail(str(error))
        processes.end_failed()


def agreement(process: int, folder: Path) -> None:
    assert processes.many()
    assert processes.first() == (process == 0)
    print(processes.agreed(False, "one"), processes.agreed(process == 1, "two"), processes.agreed(False, "three"))
    print(processes.from_first(lambda: f"of {process}".encode(), "four").decode())
    processes.by_first(lambda: (folder / f"by-{process}").touch(), "five", folder / "by-0")
    processes.require_same("value", "equal")
    print(sorted(path.name for path in folder.iterdir()))
    # Values of meetings that all have left are gone: a long training holds as many meetings as steps.
    group = processes._group
    assert group is not None
    assert [len(group.values(f"pit/{meeting}")) for meeting in range(1, 7)] == [0, 0, 0, 0, 0, 2]


def difference(process: int, folder: Path) -> None:
    processes.require_same("config", f"value {process}")


def alone(process: int, folder: Path) -> None:
    def fails() -> bytes:
        raise PitError("the file is gone")

    processes.from_first(fails, "work of process 0")


def absent(process: int, folder: Path) -> None:
    if process == 1:
        time.sleep(60)
    processes.meet("step 3")


def killed(process: int, folder: Path) -> None:
    processes.meet("all are here")
    if process == int((folder / "victim").read_text()):
        os.kill(os.getpid(), signal.SIGKILL)
    processes.meet("step 3")


CASES = {"agreement": agreement, "difference": difference, "alone": alone, "absent": absent, "killed": killed}

if __name__ == "__main__":
    main()
