"""Benchmark of the token store: writing, warm opening and verifying a store of a million synthetic rows.

Run: `python bench/store.py`. The store is built once, then opened repeatedly in the same process: `open_s` covers the
manifest, the maps, the offsets and the lengths of all folds. Verification is measured in the C++ core alone (`verify`:
tokens and checksums) and as in `pit data check --full` (`full`: also the digests of the files). 20,000 different rows
are repeated, because generating a million would take longer than writing them.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _measure import commit
from pit.data.store import Store, build
from pit.data.synthetic import generate
from pit.data.template import Template
from pit.data.tokenizer import Tokenizer
from pit.evaluate.collect import versions
from pit.types import FOLDS

ROUNDS = 9
DIFFERENT_ROWS = 20_000


def spread(measure: Callable[[], float]) -> dict[str, float]:
    """Return the median and the extremes of `ROUNDS` measurements."""
    values = [measure() for _ in range(ROUNDS)]
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": ROUNDS}


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


def measure(rows: int, workers: int, folder: Path) -> dict[str, Any]:
    """Return the figures of a store of `rows` rows."""
    texts = (text for row in generate(4_000, 1) for text in (row.prompt[0].content, row.better, row.worse))
    template = Template(Tokenizer.train_bpe(texts, 1_024), (512, 512, 512))
    preferences = itertools.islice(itertools.cycle(list(generate(DIFFERENT_ROWS, 0))), rows)
    begin = time.perf_counter()
    store = build(preferences, folder, template, workers=workers)
    write_s = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    return {
        "rows": rows,
        "tokens": store.manifest["tokens"],
        "bytes": size,
        "files": len(list(folder.glob("*.arrow"))),
        "workers": workers,
        "write_s": write_s,
        "write_rows_per_s": rows / write_s,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "open_s": spread(lambda: open_seconds(folder)),
        "verify_gb_per_s": spread(lambda: verify_rate(store, size)),
        "full_gb_per_s": spread(lambda: full_rate(store, size)),
        "zlib_crc32_gb_per_s": spread(lambda: zlib_rate(store, size)),
    }


def main() -> None:
    """Measure, print, and write bench/results/store.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "store.json")
    arguments = parser.parse_args()
    origin = {"commit": commit(), "command": "python bench/store.py"}
    with TemporaryDirectory() as folder:
        figures = measure(arguments.rows, arguments.workers, Path(folder) / "store")
    device = f"{platform.machine()}, {os.cpu_count()} cores"
    result = {**origin, "device": device, "versions": versions(), **figures}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
