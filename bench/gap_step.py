"""One R_PIT training step: context trees against separate paths and against padded orders.

    python bench/gap_step.py                              # random tokens of HH-RLHF's mean lengths
    python bench/gap_step.py --full --data HH_FOLDER      # the rows of HH-RLHF as published

The same model, pairs and five-pair loss, in three layouts:

tree    x -> {y_w, y_l} -> {y_w, y_l}, packed: a + 2b + 4c tokens per pair
paths   the four orders as separate x -> ref -> y paths, packed without padding: 4 (a + b + c)
padded  the four orders as rows of 512 + 512 + 512 tokens, each segment padded

Layouts alternate in one process, each with an untimed step before the timed one. Figures are medians of the rounds with
their range, and ratios are taken round by round.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _measure import keep, origin, results_file, size_options, spread
from pit.config import RunConfig, override
from pit.data.packing import Layout, pack
from pit.data.template import gap
from pit.losses.gap import five_pairs
from pit.losses.total import Total
from pit.model.heads import RewardModel
from pit.model.params import Params, build, copy, merge
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages.prepare import prepare
from pit.train.update import Arrays, TrainState, Update, make_optimizer
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW, Closings, Segment, SegmentKind, Topology

WINDOW = 512
MEAN_LENGTHS = (227, 73, 73)
"""Mean tokens of x, y_w and y_l in the reward fold of HH-RLHF, rounded."""

Pair = tuple[list[int], list[int], list[int]]
"""Tokens of x, y_w and y_l."""

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
    """One layout of the pairs: its arrays, and the token slots and live tokens that go through linear layers."""

    name: str
    arrays: dict[str, np.ndarray]
    slots: int
    live: int


def orders(pairs: list[Pair]) -> tuple[list[list[list[int]]], np.ndarray]:
    """Return columns (x, ref, y) of four paths per pair, and each pair's paths in the order of the tree's leaves."""
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
    """Return trees in as few full rows as they need (one group of exactly that many rows)."""
    (batch,) = pack(columns, topology, Layout(layout.closings, layout.pad, layout.row_length, rows, layout.trees))
    used = int(np.max(np.nonzero((batch.visible_until > 0).any(axis=1))[0])) + 1
    arrays = {f: getattr(batch, f)[:used] for f in ("token", "position", "visible_until")}
    live = int((batch.visible_until > np.arange(layout.row_length, dtype=np.int32)).sum())
    slot_of = np.zeros(len(columns[0]), np.int32)
    slot_of[batch.example_id[batch.example_id >= 0]] = np.nonzero(batch.example_id >= 0)[0]
    return Contender(name, {**arrays, "leaf": batch.leaf, "slot": slot_of}, arrays["token"].size, live)


def padded(columns: list[list[list[int]]], layout: Layout) -> Contender:
    """Return the classic layout: three windows of 512 tokens, each segment at the start of its window."""
    paths = len(columns[0])
    shape = (paths, 3 * WINDOW)
    token, position, visible = (
        np.full(shape, layout.pad, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
    )
    leaf = np.zeros((paths, 1, 2), np.int32)
    closings = layout.closings.of(PATH)
    for row, contents in enumerate(zip(*columns, strict=True)):
        at = 0
        for segment, content in enumerate(contents):
            start, length = segment * WINDOW, len(content) + 1
            token[row, start : start + length] = [*content, *closings[segment]]
            position[row, start : start + length] = np.arange(at, at + length)
            visible[row, start : start + length] = 3 * WINDOW
            at += length
            leaf[row, 0] = (row, start + length - 1)
    live = int((visible > 0).sum())
    arrays = {"token": token, "position": position, "visible_until": visible, "leaf": leaf}
    return Contender("padded", {**arrays, "slot": np.arange(paths, dtype=np.int32)}, token.size, live)


def make_update(config: RunConfig, vocab_size: int) -> tuple[Update, Params]:
    """Return the step of R_PIT, compiled once per layout, and the initial weights of every contender."""
    graphdef, params = build(RewardModel, config.reward_model, vocab_size, 0)

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        scores = merge(graphdef, params)(batch["token"], batch["position"], batch["visible_until"], batch["leaf"])
        flat = scores[batch["slot"]]
        ordered = flat if flat.shape[1] == 4 else flat[:, 0][batch["order"]]
        return five_pairs(ordered, jnp.ones(ordered.shape[0], bool)), {}

    return Update(loss, make_optimizer(config.reward_gap.optimizer, 1000)), params


@dataclass(frozen=True)
class Work:
    """Pairs to train on.

    name: the source of the pairs, in words.
    pairs: the pairs of a step.
    lengths: lengths of x, y_w and y_l of all pairs of the source, for mean tokens.
    layout: closing tokens, padding and row length.
    vocab_size: size of the vocabulary.
    """

    name: str
    pairs: list[Pair]
    lengths: np.ndarray
    layout: Layout
    vocab_size: int


def published(data: str, count: int) -> Work:
    """Return the first pairs of the reward fold of HH-RLHF, tokenised with the hh recipe."""
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), override(recipe("hh"), [f"data.path={data}"]))
        prepare(run)
        fold = run.fold("reward")
        rows = (([int(t) for t in part] for part in fold.row(i)) for i in range(count))
        pairs = [(x, better, worse) for x, better, worse in rows]
        layout = run.layout(run.config.reward_gap.packing)
        return Work("HH pairs", pairs, fold.lengths(), layout, run.tokenizer.vocab_size)


def invented(count: int, config: RunConfig, seed: int) -> Work:
    """Return pairs of random tokens; a length is HH-RLHF's mean times a factor between .5 and 1.5."""
    rng, vocabulary = np.random.default_rng(seed), 4096
    lengths = np.rint(np.array(MEAN_LENGTHS) * rng.uniform(0.5, 1.5, (count, 3))).astype(np.int32)
    columns = [[rng.integers(4, vocabulary, n).tolist() for n in column] for column in lengths.T]
    pairs = list(zip(*columns, strict=True))
    layout = Layout(Closings.roles(1, 2, 3), 0, config.reward_gap.packing.row_length, 0, 0)
    return Work("pairs of random tokens", pairs, lengths, layout, vocabulary)


