"""The token store: writing, opening warm, and verifying one of a million rows of the synthetic task.

Run: `python bench/store.py`. The store is built once, then opened again and again in the same process: `open_s` is the
manifest, the maps, the offsets and the lengths of all folds. Verifying is measured alone (`verify`: tokens and
checksums in the C++ core) and as `pit data check --full` does it (`full`: digests of the files as well). The rows are
some thousand drawn ones, again and again: drawing a million would take longer than writing them.
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
DRAWN_ROWS = 20_000


def spread(measure: Callable[[], float]) -> dict[str, float]:
    """Median and extremes of some rounds."""
    values = [measure() for _ in range(ROUNDS)]
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": ROUNDS}


def open_seconds(folder: Path) -> float:
    """From nothing to the lengths of every row."""
    begin = time.perf_counter()
    store = Store.open(folder)
    for name in FOLDS:
        store.fold(name).lengths()
    return time.perf_counter() - begin


def verify_rate(store: Store, size: int) -> float:
    """Gigabytes of Arrow files a second through the core's checks of tokens and checksums."""
    begin = time.perf_counter()
    for name in FOLDS:
        store.fold(name).table.verify()
    return size / (time.perf_counter() - begin) / 1e9


def full_rate(store: Store, size: int) -> float:
    """The same with the digests of the files."""
    begin = time.perf_counter()
    store.verify()
    return size / (time.perf_counter() - begin) / 1e9


def zlib_rate(store: Store, size: int) -> float:
    """Gigabytes a second of zlib's crc32, for comparison."""
    contents = [path.read_bytes() for path in store.path.glob("*.arrow")]
    begin = time.perf_counter()
    for content in contents:
        zlib.crc32(content)
    return size / (time.perf_counter() - begin) / 1e9


def measure(rows: int, workers: int, folder: Path) -> dict[str, Any]:
    """Figures of one store of so many rows."""
    texts = (text for row in generate(4_000, 1) for text in (row.prompt[0].content, row.better, row.worse))
    template = Template(Tokenizer.train_bpe(texts, 1_024), (512, 512, 512))
    preferences = itertools.islice(itertools.cycle(list(generate(DRAWN_ROWS, 0))), rows)
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
