"""One training step on trees of shared prefixes against the same sequences apart, in a plain JAX loop.

    python bench/trees.py            # two small problems
    python bench/trees.py --full     # 2 to 16 answers, 1 to 4 turns, and agents that branch; writes the results

Both layouts come from `pit_kernels.trees.pack`, which packs rows of the same length full, and go through the same step:
loss and gradients of all sequences. A problem has as many trees as a row holds. Layouts alternate in one process, and
ratios are taken round by round, of processor time, so that other work on the machine counts little. The share of a
problem is time ratio over slot ratio, the ratio of tokens with the padding of rows: 1 means that a slot of a tree's row
costs as much as one of separate sequences.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from _evidence.markdown import table
from _measure import alternate, keep, origin, results_file, size_options, spread
from pit_kernels import three_way_attention, trees
from pit_kernels.microbench.tables import write_place
from pit_kernels.trees import TreeRows

Params = dict[str, Any]
Tokens = list[int]

WIDTH, HEADS, LAYERS, VOCABULARY = 256, 4, 1, 1024
ROW_LENGTH = 2048
PROMPT, TURN = 256, 48
"""Mean tokens of a prompt and of a turn; each is drawn from half of it to one and a half times it."""

PAGE = Path(__file__).parents[1] / "docs/guides/train-on-trees.md"

SIZES = [(2, 1), (4, 1), (8, 1), (16, 1), (8, 2), (8, 3), (2, 4), (4, 4), (8, 4), (16, 4)]
"""Answers and turns of each problem."""

AGENTS, AGENT_TURNS = 8, 10
"""Rollouts of an agent's tree, and turns of each."""


def tree_of_turns(answers: int, turns: int, rng: np.random.Generator) -> list[Tokens]:
    """Return paths of a prompt and some turns that branch alike everywhere, as late as they can, into so many answers.

    >>> paths = tree_of_turns(4, 3, np.random.default_rng(0))
    >>> len(paths), len({tuple(path[:PROMPT // 2]) for path in paths})
    (4, 1)
    """
    factors = [1] * turns
    for n in range(int(math.log2(answers))):
        factors[turns - 1 - n % turns] *= 2
    paths = [_words(PROMPT, rng)]
    for factor in factors:
        paths = [[*path, *_words(TURN, rng)] for path in paths for _ in range(factor)]
    return paths


def tree_of_agents(rng: np.random.Generator) -> list[Tokens]:
    """Return rollouts of an agent: each leaves an earlier one before a random turn and goes on alone."""
    rollouts = [[_words(PROMPT, rng)] + [_words(TURN, rng) for _ in range(AGENT_TURNS)]]
    for _ in range(AGENTS - 1):
        earlier, kept = rollouts[rng.integers(len(rollouts))], int(rng.integers(1, AGENT_TURNS + 1))
        rollouts.append(earlier[:kept] + [_words(TURN, rng) for _ in range(AGENT_TURNS + 1 - kept)])
    return [[token for turn in rollout for token in turn] for rollout in rollouts]


