"""Benchmark of the token store: writing, warm opening and verifying a store of synthetic rows.

    python bench/store.py [--full]

The store is built once, then opened repeatedly in the same process: `open_s` covers the manifest, the maps, the offsets
and the lengths of all folds. Verification is measured in the C++ core alone (`verify`: tokens and checksums) and as in
`pit data check --full` (`full`: also the digests of the files). With `--full` there are a million rows: 20,000
different ones are repeated, because generating a million would take longer than writing them.
"""

import argparse
import os
import resource
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import _synthetic
from _measure import keep, origin, results_file, size_options, spread
from pit.data.store import Store, build
from pit.types import FOLDS

DIFFERENT_ROWS = 20_000


def open_seconds(folder: Path) -> float:
    """Return the seconds to open a store and read the lengths of every row."""
    begin = time.perf_counter()
    store = Store.open(folder)
    for name in FOLDS:
        store.fold(name).lengths()
    return time.perf_counter() - begin


def verify_rate(store: Store, size: int) -> float:
    """Return the gigabytes per second of Arrow files whose tokens and checksums the core verifies."""
    begin = time.perf_counter()
    for name in FOLDS:
        store.fold(name).table.verify()
    return size / (time.perf_counter() - begin) / 1e9


def full_rate(store: Store, size: int) -> float:
    """Return the gigabytes per second of a full verification, digests of the files included."""
    begin = time.perf_counter()
    store.verify()
    return size / (time.perf_counter() - begin) / 1e9


def zlib_rate(store: Store, size: int) -> float:
    """Return the gigabytes per second of zlib's crc32, for comparison."""
    contents = [path.read_bytes() for path in store.path.glob("*.arrow")]
    begin = time.perf_counter()
    for content in contents:
        zlib.crc32(content)
    return size / (time.perf_counter() - begin) / 1e9


def measure(rows: int, workers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the figures of a store of so many rows."""
    template = _synthetic.template()
    preferences = _synthetic.preferences(rows, DIFFERENT_ROWS)
    begin = time.perf_counter()
    store = build(preferences, folder, template, workers=workers)
    write_s = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.glob("*.arrow"))

    def repeated(call: Callable[[], float]) -> dict[str, float]:
        return spread(np.array([call() for _ in range(rounds)]))

    return {
        "rows": rows,
        "tokens": store.manifest["tokens"],
        "bytes": size,
        "files": len(list(folder.glob("*.arrow"))),
        "workers": workers,
        "write_s": write_s,
        "write_rows_per_s": rows / write_s,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "open_s": repeated(lambda: open_seconds(folder)),
        "verify_gb_per_s": repeated(lambda: verify_rate(store, size)),
        "full_gb_per_s": repeated(lambda: full_rate(store, size)),
        "zlib_crc32_gb_per_s": repeated(lambda: zlib_rate(store, size)),
    }


def main() -> None:
    """Measure and report the figures of one store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="rows of the store [5,000; with --full 1,000,000]")
    parser.add_argument("--rounds", type=int, help="timed calls of each kind [3; with --full 9]")
    parser.add_argument("--workers", type=int, help="processes that write [1; with --full one per core]")
    size_options(parser, "store")
    options = parser.parse_args()
    rows = options.rows or (1_000_000 if options.full else 5_000)
    rounds = options.rounds or (9 if options.full else 3)
    workers = options.workers or ((os.cpu_count() or 1) if options.full else 1)
    with TemporaryDirectory() as folder:
        figures = measure(rows, workers, rounds, Path(folder) / "store") | origin(0, rounds)
    rates = f"{figures['write_rows_per_s']:,.0f} rows written per second, opened in {figures['open_s']['median']:.3f} s"
    summary = f"{rows:,} rows: {rates}, verified at {figures['verify_gb_per_s']['median']:.2f} GB/s"
    keep(results_file(options, "store"), figures, summary)


if __name__ == "__main__":
    main()
