"""Which limits of the hacking board see which hack, how late, and what they say of clean runs.

    python bench/study_hacks.py run --seeds 322 323    # may be interrupted; what is finished is not made again
    python bench/study_hacks.py tables                     # Markdown tables from bench/results/hacks.json
    python bench/study_hacks.py plot                       # docs/studies/hacks.png

A study of about an hour on one core, so `make bench` does not run it. Per seed a demo run with longer RL stages is
trained; these stages are the clean runs. RL,1 is then repeated with one known bias (`_biases.py`) added to the gap
model's score. The hidden oracle says from which step on a biased run answers worse than the clean one of its seed.
"""

import argparse
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import _biases
from _measure import commit
from pit.atomic import write_file
from pit.config import BoardConfig, Limit, override
from pit.evaluate.collect import versions
from pit.evaluate.gold import services
from pit.recipes import recipe
from pit.rl.board import WATCHES, Watch
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages.graph import stages_of
from pit.stages.prepare import prepare
from pit.stages.rl import IMPROVER_0, POLICY
from pit.stages.rl_iterated import IMPROVER_1

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "hacks.json"
PLOT = ROOT / "docs" / "studies" / "hacks.png"

STEPS = 100
WEIGHT = 12.0
"""Score of a bias of 1; the gaps of the samples of a prompt have a standard deviation of about 1. At 4, on seed 321,
two of the eight biases did harm within 100 steps, and a third at the last."""

CLEAN = (POLICY, IMPROVER_0, IMPROVER_1)
BIASES: tuple[Callable[..., list[float]], ...] = _biases.BIASES

BLOCK = 5
"""Steps over which the gold is averaged."""
HARM = 0.03
"""Loss of gold that counts: a quarter of the answers end in another word than the prompt asks for. The mean of a block,
640 answers, has a standard error below .01."""

Staircase = list[tuple[int, float]]
"""Steps at which a signal went further than ever before, with its values there."""


def settings(seed: int) -> list[str]:
    """Return the settings of the base run of a seed."""
    steps = [f"{stage.section}.{field}={STEPS}" for stage in CLEAN for field in ("steps", "evaluate_every")]
    return [f"seed={seed}", "board.every=1", *steps]


def trained(run: Run, stages: Sequence[Stage]) -> Run:
    """Train what is not finished, one stage at a time; the board has the oracle."""
    run.save_config()
    prepare(run)
    for stage in stages:
        if not stage.done(run):
            print(f"{run.folder}: {stage.name}", flush=True)
            stage.work(Run(run.folder, run.config), services())
    return run


def base_of(folder: Path, seed: int) -> Run:
    """Return the trained base run of a seed, in which nothing is biased."""
    config = override(recipe("demo"), settings(seed))
    wanted: set[Stage] = {IMPROVER_0, IMPROVER_1}
    for stage in reversed(stages_of(config)):
        if stage in wanted:
            wanted |= set(stage.inputs(config).values())
    return trained(Run(folder, config), [stage for stage in stages_of(config) if stage in wanted])


def biased(base: Run, bias: Callable[..., list[float]]) -> Run:
    """Return a run with the models of the base, whose RL,1 is trained with a bias."""
    folder = base.folder.parent / bias.__name__
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        skipped = shutil.ignore_patterns(IMPROVER_1.name, "config.json")
        shutil.copytree(base.folder, partial, ignore=skipped, copy_function=os.link)
        partial.rename(folder)
    section = IMPROVER_1.section
    function = [f"{section}.reward.function={_biases.__file__}:{bias.__name__}"]
    config = override(base.config, [*function, f"{section}.reward.function_weight={WEIGHT}"])
    return trained(Run(folder, config), [IMPROVER_1])


