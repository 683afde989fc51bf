"""A program of several processes that meets in every way of `pit.processes`; each case prints what it saw."""

import argparse
import os
import signal
import time
from pathlib import Path

from pit import processes
from pit.atomic import write_file
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
    processes.by_first(lambda: (folder / f"by-{process}").touch(), "five")
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


def copies(process: int, folder: Path) -> None:
    """Two hosts without a common disk, and files that pass through a bucket."""
    from pit.config import override
    from pit.recipes import recipe
    from pit.run import copies
    from pit.run.folder import Run

    own, bucket = folder / f"host-{process}", folder / "bucket"
    run = Run(own, override(recipe("tiny"), [f"checkpoints={bucket}"]))

    def make() -> None:
        for name in FILES:
            write_file(own / name, f"{name} of {process}".encode())

    copies.made_by_first(run, make, "files")
    for name in FILES:
        assert (own / name).read_text() == f"{name} of 0"
    print(sorted(copies.listing(own)), (own / "stages" / "before" / "metrics.jsonl").exists())
    # A file that differs in nothing but its content is copied again; what is in the bucket is not sent again.
    table = bucket / copies.PLACE / "store" / "input.arrow"
    before = table.stat().st_mtime_ns
    copies.made_by_first(run, lambda: write_file(own / "config.json", b"config.json OF 0"), "one more")
    assert (own / "config.json").read_bytes() == b"config.json OF 0"
    assert table.stat().st_mtime_ns == before

    # Another store's tables may have the same sizes: its manifest tells.
    def again() -> None:
        write_file(own / "store/input.arrow", b"store/input.arrow OF 0")
        write_file(own / "store/manifest.json", b"store/manifest.json OF 0")

    copies.made_by_first(run, again, "another store")
    assert (own / "store/input.arrow").read_bytes() == b"store/input.arrow OF 0"
    copies.VISIBLE_S = 0.2
    copies.made_by_first(Run(own, recipe("tiny")), lambda: write_file(own / "search.json", b"{}"), "no bucket")
    processes.meet("the end")


FILES = ("config.json", "store/manifest.json", "store/input.arrow", "stages/sft/done.json", "refresh/pairs.jsonl")

CASES = {
    "agreement": agreement,
    "difference": difference,
    "alone": alone,
    "absent": absent,
    "killed": killed,
    "copies": copies,
}

if __name__ == "__main__":
    main()