def main() -> None:
    """Measure and report one step of every layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="HH-RLHF folder as published; --full needs it")
    parser.add_argument("--pairs", type=int, help="pairs per step [2; with --full 16]")
    parser.add_argument("--rounds", type=int, help="timed rounds [1; with --full 7]")
    parser.add_argument("--seed", type=int, default=0)
    size_options(parser, "gap_step")
    options = parser.parse_args()
    if options.full and options.data is None:
        parser.error("--full measures the rows of HH-RLHF; name their folder with --data FOLDER")
    count = options.pairs or (16 if options.full else 2)
    rounds = options.rounds or (7 if options.full else 1)
    config = recipe("hh")
    work = published(options.data, count) if options.data else invented(count, config, options.seed)
    row = measure(work, config, rounds) | origin(options.seed, rounds)
    over = {name: ratios["median"] for name, ratios in row["seconds_over_tree"].items() if name != "tree"}
    summary = f"seconds over those of trees: {', '.join(f'{name} {ratio:.2f}' for name, ratio in over.items())}"
    keep(results_file(options, "gap_step"), row, summary)


def measure(work: Work, config: RunConfig, rounds: int) -> dict[str, Any]:
    """Return the figures of all layouts; they alternate."""
    pairs, count = work.pairs, len(work.pairs)
    layout = Layout(work.layout.closings, work.layout.pad, work.layout.row_length, 0, 4 * count)
    columns, index = orders(pairs)
    tree_columns = [list(column) for column in zip(*pairs, strict=True)]
    contenders = [
        packed("tree", tree_columns, gap(), layout, rows=64),
        packed("paths", columns, PATH, layout, rows=128),
        padded(columns, layout),
    ]
    update, initial = make_update(config, work.vocab_size)
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
            # An untimed step first: the contender before has filled memory and caches with its own arrays.
            states[name], _ = update(states[name], [arrays])
            jax.block_until_ready(states[name])
            begin = time.perf_counter()
            states[name], metrics = update(states[name], [arrays])
            jax.block_until_ready((states[name], metrics))
            seconds[name].append(time.perf_counter() - begin)
    mean = {name: float(np.mean([f(*p) for p in work.lengths.tolist()])) for name, f in TOKENS.items()}
    return {
        "what": f"one optimizer step of R_PIT, {count} {work.name}; the first losses of all layouts must agree",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
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
"""Tokens of one pair through every linear layer, from content lengths of x, y_w, y_l: in the tree each answer is an
output twice and a reference once, in the paths both twice."""


if __name__ == "__main__":
    main()
