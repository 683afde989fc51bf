"""Benchmark of the C++ data core: speed of permuting, planning, packing and loading, fill of the rows, and memory.

Rows of figures, each of which runs alone (`--rows permutation fill`):

permutation  million indices per second of the keyed permutation, one core, compared with NumPy's shuffle of an array
draws        weighted draws and changes of weights per second in a table of 10^7, one thread, compared with torchrl,
             cpprb (sum trees) and torch.multinomial if they are installed (pip install torchrl cpprb)
packing      writing planned batches, one thread, compared with memcpy into the same five arrays
trees        trees per second from lengths to written batches, compared with a NumPy packer that makes the same batches
             and with Grain's first-fit packing of the same trees as finished token arrays
fill         share of token slots that hold a token: the planner, first-fit, Grain's packers
threads      gain of a second thread: writing a large batch, compared with memcpy and a loop without memory accesses
loader       tokens per second from a store on disk to batches, through Grain; memory at two sizes of the store

Run: `python bench/data_core.py --data HH_FOLDER`, or name the folder in PIT_HH_DATA. Contenders alternate within one
process, and each call does all of its work; a figure is the median of the rounds with its range, and a ratio is taken
round by round, so a busy machine slows both sides of it. The first four rows count CPU seconds of the process, all
others wall-clock seconds. Each row carries commit, versions, machine and seed, and replaces the row of its name in
bench/results/data_core.json.

A new row is a function of `Settings` that returns its figures, added to ROWS.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from importlib import metadata
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from _measure import alternate, at_once, in_turn, merge_rows, origin, resident, spread
from _packers import NumpyPacker, grain_rows, other_fills
from _samplers import SAMPLERS, Work, installed
from pit.config import PackingConfig, override
from pit.data import _core
from pit.data.loader import Loader
from pit.data.packing import Layout, core_topology, empty_batch, materialise
from pit.data.readers import read_preferences
from pit.data.store import Fold, Store, build
from pit.data.template import gap, policy_sft, quality
from pit.data.tokens import Tokens
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages.prepare import prepare
from pit.types import Batch, Topology

LAYOUT = Layout((1, 2, 3), 0, row_length=4096, rows=32, trees=1024)
"""Batch of most benchmarks: 32 x 4096 tokens."""

PER_TOKEN = ("token", "position", "visible_until", "previous", "loss_weight")
WINDOW = 1024
TOPOLOGIES = {"X -> y_w": policy_sft, "X -> {y_w, y_l}": quality, "gap": gap}


@dataclass
class Settings:
    """Settings of all rows; the store of HH-RLHF is built when a row first needs it."""

    data: str
    folder: Path
    rounds: int
    seed: int

    def store(self, copies: int) -> Fold:
        """Return `copies` copies of all rows of HH-RLHF, tokenised with the hh recipe, as one fold."""
        path = self.folder / f"store-{copies}"
        if not path.exists():
            rows = list(read_preferences(self.data)[0])
            repeated = (row for _ in range(copies) for row in rows)
            build(repeated, path, self._run.template, fractions={"reward": 1.0})
        return Store.open(path).fold("reward")

    @cached_property
    def _run(self) -> Run:
        run = Run(self.folder / "run", override(recipe("hh"), [f"data.path={self.data}"]))
        prepare(run)
        return run

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt, better and worse answer of every row."""
        return self.store(1).lengths()

    def columns(self) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Return random tokens of these lengths, in memory."""
        rng = np.random.default_rng(self.seed)
        columns = (Tokens.of([rng.integers(4, 4096, n, np.int32) for n in column]) for column in self.lengths.T)
        return [[(column.values, column.offsets)] for column in columns]


def planner(lengths: np.ndarray, topology: Topology, layout: Layout, seed: int) -> _core.Planner:
    """Return a planner of one group per step; no tree has a reference source."""
    return _core.Planner(
        lengths,
        core_topology(topology),
        row_length=layout.row_length,
        rows_per_group=layout.rows,
        groups_per_step=1,
        trees_per_group=layout.trees,
        window=WINDOW,
        seed=seed,
        config_hash=0,
        data_hash=0,
        stages=[(0, [1, 0, 0, 0])],
    )


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Return the ratios of two contenders' times, round by round."""
    return spread(numerator / denominator)


