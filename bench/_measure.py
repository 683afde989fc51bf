"""Timing for benches: contenders in one process, in turns; medians, ranges and where the figures come from."""

import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pit.evaluate.collect import versions

Contender = Callable[[], object]


def alternate(
    contenders: Mapping[str, Contender], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Seconds of every round of each contender; they take turns, so that what slows the machine slows them all.

    Args:
        contenders: what to time, by name; each call does all of a contender's work. One call of each is not timed.
        rounds: timed calls of each.
        clock: `time.process_time` leaves out the time that other processes held the core, for work of one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1 + rounds):
        for name, call in contenders.items():
            begin = clock()
            call()
            if turn > 0:
                seconds[name].append(clock() - begin)
    return {name: np.array(values) for name, values in seconds.items()}


def in_turn(calls: Sequence[Contender]) -> None:
    """Call one after the other."""
    for call in calls:
        call()


def at_once(calls: Sequence[Contender]) -> None:
    """Call the first on this thread and each other on one of its own."""
    others = [threading.Thread(target=call) for call in calls[1:]]
    for other in others:
        other.start()
    calls[0]()
    for other in others:
        other.join()


def spread(values: np.ndarray, digits: int = 4) -> dict[str, float]:
    """Median, least and greatest of the rounds, in so many significant digits."""
    named = {"median": float(np.median(values)), "min": float(values.min()), "max": float(values.max())}
    return {name: float(f"{value:.{digits}g}") for name, value in named.items()}


def commit() -> str:
    """The commit that is measured, and whether anything of it was changed."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    # Results of rows that were measured just before are no change to what is measured.
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True)
    return head + (" with changes" if changed.stdout.strip() else "")


def origin(seed: int, rounds: int) -> dict[str, Any]:
    """What a figure carries: commit, package versions, machine, seed, rounds."""
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "seed": seed,
        "rounds": rounds,
    }


def merge_rows(out: Path, rows: Mapping[str, Any]) -> None:
    """Write rows into a results file, in place of those of the same name; other rows stay."""
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    out.write_text(json.dumps({**found, **rows}, indent=2) + "\n", encoding="utf-8")


def resident() -> dict[str, float]:
    """Megabytes of this process that are in memory, by kind (Linux): RssAnon its own, RssFile of mapped files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
    return {name.rstrip(":"): int(kilobytes) * 1024 / 1e6 for name, kilobytes, _ in lines}
