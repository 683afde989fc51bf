"""Figures of planning and writing batches: one thread, two threads, and the fill of the rows."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from _data_core.packers import NumpyPacker, grain_rows, other_fills
from _data_core.settings import PER_TOKEN, TOPOLOGIES, WINDOW, Settings, copy_all, planner, ratio
from _measure import alternate, at_once, in_turn, spread
from pit.data import _core
from pit.data.packing import core_topology, empty_batch, materialise
from pit.data.template import gap, quality
from pit.data.tokens import Tokens
from pit.types import Batch, Topology


def packing(settings: Settings) -> dict[str, Any]:
    """Measure writing batches into one set of buffers.

    memcpy copies as many batches into the same five arrays; at full size their 42 MB exceed most caches. `from_cache`
    copies one batch as often: an upper bound.
    """
    table, batches, layout = _core.TokenTable(settings.columns()), settings.size.batches, settings.size.layout
    rows: dict[str, Any] = {}
    for name, topology in ((name, make()) for name, make in TOPOLOGIES.items()):
        plans = planner(settings.lengths, topology, layout, settings.seed)
        planned = [plans.next_step() for _ in range(batches)]
        out = empty_batch(1, topology, layout)
        sources = [materialise(plan, 0, 1, table, topology, layout) for plan in planned]

        def write(planned: Sequence[_core.Plan] = planned, topology: Topology = topology, out: Batch = out) -> None:
            for plan in planned:
                materialise(plan, 0, 1, table, topology, layout, out=out, threads=1)

        contenders: dict[str, Callable[[], object]] = {
            "pit": write,
            "memcpy": partial(copy_all, sources, out),
            "memcpy_from_cache": partial(copy_all, sources[:1] * batches, out),
        }
        seconds = alternate(contenders, settings.rounds, time.process_time)
        tokens = batches * layout.rows * layout.row_length
        rows[name] = {
            "GB_per_s": {c: spread(20 * tokens / s / 1e9) for c, s in seconds.items()},
            "million_tokens_per_s": spread(tokens / seconds["pit"] / 1e6),
            "share_of_memcpy": ratio(seconds["memcpy"], seconds["pit"]),
            "share_of_memcpy_from_cache": ratio(seconds["memcpy_from_cache"], seconds["pit"]),
        }
    return rows


def trees(settings: Settings) -> dict[str, Any]:
    """Measure gap trees, after checking that NumPy's first batch equals the core's.

    Grain packs the finished token arrays of whole trees: it neither lays out trees nor writes the other arrays.
    """
    topology, lengths, columns = gap(), settings.lengths, settings.columns()
    size, layout = settings.size, settings.size.layout
    table, plans = _core.TokenTable(columns), planner(lengths, topology, layout, settings.seed)
    draws = _core.StagedCurriculum(settings.seed, len(lengths), [(0, [1, 0, 0, 0])]).draw(0, 1 << 20)[0]
    packer = NumpyPacker.over(topology, layout, columns, lengths, draws, WINDOW)
    first = materialise(planner(lengths, topology, layout, settings.seed).next_step(), 0, 1, table, topology, layout)
    batch = packer.next()
    assert all(np.array_equal(getattr(batch, f.name), getattr(first, f.name)) for f in fields(Batch))
    order = [s.column for s in topology.segments]
    elements = [np.concatenate([np.ones(n + 1, np.int32) for n in lengths[i][order]]) for i in draws[: size.elements]]
    out, placed = empty_batch(1, topology, layout), dict[str, int]()

    def core() -> None:
        placed["pit"] = 0
        for _ in range(size.steps):
            plan = plans.next_step()
            materialise(plan, 0, 1, table, topology, layout, out=out, threads=1)
            placed["pit"] += len(plan.tree_example)

    def in_numpy() -> None:
        placed["numpy"] = sum(int((packer.next().example_id >= 0).sum()) for _ in range(size.numpy_steps))

    def in_grain() -> None:
        placed["grain_first_fit"] = len(elements)
        for _ in grain_rows(elements, "first_fit", layout.row_length, layout.rows):
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
    """Compute the fill of one epoch in rows of half the length, in a window of 1,024 trees; nothing is timed.

    The core keeps all pieces of a tree that is longer than a row in one group; the others get the pieces one by one,
    without that rule. First-fit keeps every row of the epoch open, Grain 32 or 1,024 rows. Concat-then-split fills all
    rows because it cuts sequences at the end of a row, which trees do not allow; `cut` is the share of cut sequences.
    """
    full = settings.size.layout
    layout, rows = replace(full, row_length=full.row_length // 2), {}
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
        ends = np.arange(1, totals.sum() // layout.row_length) * layout.row_length
        cuts = len(np.unique(np.searchsorted(np.cumsum(totals), ends)))
        rows[name] = {
            "mean_tokens_per_tree": round(float(totals.sum() / placed), 1),
            "pit": round(float(np.mean(filled)), 5),
            "pit_emptiest_group": round(min(filled), 5),
            **other_fills(shuffled, layout.row_length),
            "grain_concat_then_split_cut": round(cuts / len(totals), 3),
        }
    return rows


def threads(settings: Settings) -> dict[str, Any]:
    """Measure the gain of two threads over one: the groups of a plan, memcpy, and hashing.

    memcpy moves as many bytes, and hashing uses registers only: their gains show the capacity of the machine during the
    round, which is none while other processes keep its cores busy. Rounds in which hashing gained a half or more are
    therefore also shown alone. CPU seconds of two threads over those of one depend less on other processes. This row
    takes five times the rounds of the others.
    """
    topology, groups, layout = quality(), settings.size.groups, settings.size.layout
    lengths = np.random.default_rng(settings.seed).integers(10, min(300, layout.row_length // 4), (20_000, 3), np.int32)
    columns = (Tokens.of([range(n) for n in column]) for column in lengths.T)
    table = _core.TokenTable([[(column.values, column.offsets)] * 2 for column in columns])
    sizes = {"row_length": layout.row_length, "rows_per_group": layout.rows, "trees_per_group": layout.trees}
    plan = _core.plan_trees(table.lengths(), core_topology(topology, layout.closings), **sizes)
    out, source = (empty_batch(groups, topology, layout) for _ in range(2))
    for name in PER_TOKEN:
        getattr(source, name)[:] = 1
    text = bytes(settings.size.hashed)

    def halves(batch: Batch) -> list[Batch]:
        middle = groups * layout.rows // 2
        return [replace_rows(batch, slice(0, middle)), replace_rows(batch, slice(middle, None))]

    write = partial(materialise, plan, 0, groups, table, topology, layout, out=out)
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
