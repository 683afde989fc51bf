"""Figures of the loader: tokens per second from a store on disk, and the memory of a process that loads an epoch."""

import json
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from _data_core.settings import FULL, WINDOW, Settings, planner
from _measure import alternate, resident, spread
from pit.config import PackingConfig
from pit.data.loader import Loader
from pit.data.packing import Layout, empty_batch, materialise
from pit.data.store import Fold, Store
from pit.data.template import gap
from pit.types import Shards

SCRIPT = Path(__file__).parents[1] / "data_core.py"


def loader(settings: Settings) -> dict[str, Any]:
    """Measure gap trees in live tokens, and the memory of a process that loads an epoch.

    `direct` plans and writes without Grain, into reused buffers. Anonymous memory belongs to the process; memory of
    files is the mapped store, which the system can reclaim.
    """
    layout, steps = settings.size.layout, settings.size.steps
    fold = settings.store(max(settings.size.copies))
    batches = partial(islice, make_loader(fold, layout, settings.seed), steps)
    plans, table = planner(fold.lengths(), gap(), layout, settings.seed), fold.table
    out = empty_batch(1, gap(), layout)

    def direct() -> None:
        for _ in range(steps):
            materialise(plans.next_step(), 0, 1, table, gap(), layout, out=out)

    live = np.mean([batch.tokens for (batch,) in batches()])
    seconds = alternate({"grain": lambda: sum(1 for _ in batches()), "direct": direct}, settings.rounds)
    return {
        "million_tokens_per_s": {name: spread(steps * live / s / 1e6) for name, s in seconds.items()},
        "memory_MB": {f"{copies}x": memory(settings, copies) for copies in settings.size.copies},
    }


def make_loader(fold: Fold, layout: Layout, seed: int) -> Loader:
    """Return a loader of steps of one batch, one shard."""
    packing = PackingConfig(row_length=layout.row_length, rows=layout.rows, window=WINDOW, trees=layout.trees)
    return Loader(fold, gap(), layout, packing, shards=Shards.all_local(1), seed=seed, config_hash="")


def memory(settings: Settings, copies: int) -> dict[str, float]:
    """Return the peak memory of a separate process that loads an epoch of the store."""
    settings.store(copies)
    size = ["--full"] if settings.size is FULL else []
    command = [sys.executable, str(SCRIPT), "--load-an-epoch", str(settings.folder / f"store-{copies}"), *size]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def load_an_epoch(path: Path, layout: Layout) -> dict[str, float]:
    """Load an epoch; return megabytes of the store's tokens and of this process's peak memory."""
    fold = Store.open(path).fold("reward")
    before, most, loaded = resident(), resident(), 0
    for (batch,) in make_loader(fold, layout, 0):
        loaded += int((batch.example_id >= 0).sum())
        now = resident()
        most = {kind: max(most[kind], now[kind]) for kind in now}
        if loaded >= len(fold):
            break
    tokens = 4 * int(fold.lengths().sum()) / 1e6
    return {
        "store_tokens": round(tokens, 1),
        "examples": len(fold),
        "anonymous_growth": round(most["RssAnon"] - before["RssAnon"], 1),
        "anonymous": round(most["RssAnon"], 1),
        "of_files": round(most["RssFile"], 1),
    }
