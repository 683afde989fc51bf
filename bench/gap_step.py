"""One R_PIT training step on real HH-RLHF rows: context trees against separate paths and against padded orders.

The same model, the same pairs and the same five-pair loss, laid out three ways:

tree    x -> {y_w, y_l} -> {y_w, y_l}, packed: a + 2b + 4c tokens a pair
paths   the four orders as separate x -> ref -> y paths, packed without padding: 4 (a + b + c)
padded  the four orders as rows of 512 + 512 + 512 tokens, each segment padded

Run: `python bench/gap_step.py --data HH_FOLDER`. Contenders alternate within one process, each with an untimed step
before the timed one; the figure is the median of the rounds with its spread, and ratios are taken round by round.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _measure import commit
from pit.config import RunConfig, override
from pit.data.packing import Layout, pack_lists
from pit.data.template import gap
from pit.evaluate.collect import versions
from pit.losses.gap import five_pairs
from pit.losses.total import Total
from pit.model.heads import RewardModel
from pit.model.params import Params, build, copy, merge
from pit.recipes import recipe
from pit.stages.context import Run
from pit.stages.prepare import prepare
from pit.train.update import Arrays, TrainState, Update, make_optimizer
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW, Segment, SegmentKind, Topology

WINDOW = 512
PATH = Topology(
    "path",
    (
        Segment(-1, 0, SegmentKind.INPUT),
        Segment(0, 1, SegmentKind.REFERENCE),
        Segment(1, 2, SegmentKind.OUTPUT, leaf=0),
    ),
)


@dataclass(frozen=True)
class Contender:
    """One layout of the same pairs: its arrays, and how many token slots and live tokens go through linear layers."""

    name: str
    arrays: dict[str, np.ndarray]
    slots: int
    live: int


def orders(pairs: list[tuple[list[int], list[int], list[int]]]) -> tuple[list[list[list[int]]], np.ndarray]:
    """Columns (x, ref, y) of four paths a pair, and for each pair its paths in the order of the gap tree's leaves."""
    columns: list[list[list[int]]] = [[], [], []]
    inputs, references, outputs = columns
    index = np.zeros((len(pairs), 4), np.int32)
    for p, (x, better, worse) in enumerate(pairs):
        for leaf, y, ref in (
            (GAP_WW, better, better),
            (GAP_LW, worse, better),
            (GAP_WL, better, worse),
            (GAP_LL, worse, worse),
        ):
            index[p, leaf] = len(inputs)
            inputs.append(x)
            references.append(ref)
            outputs.append(y)
    return columns, index


def packed(name: str, columns: list[list[list[int]]], topology: Topology, layout: Layout, rows: int) -> Contender:
    """Trees in as few full rows as they need (one group of exactly that many rows)."""
    (batch,) = pack_lists(columns, topology, Layout(layout.closings, layout.pad, layout.row_length, rows, layout.trees))
    used = int(np.max(np.nonzero((batch.visible_until > 0).any(axis=1))[0])) + 1
    arrays = {f: getattr(batch, f)[:used] for f in ("token", "position", "visible_until")}
    live = int((batch.visible_until > np.arange(layout.row_length, dtype=np.int32)).sum())
    slot_of = np.zeros(len(columns[0]), np.int32)
    slot_of[batch.example_id[batch.example_id >= 0]] = np.nonzero(batch.example_id >= 0)[0]
    return Contender(name, {**arrays, "leaf": batch.leaf, "slot": slot_of}, arrays["token"].size, live)


