"""One RL update on samples of shared prefixes: context trees against the same samples as separate packed paths.

    python bench/rl_step.py [--full] [--model smollm2-135m]

N samples after each prefix of 300 tokens, ragged to 128 (16 samples with `--full`). `trees` holds a prefix once with
its samples under it; `paths` holds a copy of the prefix per sample, packed without padding. Loss, gradient and
optimizer step are the same (losses must agree), and the packer fills the rows of both. Results have tokens, seconds,
the part of the token ratio that the clock shows, and the temporary memory of the compiled gradient.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _measure import alternate, keep, origin, results_file, size_options, spread
from pit.config import OptimizerConfig, RlConfig
from pit.data.packing import Layout, pack
from pit.data.template import rollout
from pit.losses.total import Total
from pit.model.decoder import Decoder
from pit.model.params import Params, build, copy
from pit.rl.records import by_slot
from pit.rl.rloo import policy_gradient
from pit.train.update import Arrays, Update, make_optimizer
from pit.types import Closings
from rollout import LONGEST, MODELS

ROW = 1024
"""Tokens per row."""

PREFIX = (200, 100)
"""Tokens of the input and of the reference, closing tokens included."""


def arrays_of(columns: list[list[list[int]]], lengths: np.ndarray, advantage: np.ndarray) -> tuple[Arrays, int, int]:
    """Return a packed batch of trees with a sample per column of `lengths`, its live tokens and its slots."""
    topology = rollout(lengths.shape[1], with_reference=True)
    live = sum(len(x) + 1 for column in columns[:2] for x in column) + int(lengths.sum())
    layout = Layout(Closings.roles(1, 2, 3), 0, ROW, -(-live // ROW) + 2, 2 * len(columns[0]) + 2)
    (batch,) = pack(columns, topology, layout)
    used = int(np.max(np.nonzero((batch.visible_until > 0).any(axis=1))[0])) + 1
    fields = ("token", "position", "visible_until", "previous", "loss_weight")
    arrays = {name: jnp.asarray(getattr(batch, name)[:used]) for name in fields} | {"leaf": jnp.asarray(batch.leaf)}
    for name, values in (("length", lengths), ("finished", np.ones(lengths.shape, bool)), ("advantage", advantage)):
        arrays[name] = jnp.asarray(by_slot(values, batch))
    live = int((batch.visible_until > np.arange(ROW, dtype=np.int32)).sum())
    return arrays, live, used * ROW


def batches(prompts: int, samples: int, vocabulary: int, seed: int) -> dict[str, tuple[Arrays, int, int]]:
    """Return the same samples as trees and as paths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, (prompts, samples)).astype(np.int32)
    advantage = rng.normal(size=lengths.shape).astype(np.float32)

    def tokens(n: int) -> list[int]:
        ids: list[int] = rng.integers(4, vocabulary, n).tolist()
        return ids

    inputs, references = ([tokens(n - 1) for _ in range(prompts)] for n in PREFIX)
    outputs = [[tokens(int(n) - 1) for n in column] for column in lengths.T]
    trees = arrays_of([inputs, references, *outputs], lengths, advantage)
    apart = [[x for x in column for _ in range(samples)] for column in (inputs, references)]
    flat = [outputs[i][g] for g in range(prompts) for i in range(samples)]
    paths = arrays_of([*apart, flat], lengths.reshape(-1, 1), advantage.reshape(-1, 1))
    return {"trees": trees, "paths": paths}


def measure(name: str, prompts: int, samples: int, rounds: int, seed: int) -> dict[str, Any]:
    """Return the figures of both layouts; they alternate."""
    config, vocabulary = MODELS[name]
    graphdef, params = build(Decoder, config, vocabulary, seed)
    loss = policy_gradient(graphdef, RlConfig(samples=samples), LONGEST)
    update = Update(loss, make_optimizer(OptimizerConfig(), 1000))
    work = batches(prompts, samples, vocabulary, seed)
    states = {layout: update.start(copy(params)) for layout in work}
    losses: dict[str, Total] = {}

    def step(layout: str) -> None:
        states[layout], metrics = update(states[layout], [work[layout][0]])
        losses.setdefault(layout, jax.device_get(metrics["loss"]))
        jax.block_until_ready(states[layout])

    seconds = alternate({layout: functools.partial(step, layout) for layout in work}, rounds)
    sums = {layout: float(total.sum) for layout, total in losses.items()}
    np.testing.assert_allclose(sums["trees"], sums["paths"], rtol=1e-3, err_msg="the layouts disagree about the loss")
    tokens = {layout: live for layout, (_, live, _) in work.items()}
    ratio = seconds["paths"] / seconds["trees"]
    of_tokens = tokens["paths"] / tokens["trees"]
    return {
        "what": f"an RL update, {prompts} prefixes of {sum(PREFIX)} tokens, {samples} samples per prefix, {name}",
        "layouts": {
            layout: {
                "tokens": tokens[layout],
                "slots": slots,
                "loss_sum": sums[layout],
                "seconds": spread(seconds[layout]),
                "temporary_mb": round(temporary_bytes(loss, params, arrays) / 1e6),
            }
            for layout, (arrays, _, slots) in work.items()
        },
        "token_ratio": round(of_tokens, 3),
        "time_ratio": spread(ratio),
        "attained": spread(ratio / of_tokens),
    }


def temporary_bytes(loss: Any, params: Params, arrays: Arrays) -> int:
    """Return the bytes of temporary memory of the compiled gradient."""

    def value(params: Params, arrays: Arrays) -> Any:
        total, _ = loss(params, arrays)
        return total.sum

    analysis: Any = jax.jit(jax.grad(value)).lower(params, arrays).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def main() -> None:
    """Measure and report one update of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = "repeatable [small; with --full all]"
    parser.add_argument("--model", choices=list(MODELS), action="append", default=[], help=models)
    parser.add_argument("--prompts", type=int, help="prefixes [1; with --full 2]")
    parser.add_argument("--samples", type=int, help="samples per prompt [4; with --full 16]")
    parser.add_argument("--rounds", type=int, help="timed rounds [1; with --full 3]")
    parser.add_argument("--seed", type=int, default=0)
    size_options(parser, "rl_step")
    options = parser.parse_args()
    prompts = options.prompts or (2 if options.full else 1)
    samples = options.samples or (16 if options.full else 4)
    rounds = options.rounds or (3 if options.full else 1)
    for name in options.model or (list(MODELS) if options.full else ["small"]):
        row = measure(name, prompts, samples, rounds, options.seed) | origin(options.seed, rounds)
        ratio, tokens = row["time_ratio"]["median"], row["token_ratio"]
        summary = f"{name}: paths take {ratio:.2f} times the seconds of trees, with {tokens:.2f} times the tokens"
        keep(results_file(options, "rl_step"), {name: row}, summary)


if __name__ == "__main__":
    main()
