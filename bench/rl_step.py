"""One RL update on samples of shared prefixes: context trees against the same samples as separate packed paths.

    python bench/rl_step.py [--model smollm2-135m] [--prompts 2] [--rounds 3]

N = 16 samples of each prefix of 300 tokens, ragged to 128. `trees`: the prefix once, its samples beneath it. `paths`:
each sample with a copy of the prefix, packed without padding. The loss, its gradient and the optimizer step are the
same (losses must agree); rows of both are as full as the packer makes them. Reported: tokens of each, seconds, and what
share of the token ratio the clock shows; beside it the temporary memory of the compiled gradient.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _measure import alternate, merge_rows, origin, spread
from pit.config import OptimizerConfig, RlConfig
from pit.data.packing import Layout, pack_lists
from pit.data.template import rollout
from pit.losses.total import Total
from pit.model.decoder import Decoder
from pit.model.params import Params, build, copy
from pit.stages.policy_gradient import policy_gradient
from pit.stages.rl import by_slot
from pit.train.update import Arrays, Update, make_optimizer
from rollout import LONGEST, MODELS

ROW = 1024
"""Tokens of a row."""

PREFIX = (200, 100)
"""Tokens of the input and of the reference, closing tokens included."""


def arrays_of(columns: list[list[list[int]]], lengths: np.ndarray, advantage: np.ndarray) -> tuple[Arrays, int, int]:
    """A packed batch of trees of as many samples as `lengths` has columns; its live tokens and its slots."""
    topology = rollout(lengths.shape[1], with_reference=True)
    live = sum(len(x) + 1 for column in columns[:2] for x in column) + int(lengths.sum())
    layout = Layout((1, 2, 3), 0, ROW, -(-live // ROW) + 2, 2 * len(columns[0]) + 2)
    (batch,) = pack_lists(columns, topology, layout)
    used = int(np.max(np.nonzero((batch.visible_until > 0).any(axis=1))[0])) + 1
    fields = ("token", "position", "visible_until", "previous", "loss_weight")
    arrays = {name: jnp.asarray(getattr(batch, name)[:used]) for name in fields} | {"leaf": jnp.asarray(batch.leaf)}
    for name, values in (("length", lengths), ("finished", np.ones(lengths.shape, bool)), ("advantage", advantage)):
        arrays[name] = jnp.asarray(by_slot(values, batch))
    live = int((batch.visible_until > np.arange(ROW, dtype=np.int32)).sum())
    return arrays, live, used * ROW


def batches(prompts: int, samples: int, vocabulary: int, seed: int) -> dict[str, tuple[Arrays, int, int]]:
    """The same samples as trees and as paths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, (prompts, samples)).astype(np.int32)
    advantage = rng.normal(size=lengths.shape).astype(np.float32)

    def tokens(n: int) -> list[int]:
        drawn: list[int] = rng.integers(4, vocabulary, n).tolist()
        return drawn

    inputs, references = ([tokens(n - 1) for _ in range(prompts)] for n in PREFIX)
    outputs = [[tokens(int(n) - 1) for n in column] for column in lengths.T]
    trees = arrays_of([inputs, references, *outputs], lengths, advantage)
    apart = [[x for x in column for _ in range(samples)] for column in (inputs, references)]
    flat = [outputs[i][g] for g in range(prompts) for i in range(samples)]
    paths = arrays_of([*apart, flat], lengths.reshape(-1, 1), advantage.reshape(-1, 1))
    return {"trees": trees, "paths": paths}


def measure(name: str, prompts: int, samples: int, rounds: int, seed: int) -> dict[str, Any]:
    """Both layouts, in turns."""
    config, vocabulary = MODELS[name]
    graphdef, params = build(Decoder, config, vocabulary, seed)
    loss = policy_gradient(graphdef, RlConfig(samples=samples), LONGEST)
    update = Update(loss, make_optimizer(OptimizerConfig(), 1000))
    work = batches(prompts, samples, vocabulary, seed)
    states = {each: update.start(copy(params)) for each in work}
    found: dict[str, Total] = {}

    def step(each: str) -> None:
        states[each], metrics = update(states[each], [work[each][0]])
        found.setdefault(each, jax.device_get(metrics["loss"]))
        jax.block_until_ready(states[each])

    seconds = alternate({each: functools.partial(step, each) for each in work}, rounds)
    sums = {each: float(total.sum) for each, total in found.items()}
    np.testing.assert_allclose(sums["trees"], sums["paths"], rtol=1e-3, err_msg="the layouts disagree about the loss")
    tokens = {each: live for each, (_, live, _) in work.items()}
    ratio = seconds["paths"] / seconds["trees"]
    of_tokens = tokens["paths"] / tokens["trees"]
    return {
        "what": f"an RL update, {prompts} prefixes of {sum(PREFIX)} tokens, {samples} samples each, {name}",
        "layouts": {
            each: {
                "tokens": tokens[each],
                "slots": slots,
                "loss_sum": sums[each],
                "seconds": spread(seconds[each]),
                "temporary_mb": round(temporary_bytes(loss, params, arrays) / 1e6),
            }
            for each, (arrays, _, slots) in work.items()
        },
        "token_ratio": round(of_tokens, 3),
        "time_ratio": spread(ratio),
        "attained": spread(ratio / of_tokens),
    }


def temporary_bytes(loss: Any, params: Params, arrays: Arrays) -> int:
    """Temporary memory of the compiled gradient."""

    def value(params: Params, arrays: Arrays) -> Any:
        total, _ = loss(params, arrays)
        return total.sum

    analysis: Any = jax.jit(jax.grad(value)).lower(params, arrays).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def main() -> None:
    """Measures a model and keeps the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), action="append", default=[], help="repeatable [all]")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rl_step.json")
    chosen = parser.parse_args()
    for name in chosen.model or list(MODELS):
        row = measure(name, chosen.prompts, chosen.samples, chosen.rounds, chosen.seed)
        row |= origin(chosen.seed, chosen.rounds)
        merge_rows(chosen.out, {name: row})
        print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
