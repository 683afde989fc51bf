"""Timing for benches: contenders alternate in one process; medians, ranges, and the origin of every figure."""

import argparse
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
    """Return seconds per round of each contender; they alternate, so that a busy machine slows all of them.

    Args:
        contenders: calls by name; a call does all of a contender's work. The first call of each is not timed.
        rounds: timed calls of each contender.
        clock: `time.process_time` leaves out the time of other processes, for work of one thread.
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
    """Call one after another."""
    for call in calls:
        call()


def at_once(calls: Sequence[Contender]) -> None:
    """Make the first call on this thread and each other one on a thread of its own."""
    others = [threading.Thread(target=call) for call in calls[1:]]
    for other in others:
        other.start()
    calls[0]()
    for other in others:
        other.join()


def spread(values: np.ndarray, digits: int = 4) -> dict[str, float]:
    """Return median, least and greatest value of the rounds, with so many significant digits."""
    named = {"median": float(np.median(values)), "min": float(values.min()), "max": float(values.max())}
    return {name: float(f"{value:.{digits}g}") for name, value in named.items()}


def commit() -> str:
    """Return the measured commit, and whether tracked files differ from it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    # Results that were just written do not change the measured code.
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True)
    return head + (" with changes" if changed.stdout.strip() else "")


def origin(seed: int, rounds: int) -> dict[str, Any]:
    """Return the origin of a figure: commit, package versions, machine, seed, rounds."""
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "seed": seed,
        "rounds": rounds,
    }


def merge_rows(out: Path, rows: Mapping[str, Any]) -> None:
    """Write rows into a results file; they replace rows of the same name, and other rows stay."""
    present = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    out.write_text(json.dumps({**present, **rows}, indent=2) + "\n", encoding="utf-8")


def resident() -> dict[str, float]:
    """Return resident megabytes of this process by kind (Linux): RssAnon its own, RssFile of mapped files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
    return {name.rstrip(":"): int(kilobytes) * 1024 / 1e6 for name, kilobytes, _ in lines}


def size_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add `--full`, for the size that bench/results/NAME.json records, and `--out`, for another file of results."""
    parser.add_argument("--full", action="store_true", help=f"measure at full size and write bench/results/{name}.json")
    parser.add_argument("--out", type=Path, help="write the figures to this file (default: only with --full)")


def results_file(options: argparse.Namespace, name: str) -> Path | None:
    """Return the file that figures go to: `--out`, with `--full` the committed one, otherwise none."""
    if options.out is not None:
        return Path(options.out)
    return Path(__file__).parent / "results" / f"{name}.json" if options.full else None


def keep(out: Path | None, rows: Mapping[str, Any], summary: str) -> None:
    """Write and print rows where there is a file for them, then print the summary: the last line of every scenario."""
    if out is not None:
        merge_rows(out, rows)
        print(json.dumps(rows, indent=2))
    print(summary, flush=True)
