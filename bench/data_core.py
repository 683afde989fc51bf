"""Benchmark of the C++ data core: speed of permuting, planning, packing and loading, fill of the rows, and memory.

    python bench/data_core.py                              # short synthetic trees in small batches
    python bench/data_core.py --rows permutation fill      # some rows of figures
    python bench/data_core.py --full --data HH_FOLDER      # HH-RLHF as published, or name its folder in PIT_HH_DATA

permutation  million indices per second of the keyed permutation, one core, compared with NumPy's shuffle of an array
draws        weighted draws and changes of weights per second in a table of 10^7, one thread, compared with torchrl,
             cpprb (sum trees) and torch.multinomial if they are installed (pip install torchrl cpprb)
packing      writing planned batches, one thread, compared with memcpy into the same five arrays
trees        trees per second from lengths to written batches, compared with a NumPy packer that makes the same batches
             and with Grain's first-fit packing of the same trees as finished token arrays
fill         share of token slots that hold a token: the planner, first-fit, Grain's packers
threads      gain of a second thread: writing a large batch, compared with memcpy and a loop without memory accesses
loader       tokens per second from a store on disk to batches, through Grain; memory at two sizes of the store

Contenders alternate within one process, and each call does all of its work; a figure is the median of the rounds with
its range, and a ratio is taken round by round, so a busy machine slows both sides of it. The first four rows count CPU
seconds of the process, all others wall-clock seconds. Each row carries commit, versions, machine and seed, and replaces
the row of its name in the file of results.

A new row is a function of `Settings` that returns its figures, added to ROWS with its part of the summary.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _data_core.drawing import draws, permutation
from _data_core.loading import load_an_epoch, loader
from _data_core.packing import fill, packing, threads, trees
from _data_core.settings import FULL, SMALL, Settings
from _measure import keep, origin, results_file, size_options

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of figures.

    measure: function that returns the figures.
    headline: function that names one of them in a few words.
    needs_data: whether it needs preferences.
    """

    measure: Callable[[Settings], Figures]
    headline: Callable[[Figures], str]
    needs_data: bool = True


ROWS = {
    "permutation": Row(
        permutation, lambda f: f"{f['million_indices_per_s']['10^7']['median']:.3g} M indices/s", needs_data=False
    ),
    "draws": Row(
        draws, lambda f: f"{f['million_draws_and_updates_per_s']['pit']['median']:.3g} M draws/s", needs_data=False
    ),
    "packing": Row(packing, lambda f: f"{f['gap']['share_of_memcpy']['median']:.2f} of memcpy's speed"),
    "trees": Row(trees, lambda f: f"{f['times_numpy']['median']:.1f} times NumPy's trees/s"),
    "fill": Row(fill, lambda f: f"{f['gap']['pit']:.1%} of gap rows filled"),
    "threads": Row(
        threads, lambda f: f"{f['gain_of_a_second_thread']['pit']['median']:.2f} times with two", needs_data=False
    ),
    "loader": Row(loader, lambda f: f"{f['million_tokens_per_s']['grain']['median']:.3g} M tokens/s"),
}


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to measure [all]")
    parser.add_argument("--data", help="HH-RLHF folder as published [synthetic preferences; with --full PIT_HH_DATA]")
    parser.add_argument("--rounds", type=int, help="timed calls of each contender [1; with --full 7]")
    parser.add_argument("--seed", type=int, default=1, help="seed of draws, tokens and permutations [1]")
    parser.add_argument("--load-an-epoch", type=Path, help=argparse.SUPPRESS)
    size_options(parser, "data_core")
    options = parser.parse_args(words)
    options.rounds = options.rounds or (7 if options.full else 1)
    if options.full:
        options.data = options.data or os.environ.get("PIT_HH_DATA")
        needing = [name for name in options.rows if ROWS[name].needs_data]
        if options.data is None and needing and options.load_an_epoch is None:
            parser.error(f"--full measures {', '.join(needing)} on HH-RLHF; name its folder with --data FOLDER")
    return options


def main() -> None:
    """Measure the chosen rows, and keep each as soon as it is measured."""
    options = options_of()
    size = FULL if options.full else SMALL
    if options.load_an_epoch is not None:
        print(json.dumps(load_an_epoch(options.load_an_epoch, size.layout)))
        return
    headlines = []
    with TemporaryDirectory() as folder:
        settings = Settings(options.data, Path(folder), size, options.rounds, options.seed)
        for name in options.rows:
            row = {**ROWS[name].measure(settings), **origin(options.seed, options.rounds)}
            headlines.append(f"{name} {ROWS[name].headline(row)}")
            keep(results_file(options, "data_core"), {name: row}, headlines[-1])
    print("; ".join(headlines))


if __name__ == "__main__":
    main()