def permutation(settings: Settings) -> dict[str, Any]:
    """Measure `apply` on random indices, a million per call; NumPy shuffles an array of ten million."""
    count, rng = 1 << 20, np.random.default_rng(settings.seed)
    sizes = {"10^3": 10**3, "10^7": 10**7, "2^20+1": 2**20 + 1, "2^24+1": 2**24 + 1, "10^8": 10**8, "2^48": 2**48}
    contenders: dict[str, Callable[[], object]] = {}
    for name, n in sizes.items():
        contenders[name] = partial(_core.Permutation(n, settings.seed).apply, rng.integers(0, n, count))
    contenders["numpy"] = partial(rng.permutation, 10**7)
    seconds = alternate(contenders, settings.rounds, time.process_time)
    return {
        "million_indices_per_s": {name: spread(count / seconds[name] / 1e6) for name in sizes},
        "numpy_shuffle_of_10^7_million_per_s": spread(10 / seconds["numpy"]),
    }


def draws(settings: Settings) -> dict[str, Any]:
    """Measure batches of 4,096 draws, after each of which the drawn entries get new weights.

    A round is 16 batches (one of multinomial).
    """
    rng = np.random.default_rng(settings.seed)
    work = Work(10**7, 4096, rng.random(10**7), rng.random(4096), settings.seed)
    batches = {name: 1 if name == "torch.multinomial" else 16 for name in SAMPLERS}
    contenders = {name: partial(repeat, batch, batches[name]) for name, batch in installed(work).items()}
    seconds = alternate(contenders, settings.rounds, time.process_time)
    per_batch = {name: s / batches[name] for name, s in seconds.items()}
    return {
        "million_draws_and_updates_per_s": {name: spread(work.batch / s / 1e6) for name, s in per_batch.items()},
        "pit_over": {name: ratio(s, per_batch["pit"]) for name, s in per_batch.items() if name != "pit"},
        "peers": {name: metadata.version(name) for name in ("torch", "torchrl", "cpprb") if find_spec(name)},
    }


def repeat(call: Callable[[], object], times: int) -> None:
    """Call a function `times` times."""
    for _ in range(times):
        call()


def packing(settings: Settings) -> dict[str, Any]:
    """Measure writing sixteen batches into one set of buffers.

    memcpy copies sixteen batches into the same five arrays; the 42 MB per round exceed most caches. `from_cache` copies
    one batch sixteen times: an upper bound.
    """
    table, batches = _core.TokenTable(settings.columns()), 16
    rows: dict[str, Any] = {}
    for name, topology in ((name, make()) for name, make in TOPOLOGIES.items()):
        plans = planner(settings.lengths, topology, LAYOUT, settings.seed)
        planned = [plans.next_step() for _ in range(batches)]
        out = empty_batch(1, topology, LAYOUT)
        sources = [materialise(plan, 0, 1, table, topology, LAYOUT) for plan in planned]

        def write(planned: Sequence[_core.Plan] = planned, topology: Topology = topology, out: Batch = out) -> None:
            for plan in planned:
                materialise(plan, 0, 1, table, topology, LAYOUT, out=out, threads=1)

        contenders: dict[str, Callable[[], object]] = {
            "pit": write,
            "memcpy": partial(copy_all, sources, out),
            "memcpy_from_cache": partial(copy_all, sources[:1] * batches, out),
        }
        seconds = alternate(contenders, settings.rounds, time.process_time)
        tokens = batches * LAYOUT.rows * LAYOUT.row_length
        rows[name] = {
            "GB_per_s": {c: spread(20 * tokens / s / 1e9) for c, s in seconds.items()},
            "million_tokens_per_s": spread(tokens / seconds["pit"] / 1e6),
            "share_of_memcpy": ratio(seconds["memcpy"], seconds["pit"]),
            "share_of_memcpy_from_cache": ratio(seconds["memcpy_from_cache"], seconds["pit"]),
        }
    return rows