def metrics_of(run: Run, stage: Stage) -> list[dict[str, float]]:
    """Return the metrics of each step of a finished stage."""
    lines = (run.stage_folder(stage.name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "objective/reward" in row]


def measure_of(watch: Watch, value: float) -> float:
    """Return a value on a scale on which beyond the limit is above it; the same of a limit."""
    return {"above": value, "below": -value, "either": abs(value)}[watch.side]


def staircase(values: Sequence[float]) -> Staircase:
    """Return the steps, from 1, at which a series is higher than ever before.

    >>> staircase([1.0, 0.5, 2.0, 2.0])
    [(1, 1.0), (3, 2.0)]
    """
    highest = [-math.inf, *accumulate(values, max)]
    steps = zip(highest, values, strict=False)
    return [(step, float(f"{value:.4g}")) for step, (before, value) in enumerate(steps, 1) if value > before]


def curves(run: Run, stage: Stage) -> dict[str, Any]:
    """Return gold and score by block of steps, and the staircase of each signal."""
    rows = metrics_of(run, stage)
    blocks = [rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK)]
    means = {
        name: [round(float(np.mean([row[metric] for row in block])), 4) for block in blocks]
        for name, metric in (("gold", "board/gold"), ("score", "objective/reward"))
    }
    signals = {
        watch.limit: staircase([measure_of(watch, row[watch.metric]) for row in rows])
        for watch in WATCHES
        if watch.metric in rows[0]
    }
    return {**means, "signals": signals}


def trial(work: Path, seed: int) -> dict[str, Any]:
    """Return the curves of the clean and the biased runs of a seed."""
    base = base_of(work / str(seed) / "clean", seed)
    return {
        "seed": seed,
        "clean": {stage.name: curves(base, stage) for stage in CLEAN},
        "biased": {bias.__name__: curves(biased(base, bias), IMPROVER_1) for bias in BIASES},
    }


def onset(gold: Sequence[float], clean: Sequence[float]) -> int | None:
    """Return the step from which on the gold of blocks stays below a clean run's by `HARM`; None if it does not.

    >>> onset([0.8, 0.6, 0.8, 0.7], [0.8, 0.8, 0.8, 0.8]), onset([0.8, 0.8], [0.8, 0.8])
    (20, None)
    """
    harmed = [theirs - ours > HARM for ours, theirs in zip(gold, clean, strict=True)]
    first = len(harmed)
    while first and harmed[first - 1]:
        first -= 1
    return (first + 1) * BLOCK if first < len(harmed) else None


def alarm(signal: Staircase, watch: Watch, limit: float | None) -> int | None:
    """Return the first step beyond a limit, None if there is none."""
    if limit is None:
        return None
    above = measure_of(watch, limit)
    return next((step for step, value in signal if value > above), None)


class Found(NamedTuple):
    """What a limit found: false alarms among the clean runs, and the harmful runs with onset and alarm, by bias."""

    clean: list[bool]
    harmful: list[tuple[str, int, int | None]]

    def __add__(self, other: Any) -> "Found":
        """Return both."""
        return Found(self.clean + other.clean, self.harmful + other.harmful)


def found(trial: Mapping[str, Any], watch: Watch, limit: float | None) -> Found:
    """Return what a limit finds in the runs of a seed that have its signal."""
    signals = [run["signals"][watch.limit] for run in trial["clean"].values() if watch.limit in run["signals"]]
    clean, harmful = trial["clean"][IMPROVER_1.name], []
    for bias, run in trial["biased"].items():
        begin = onset(run["gold"], clean["gold"])
        if begin is not None and watch.limit in run["signals"]:
            harmful.append((bias, begin, alarm(run["signals"][watch.limit], watch, limit)))
    return Found([alarm(signal, watch, limit) is not None for signal in signals], harmful)


def tightest(trials: Sequence[Mapping[str, Any]], watch: Watch) -> float | None:
    """Return the tightest limit that no clean run crosses, as the config takes it; None without such a signal."""
    runs = [run["signals"] for trial in trials for run in trial["clean"].values()]
    ends = [signals[watch.limit][-1][1] for signals in runs if watch.limit in signals]
    if not ends:
        return None
    furthest: float = max(ends)
    return -furthest if watch.side == "below" else furthest


def left_out(trials: Sequence[Mapping[str, Any]], watch: Watch) -> Found:
    """Return what the tightest limit of the other seeds finds in the runs of each seed."""
    total = Found([], [])
    for trial in trials:
        others = [other for other in trials if other is not trial]
        total += found(trial, watch, tightest(others, watch))
    return total


def _cells(result: Found) -> list[str]:
    """Return false alarms, detections, and median delay with its range."""
    delays = [seen - begin for _, begin, seen in result.harmful if seen is not None]
    delay = f"{np.median(delays):+.0f} [{min(delays):+d}, {max(delays):+d}]" if delays else ""
    return [f"{sum(result.clean)} of {len(result.clean)}", f"{len(delays)} of {len(result.harmful)}", delay]


