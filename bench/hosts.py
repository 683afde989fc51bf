"""Processor time per step of one process among many: planning, which every process does whole, and writing its share.

    python bench/hosts.py [--full]

Processes are simulated: the planner plans the groups of all, and the batch is written as the last of them would write
it. Every process has four shards of two rows of 4,096 tokens, as the recipe `paper` has on a host of v4, so the global
batch grows with the processes. `write_all_s` is the time to write the whole batch, which a process does not do.
"""

import argparse
import time
from typing import Any

import numpy as np

from _measure import alternate, keep, origin, results_file, size_options, spread
from pit.data import _core
from pit.data.local import materialise_local
from pit.data.packing import Layout, core_topology, token_table
from pit.data.template import gap
from pit.data.tokens import Tokens
from pit.types import Closings, Shards

SHARDS = 4
"""Shards of a process: chips of a host."""

LAYOUT = Layout(Closings.roles(1, 2, 3), 0, row_length=4096, rows=2, trees=64)
LONGEST = 512
EXAMPLES = 50_000
WRITTEN_WHOLE = 64
"""Most processes whose whole batch is written."""


def columns(rng: np.random.Generator) -> list[Tokens]:
    """Return inputs and two answers of random lengths."""
    made = []
    for _ in range(3):
        length = rng.integers(16, LONGEST, EXAMPLES)
        offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        made.append(Tokens(np.zeros(offsets[-1], np.int32), offsets))
    return made


def measure(processes: int, table: _core.TokenTable, rounds: int) -> dict[str, Any]:
    """Return the processor seconds that a process spends on a step among so many."""
    count = SHARDS * processes
    shards = Shards(count, tuple(range(count - SHARDS, count)))
    planner = _core.Planner(
        lengths=table.lengths(),
        topology=core_topology(gap(), LAYOUT.closings),
        row_length=LAYOUT.row_length,
        rows_per_group=LAYOUT.rows,
        groups_per_step=count,
        trees_per_group=LAYOUT.trees,
        window=1024,
        seed=0,
        config_hash=0,
        data_hash=0,
        stages=[(0, [1, 0, 0, 0])],
    )
    plan = planner.next_step()
    calls = {
        "plan_s": planner.next_step,
        "write_s": lambda: materialise_local(plan, 0, shards, table, gap(), LAYOUT),
    }
    if processes <= WRITTEN_WHOLE:
        calls["write_all_s"] = lambda: materialise_local(plan, 0, Shards.all_local(count), table, gap(), LAYOUT)
    seconds = alternate(calls, rounds, time.process_time)
    trees = len(plan.tree_example)
    return {"processes": processes, "trees": trees, **{name: spread(values) for name, values in seconds.items()}}


def main() -> None:
    """Measure one process among 1 to 1,024."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size_options(parser, "hosts")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    counts = (1, 4, 16, 64, 256, 1024) if options.full else (1, 16, 256)
    table = token_table(columns(np.random.default_rng(0)))
    rows = [measure(processes, table, options.rounds) for processes in counts]
    most = rows[-1]
    seconds = " and ".join(f"{most[name]['median'] * 1e3:.2f} ms to {name[:-2]}" for name in ("plan_s", "write_s"))
    summary = f"one of {most['processes']:,} processes: {seconds} a step of {most['trees']:,} trees"
    keep(results_file(options, "hosts"), {"gap trees": {"rows": rows, **origin(0, options.rounds)}}, summary)


if __name__ == "__main__":
    main()