def copy_all(sources: Sequence[Batch], out: Batch) -> None:
    """Copy the five arrays with one entry per token, of every source in turn, by memcpy."""
    for source in sources:
        for name in PER_TOKEN:
            np.copyto(getattr(out, name), getattr(source, name))


def trees(settings: Settings) -> dict[str, Any]:
    """Measure gap trees of HH-RLHF in batches of 32 x 4096, after checking that NumPy's batches equal the core's.

    Grain packs the finished token arrays of 1,500 whole trees: it neither lays out trees nor writes the other arrays.
    """
    topology, lengths, columns = gap(), settings.lengths, settings.columns()
    table, plans = _core.TokenTable(columns), planner(lengths, topology, LAYOUT, settings.seed)
    draws = _core.StagedCurriculum(settings.seed, len(lengths), [(0, [1, 0, 0, 0])]).draw(0, 1 << 20)[0]
    packer = NumpyPacker.over(topology, LAYOUT, columns, lengths, draws, WINDOW)
    first = materialise(planner(lengths, topology, LAYOUT, settings.seed).next_step(), 0, 1, table, topology, LAYOUT)
    batch = packer.next()
    assert all(np.array_equal(getattr(batch, f.name), getattr(first, f.name)) for f in fields(Batch))
    order = [s.column for s in topology.segments]
    elements = [np.concatenate([np.ones(n + 1, np.int32) for n in lengths[i][order]]) for i in draws[:1500]]
    out, placed = empty_batch(1, topology, LAYOUT), dict[str, int]()

    def core() -> None:
        placed["pit"] = 0
        for _ in range(100):
            plan = plans.next_step()
            materialise(plan, 0, 1, table, topology, LAYOUT, out=out, threads=1)
            placed["pit"] += len(plan.tree_example)

    def in_numpy() -> None:
        placed["numpy"] = sum(int((packer.next().example_id >= 0).sum()) for _ in range(5))

    def in_grain() -> None:
        placed["grain_first_fit"] = len(elements)
        for _ in grain_rows(elements, "first_fit", LAYOUT.row_length, LAYOUT.rows):
            pass

    contenders = {"pit": core, "numpy": in_numpy, "grain_first_fit": in_grain}
    seconds = alternate(contenders, settings.rounds, time.process_time)
    per_tree = {name: seconds[name] / placed[name] for name in seconds}
    return {
        "trees_per_s": {name: spread(1 / s) for name, s in per_tree.items()},
        "times_numpy": ratio(per_tree["numpy"], per_tree["pit"]),
        "times_grain_first_fit": ratio(per_tree["grain_first_fit"], per_tree["pit"]),
    }