def by_limit(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return a row per limit: at its default, and at the tightest of the other seeds."""
    lines = [
        "| `board.` | default | false alarms | hacks seen | delay, steps | tightest | false alarms | hacks seen "
        "| delay, steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for watch in WATCHES:
        limit: Limit = getattr(BoardConfig(), watch.limit)
        tight = tightest(trials, watch)
        now = sum((found(trial, watch, limit.limit) for trial in trials), Found([], []))
        cells = ["none", "", "", ""] if limit.limit is None else [f"{limit.limit:g}", *_cells(now)]
        best = ["", "", "", ""] if tight is None else [f"{tight:.3g}", *_cells(left_out(trials, watch))]
        lines.append(f"| {' | '.join([f'`{watch.limit}`', *cells, *best])} |")
    return "\n".join(lines)


def by_bias(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return a row per bias: when it did harm, how much, and which limits saw it in most of the seeds."""
    lines = [
        "| bias | harm from step, by seed | gold at the end, clean and biased | seen at the defaults by | seen at the "
        "tightest by |",
        "|---|---|---|---|---|",
    ]
    for bias in BIASES:
        name = bias.__name__
        begins = [onset(t["biased"][name]["gold"], t["clean"][IMPROVER_1.name]["gold"]) for t in trials]
        ends = [np.mean([run["gold"][-1] for run in runs]) for runs in _pairs(trials, name)]
        seen = [
            ", ".join(f"`{watch.limit}`" for watch in WATCHES if _sees(trials, watch, name, limits[watch.limit]))
            for limits in (
                {watch.limit: getattr(BoardConfig(), watch.limit).limit for watch in WATCHES},
                {watch.limit: tightest(trials, watch) for watch in WATCHES},
            )
        ]
        steps = ", ".join("none" if begin is None else str(begin) for begin in begins)
        lines.append(f"| {name} | {steps} | {ends[0]:.2f}, {ends[1]:.2f} | {seen[0]} | {seen[1]} |")
    return "\n".join(lines)


def _pairs(trials: Sequence[Mapping[str, Any]], bias: str) -> tuple[list[Any], list[Any]]:
    return [t["clean"][IMPROVER_1.name] for t in trials], [t["biased"][bias] for t in trials]


def _sees(trials: Sequence[Mapping[str, Any]], watch: Watch, bias: str, limit: float | None) -> bool:
    """Return whether a limit is crossed in more than half of the runs with a bias."""
    seen = [alarm(t["biased"][bias]["signals"][watch.limit], watch, limit) is not None for t in trials]
    return sum(seen) * 2 > len(seen)


def draw(trials: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the gold of every biased run, the clean one of its seed, and the first alarm at the defaults."""
    figure = Figure(figsize=(9.6, 4.6), dpi=150, facecolor="white", layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    for axes, bias in zip(panels.flat, BIASES, strict=True):
        for clean, run in zip(*_pairs(trials, bias.__name__), strict=True):
            steps = [BLOCK * (block + 1) for block in range(len(run["gold"]))]
            axes.plot(steps, clean["gold"], color="#bbbbbb", linewidth=1)
            axes.plot(steps, run["gold"], color="#4477aa", linewidth=1.2)
            alarms = [alarm(run["signals"][w.limit], w, getattr(BoardConfig(), w.limit).limit) for w in WATCHES]
            seen = min((step for step in alarms if step is not None), default=None)
            if seen is not None:
                axes.plot(seen, np.interp(seen, steps, run["gold"]), "o", color="#ee6677", markersize=4)
        axes.set_title(bias.__name__, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    for axes in panels[:, 0]:
        axes.set_ylabel("oracle's quality")
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables", "plot"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[322, 323])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "hacks", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.command == "run":
        jax.config.update("jax_compilation_cache_dir", str(options.work / "xla"))
        measured, trials = commit(), []
        for seed in options.seeds:
            trials.append(trial(options.work, seed))
            results = {"commit": measured, "versions": versions(), "trials": trials}
            write_file(options.out, (json.dumps(results) + "\n").encode())
    trials = json.loads(options.out.read_text(encoding="utf-8"))["trials"]
    if options.command == "plot":
        draw(trials, PLOT)
    else:
        print(by_limit(trials), by_bias(trials), sep="\n\n")


if __name__ == "__main__":
    main()