def padded(columns: list[list[list[int]]], layout: Layout) -> Contender:
    """The classic layout: three windows of 512 tokens, each segment at the start of its own."""
    paths = len(columns[0])
    shape = (paths, 3 * WINDOW)
    token, position, visible = (
        np.full(shape, layout.pad, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
    )
    leaf = np.zeros((paths, 1, 2), np.int32)
    for row, contents in enumerate(zip(*columns, strict=True)):
        at = 0
        for segment, content in enumerate(contents):
            start, length = segment * WINDOW, len(content) + 1
            token[row, start : start + length] = [*content, layout.closings[segment]]
            position[row, start : start + length] = np.arange(at, at + length)
            visible[row, start : start + length] = 3 * WINDOW
            at += length
            leaf[row, 0] = (row, start + length - 1)
    live = int((visible > 0).sum())
    arrays = {"token": token, "position": position, "visible_until": visible, "leaf": leaf}
    return Contender("padded", {**arrays, "slot": np.arange(paths, dtype=np.int32)}, token.size, live)


def make_update(config: RunConfig, vocab_size: int) -> tuple[Update, Params]:
    """The step of R_PIT, compiled once for each layout, and the weights that every contender starts from."""
    graphdef, params = build(RewardModel, config.reward_model, vocab_size, 0)

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        scores = merge(graphdef, params)(batch["token"], batch["position"], batch["visible_until"], batch["leaf"])
        flat = scores[batch["slot"]]
        ordered = flat if flat.shape[1] == 4 else flat[:, 0][batch["order"]]
        return five_pairs(ordered, jnp.ones(ordered.shape[0], bool)), {}

    return Update(loss, make_optimizer(config.gap.optimizer, 1000)), params


def main() -> None:
    """Measure and write bench/results/gap_step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="HH-RLHF folder as published")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gap_step.json")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), override(recipe("hh"), [f"data.path={arguments.data}"]))
        prepare(run)
        result = measure(run, arguments.pairs, arguments.rounds)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def measure(run: Run, count: int, rounds: int) -> dict[str, Any]:
    """Time all contenders in alternation."""
    fold = run.fold("reward")
    rows = (([int(t) for t in part] for part in fold.row(i)) for i in range(len(fold)))
    everything = [(x, better, worse) for x, better, worse in rows]
    pairs = everything[:count]
    base = run.layout(run.config.gap.packing)
    layout = Layout(base.closings, base.pad, base.row_length, 0, 4 * count)
    columns, index = orders(pairs)
    tree_columns = [list(column) for column in zip(*pairs, strict=True)]
    contenders = [
        packed("tree", tree_columns, gap(), layout, rows=64),
        packed("paths", columns, PATH, layout, rows=128),
        padded(columns, layout),
    ]
    update, initial = make_update(run.config, run.tokenizer.vocab_size)
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    losses: dict[str, float] = {}
    prepared: list[tuple[str, Arrays]] = []
    states: dict[str, TrainState] = {}
    for c in contenders:
        arrays: Arrays = {name: jnp.asarray(value) for name, value in {**c.arrays, "order": index}.items()}
        state, metrics = update(update.start(copy(initial)), [arrays])
        losses[c.name] = float(metrics["loss"].sum / metrics["loss"].weight)
        prepared.append((c.name, arrays))
        states[c.name] = state
    for _ in range(rounds):
        for name, arrays in prepared:
            # A step that is not timed first: the contender before has left its own memory and caches behind.
            states[name], _ = update(states[name], [arrays])
            jax.block_until_ready(states[name])
            begin = time.perf_counter()
            states[name], metrics = update(states[name], [arrays])
            jax.block_until_ready((states[name], metrics))
            seconds[name].append(time.perf_counter() - begin)
    mean = {name: float(np.mean([f(*map(len, p)) for p in everything])) for name, f in TOKENS.items()}
    return {
        "what": f"one optimizer step of R_PIT, {count} HH pairs, first loss of each layout beside (they must agree)",
        "commit": commit(),
        "versions": versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "rounds": rounds,
        "mean_tokens_per_pair_whole_fold": {k: round(v, 1) for k, v in mean.items()},
        "token_ratio_whole_fold": {k: round(v / mean["tree"], 2) for k, v in mean.items()},
        "contenders": {
            c.name: {
                "slots_through_linear_layers": c.slots,
                "live_tokens": c.live,
                "loss": losses[c.name],
                "seconds_median": float(np.median(seconds[c.name])),
                "seconds_min_max": [min(seconds[c.name]), max(seconds[c.name])],
                "pairs_per_s": count / float(np.median(seconds[c.name])),
            }
            for c in contenders
        },
        "seconds_over_tree": {
            name: spread(np.array(values) / np.array(seconds["tree"])) for name, values in seconds.items()
        },
    }


TOKENS: dict[str, Callable[[int, int, int], int]] = {
    "tree": lambda a, b, c: (a + 1) + 3 * (b + 1) + 3 * (c + 1),
    "paths": lambda a, b, c: 4 * (a + 1) + 4 * (b + 1) + 4 * (c + 1),
    "padded": lambda a, b, c: 4 * 3 * WINDOW,
}
"""Tokens of one pair through every linear layer, from content lengths of x, y_w, y_l: each answer is twice an output
and once a reference in the tree, and twice each in the paths."""


def spread(ratios: np.ndarray) -> dict[str, float]:
    """Median, minimum and maximum of the rounds' ratios."""
    return {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())}


if __name__ == "__main__":
    main()