def fill(settings: Settings) -> dict[str, Any]:
    """Compute the fill of one epoch at T = 2048, groups of 32 rows, a window of 1,024 trees; nothing is timed.

    The core keeps all pieces of a tree that is longer than a row in one group; the others get the pieces one by one,
    without that rule. First-fit keeps every row of the epoch open, Grain 32 or 1,024 rows. Concat-then-split fills all
    rows because it cuts sequences at the end of a row, which trees do not allow; `cut` is the share of cut sequences.
    """
    layout, rows = replace(LAYOUT, row_length=2048), {}
    for name, topology in ((name, make()) for name, make in TOPOLOGIES.items()):
        plans = planner(settings.lengths, topology, layout, settings.seed)
        filled, pieces, placed = [], [], 0
        while placed < len(settings.lengths):
            plan = plans.next_step()
            placed += len(plan.tree_example)
            filled.append(int(plan.piece_length.sum()) / (layout.rows * layout.row_length))
            pieces.append(plan.piece_length)
        totals = np.concatenate(pieces)
        shuffled = np.random.default_rng(settings.seed).permutation(totals)
        cuts = len(np.unique(np.searchsorted(np.cumsum(totals), np.arange(1, totals.sum() // 2048) * 2048)))
        rows[name] = {
            "mean_tokens_per_tree": round(float(totals.sum() / placed), 1),
            "pit": round(float(np.mean(filled)), 5),
            "pit_emptiest_group": round(min(filled), 5),
            **other_fills(shuffled, layout.row_length),
            "grain_concat_then_split_cut": round(cuts / len(totals), 3),
        }
    return rows


def threads(settings: Settings) -> dict[str, Any]:
    """Measure the gain of two threads over one: 64 groups of a plan (8.4 million tokens), memcpy, and hashing.

    memcpy moves as many bytes, and hashing uses registers only: their gains show the capacity of the machine during the
    round, which is none while other processes keep its cores busy. Rounds in which hashing gained a half or more are
    therefore also shown alone. CPU seconds of two threads over those of one depend less on other processes. This row
    takes five times the rounds of the others.
    """
    topology, groups = quality(), 64
    lengths = np.random.default_rng(settings.seed).integers(10, 300, (20_000, 3), np.int32)
    columns = (Tokens.of([range(n) for n in column]) for column in lengths.T)
    table = _core.TokenTable([[(column.values, column.offsets)] * 2 for column in columns])
    sizes = {"row_length": LAYOUT.row_length, "rows_per_group": LAYOUT.rows, "trees_per_group": LAYOUT.trees}
    plan = _core.plan_trees(table.lengths(), core_topology(topology), **sizes)
    out, source = (empty_batch(groups, topology, LAYOUT) for _ in range(2))
    for name in PER_TOKEN:
        getattr(source, name)[:] = 1
    text = bytes(1 << 23)

    def halves(batch: Batch) -> list[Batch]:
        middle = groups * LAYOUT.rows // 2
        return [replace_rows(batch, slice(0, middle)), replace_rows(batch, slice(middle, None))]

    write = partial(materialise, plan, 0, groups, table, topology, LAYOUT, out=out)
    copies = [partial(copy_all, [s], o) for s, o in zip(halves(source), halves(out), strict=True)]
    hashing: list[Callable[[], object]] = [partial(hashlib.sha256, text)] * 2
    contenders: dict[str, Callable[[], object]] = {
        "pit 1": partial(write, threads=1),
        "pit 2": partial(write, threads=2),
        "memcpy 1": partial(in_turn, copies),
        "memcpy 2": partial(at_once, copies),
        "loop 1": partial(in_turn, hashing),
        "loop 2": partial(at_once, hashing),
    }
    seconds = alternate(contenders, 5 * settings.rounds)
    of_cores = alternate(contenders, settings.rounds, time.process_time)
    gains = {name: seconds[f"{name} 1"] / seconds[f"{name} 2"] for name in ("pit", "memcpy", "loop")}
    free = gains["loop"] > 1.5
    return {
        "gain_of_a_second_thread": gain_of(gains),
        "rounds_measured": len(free),
        "rounds_with_two_free_cores": int(free.sum()),
        "gain_in_those": gain_of({name: gain[free] for name, gain in gains.items()}) if free.any() else None,
        "ms": {name: spread(1e3 * s) for name, s in seconds.items()},
        "core_seconds_of_two_over_one": {name: ratio(of_cores[f"{name} 2"], of_cores[f"{name} 1"]) for name in gains},
    }


def gain_of(gains: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the gain of each contender, and the ratio of the core's gain to those of the others."""
    over = {f"pit_over_{name}": spread(gains["pit"] / gains[name]) for name in ("memcpy", "loop")}
    return {**{name: spread(gain) for name, gain in gains.items()}, **over}


def replace_rows(batch: Batch, rows: slice) -> Batch:
    """Return the batch with some rows of its per-token arrays."""
    return replace(batch, **{name: getattr(batch, name)[rows] for name in PER_TOKEN})


def loader(settings: Settings) -> dict[str, Any]:
    """Measure gap trees in batches of 32 x 4096, in live tokens, and the memory of a process that loads an epoch.

    `direct` plans and writes without Grain, into reused buffers. Anonymous memory belongs to the process; memory of
    files is the mapped store, which the system can reclaim.
    """
    fold = settings.store(10)
    batches = partial(islice, make_loader(fold, settings.seed), 50)
    plans, table = planner(fold.lengths(), gap(), LAYOUT, settings.seed), fold.table
    out = empty_batch(1, gap(), LAYOUT)

    def direct() -> None:
        for _ in range(50):
            materialise(plans.next_step(), 0, 1, table, gap(), LAYOUT, out=out)

    live = np.mean([live_tokens(batch) for (batch,) in batches()])
    seconds = alternate({"grain": lambda: sum(1 for _ in batches()), "direct": direct}, settings.rounds)
    return {
        "million_tokens_per_s": {name: spread(50 * live / s / 1e6) for name, s in seconds.items()},
        "memory_MB": {f"{copies}x": memory(settings, copies) for copies in (1, 10)},
    }


def make_loader(fold: Fold, seed: int) -> Loader:
    """Return a loader of steps of one batch of 32 x 4096, one shard."""
    packing = PackingConfig(row_length=LAYOUT.row_length, rows=LAYOUT.rows, window=WINDOW, trees=LAYOUT.trees)
    return Loader(fold, gap(), LAYOUT, packing, shards=1, seed=seed, config_hash="")


def live_tokens(batch: Batch) -> int:
    return int((batch.visible_until > np.arange(batch.token.shape[1], dtype=np.int32)).sum())


def memory(settings: Settings, copies: int) -> dict[str, float]:
    """Return the peak memory of a separate process that loads an epoch of the store."""
    settings.store(copies)
    command = [sys.executable, __file__, "--load-an-epoch", str(settings.folder / f"store-{copies}")]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def load_an_epoch(path: Path) -> dict[str, float]:
    """Load an epoch; return megabytes of the store's tokens and of this process's peak memory."""
    fold = Store.open(path).fold("reward")
    before, most, loaded = resident(), resident(), 0
    for (batch,) in make_loader(fold, 0):
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


ROWS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "permutation": permutation,
    "draws": draws,
    "packing": packing,
    "trees": trees,
    "fill": fill,
    "threads": threads,
    "loader": loader,
}

WITHOUT_DATA = ("permutation", "draws", "threads")
"""Rows of figures that need no preferences."""


def main() -> None:
    """Measure the chosen rows and write them into bench/results/data_core.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="parts to measure (default: all)")
    parser.add_argument("--data", default=os.environ.get("PIT_HH_DATA"), help="HH-RLHF folder as published")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each contender (default: 7)")
    parser.add_argument("--seed", type=int, default=1, help="seed of draws, tokens and permutations (default: 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data_core.json")
    parser.add_argument("--load-an-epoch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_an_epoch is not None:
        print(json.dumps(load_an_epoch(arguments.load_an_epoch)))
        return
    rows = arguments.rows or list(ROWS)
    left_out = [] if arguments.data else [name for name in rows if name not in WITHOUT_DATA]
    if left_out:
        print(f"left out: {', '.join(left_out)}; give --data HH_FOLDER or set PIT_HH_DATA", file=sys.stderr)
        if arguments.rows:
            sys.exit(1)
    with TemporaryDirectory() as folder:
        settings = Settings(arguments.data, Path(folder), arguments.rounds, arguments.seed)
        for name in [row for row in rows if row not in left_out]:
            row = {**ROWS[name](settings), **origin(arguments.seed, arguments.rounds)}
            merge_rows(arguments.out, {name: row})
            print(f"{name}: {json.dumps(row, indent=2)}", flush=True)


if __name__ == "__main__":
    main()