def _words(mean: int, rng: np.random.Generator) -> Tokens:
    words: Tokens = rng.integers(0, VOCABULARY, rng.integers(mean // 2, mean * 3 // 2 + 1)).tolist()
    return words


def filled(draw: Callable[[], list[Tokens]]) -> list[Tokens]:
    """Return the paths of as many trees as a row holds, at least of one."""
    paths = draw()
    while True:
        more = [*paths, *draw()]
        if trees.pack(more, row_length=ROW_LENGTH).token.shape[0] > 1:
            return paths
        paths = more


def initial(seed: int) -> Params:
    """Return the weights of a small decoder with learned positions."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> Array:
        return jnp.asarray(rng.normal(0, shape[0] ** -0.5, shape), jnp.float32)

    sizes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    layers = [{name: weight(*size) for name, size in sizes.items()} for _ in range(LAYERS)]
    return {"token": weight(VOCABULARY, WIDTH), "position": weight(ROW_LENGTH, WIDTH), "layers": layers}


def _norm(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


@jax.jit
@jax.value_and_grad
def step(params: Params, tree: TreeRows, weight: Array) -> Array:
    """Return the weighted negative log-likelihood of all paths, and its gradient."""
    x = params["token"][jnp.asarray(tree.token)] + params["position"][jnp.asarray(tree.position)]
    for layer in params["layers"]:
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(_norm(x) @ layer["qkv"], 3, axis=-1))
        x = x + three_way_attention(q, k, v, jnp.asarray(tree.visible_until)).reshape(x.shape) @ layer["out"]
        x = x + jax.nn.gelu(_norm(x) @ layer["up"]) @ layer["down"]
    return -jnp.sum(trees.row_logprob(_norm(x), params["token"], tree) * weight) / jnp.sum(weight)


def measure(paths: list[Tokens], params: Params, rounds: int) -> dict[str, Any]:
    """Return the figures of both layouts of the same paths."""
    begin = time.process_time()
    packed = trees.pack(paths, row_length=ROW_LENGTH)
    packing_s = time.process_time() - begin
    layouts = {"trees": packed, "apart": trees.pack(paths, row_length=ROW_LENGTH, share=False)}
    ones = [1.0] * len(paths)
    weights = {name: trees.to_rows(jnp.asarray(trees.path_values(ones, rows)), rows) for name, rows in layouts.items()}

    results: dict[str, Any] = {}

    def run(name: str) -> None:
        # Without the tables of paths, which no model needs, one program serves all problems with as many rows.
        rows = layouts[name]._replace(leaf=None, place=None, path=None)
        results[name] = jax.block_until_ready(step(params, rows, weights[name]))

    calls = {name: functools.partial(run, name) for name in layouts}
    seconds = alternate(calls, rounds, time.process_time)
    whole, apart = layouts["trees"], layouts["apart"]
    slots = apart.token.shape[0] / whole.token.shape[0]
    ratio = seconds["apart"] / seconds["trees"]
    gradients = [jax.tree.leaves(results[name][1]) for name in layouts]
    return {
        "paths": len(paths),
        "tokens": {"trees": whole.tokens, "apart": apart.tokens},
        "rows": {"trees": whole.token.shape[0], "apart": apart.token.shape[0]},
        "packed_tokens_per_s": float(f"{packed.path_tokens / packing_s:.3g}"),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "token_ratio": round(apart.tokens / whole.tokens, 3),
        "slot_ratio": round(slots, 3),
        "time_ratio": spread(ratio),
        "share": spread(ratio / slots, 3),
        "loss_difference": abs(float(results["trees"][0] - results["apart"][0])),
        "gradient_difference": max(float(jnp.abs(a - b).max()) for a, b in zip(*gradients, strict=True)),
        "kv_bytes_copied": {
            "trees": 0,
            "gathered_per_path": 2 * LAYERS * WIDTH * 4 * (apart.tokens - whole.tokens),
        },
    }


def problems(full: bool, seed: int) -> dict[str, list[Tokens]]:
    """Return the paths of each problem by its name."""
    rng = np.random.default_rng(seed)
    sizes = SIZES if full else SIZES[1:2]
    named = {
        f"{answers} answers, depth {turns}": filled(functools.partial(tree_of_turns, answers, turns, rng))
        for answers, turns in sizes
    }
    return named | {f"agents: {AGENTS} rollouts, {AGENT_TURNS} turns": filled(lambda: tree_of_agents(rng))}


def in_markdown(measured: dict[str, Any]) -> str:
    """Return the figures as the table of the guide: a line per problem."""
    lines = [
        [
            name,
            f"{row['token_ratio']:.2f}",
            f"{row['slot_ratio']:.2f}",
            "{median:.2f} [{min:.2f}, {max:.2f}]".format(**row["time_ratio"]),
            f"{row['share']['median']:.2f}",
            f"{row['kv_bytes_copied']['gathered_per_path'] / 2**20:.0f} MiB",
        ]
        for name, row in measured.items()
    ]
    head = ["sequences", "tokens, apart over trees", "slots", "seconds", "share", "K/V of a gathering layout"]
    return table(head, lines)


def main() -> None:
    """Measure and report every problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="timed rounds [2; with --full 3]")
    parser.add_argument("--seed", type=int, default=0)
    size_options(parser, "trees")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.full else 2)
    params = initial(options.seed)
    named = problems(options.full, options.seed)
    rows: dict[str, Any] = {
        "what": "processor seconds of loss and gradients of all sequences; trees share prefixes, apart is without",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "model": f"{LAYERS} layers of width {WIDTH}, {HEADS} heads, vocabulary {VOCABULARY}, rows of {ROW_LENGTH}",
        **origin(options.seed, rounds),
        "problems": {name: measure(paths, params, rounds) for name, paths in named.items()},
    }
    if options.full:
        write_place(PAGE, "trees table", in_markdown(rows["problems"]))
    shares = [row["share"]["median"] for row in rows["problems"].values()]
    summary = f"time ratio over slot ratio: {min(shares):.2f} to {max(shares):.2f} in {len(shares)} problems"
    keep(results_file(options, "trees"), rows, summary)


if __name__ == "__main__":
    main()
