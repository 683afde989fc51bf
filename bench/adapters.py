"""Memory of an RL step with five models on one base, and decoding with merged or unmerged adapters.

    python bench/adapters.py [--full]     # --full: memory at the shape of SmolLM2-135M

`one` is a base and one policy with adapters, `adapters` are policy, anchor, improver, R_P and R_PIT on one base, `full`
are five models of their own, all of whose weights train. `held_mb` are all arrays between steps, counted by the
runtime; `peak_mb` adds the temporary memory of the hungriest program of a step by the compiler's own account: the
gradient on packed samples, the reading of a policy, or the scores of a reward model. The goal is adapters <= 1.5 x one.
Nothing is run but the rollouts that are timed; merging is part of their time.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from _measure import alternate, keep, origin, results_file, size_options, spread
from pit.config import AdapterConfig, OptimizerConfig, PolicyRlConfig
from pit.model.adapters import merged, trainable_names
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel, row_logprobs
from pit.model.model import Model, on_base
from pit.model.params import Params, abstract, merge
from pit.rl.rloo import policy_gradient
from pit.rollout.sample import Sampler
from pit.train.update import Arrays, TrainState, Update, make_optimizer
from pit.types import Closings
from rollout import MODELS

ADAPTER = AdapterConfig(rank=16)
INPUT, OUTPUT, SAMPLES = 200, 64, 4
"""Tokens of an input, most tokens of an output, and outputs per input."""


class Contender(NamedTuple):
    """Everything that an RL stage holds: the model that trains, its state, R_P if it is there, and the others."""

    policy: Model[Decoder]
    state: TrainState
    quality: Model[RewardModel] | None
    others: list[Model[Any]]


def base_of(name: str) -> Model[Decoder]:
    """Return a frozen base; neither memory nor time depends on its weights."""
    return replace(whole(Decoder, name), trainable=frozenset())


def whole(kind: Any, name: str) -> Model[Any]:
    """Return a model all of whose weights train."""
    graphdef, shapes = abstract(kind, *MODELS[name])
    return Model(graphdef, {weight: jnp.full(like.shape, 0.01, like.dtype) for weight, like in shapes.items()})


def on(base: Model[Decoder], kind: Any, name: str) -> Model[Any]:
    """Return a model with adapters on a base."""
    graphdef, shapes = abstract(kind, *MODELS[name], ADAPTER)
    own = trainable_names(shapes)
    params = {weight: jnp.full(shapes[weight].shape, 0.01, shapes[weight].dtype) for weight in own}
    return Model(graphdef, on_base(base, params), own)


def contender_of(which: str, name: str) -> Contender:
    """Return a contender at the beginning of its stage."""
    base = base_of(name)
    make = partial(whole, name=name) if which == "full" else partial(on, base, name=name)
    policy: Model[Decoder] = make(Decoder)
    update = Update(loss_of(policy), make_optimizer(OptimizerConfig(), 10), policy.frozen)
    quality, others = None, []
    if which != "one":
        quality, others = make(RewardModel), [make(Decoder), make(Decoder), make(RewardModel)]
    return Contender(policy, update.start(policy.trained), quality, others)


def loss_of(policy: Model[Decoder]) -> Any:
    """Return the loss of an RL step."""
    return policy_gradient(policy.graphdef, PolicyRlConfig(samples=SAMPLES), OUTPUT)


def shapes_of(trees: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a microbatch: a row per tree, as long as the longest tree."""
    row = INPUT + SAMPLES * (OUTPUT + 1) + 1
    tokens = dict.fromkeys(("token", "position", "visible_until", "previous"), ((trees, row), jnp.int32))
    slots = {
        "leaf": ((trees, SAMPLES, 2), jnp.int32),
        "length": ((trees, SAMPLES), jnp.int32),
        "finished": ((trees, SAMPLES), jnp.bool_),
        "advantage": ((trees, SAMPLES), jnp.float32),
        "loss_weight": ((trees, row), jnp.float32),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in (tokens | slots).items()}


def temporary_mb(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the temporary memory and the results of a compiled program, in megabytes."""
    # The backend's optimisation of loops takes most of the time, and changes no buffer.
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}).lower(*arguments).compile()
    analysis: Any = compiled.memory_analysis()
    return round(float(analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 1e6, 1)


def programs(contender: Contender, trees: int) -> dict[str, float]:
    """Return the temporary megabytes of each program of a step."""
    policy, state, quality, _ = contender
    loss, rows = loss_of(policy), ("token", "position", "visible_until", "previous")

    def gradient(params: Params, frozen: Params, batch: Arrays) -> Params:
        grads: Params = jax.grad(lambda p: loss({**frozen, **p}, batch)[0].sum)(params)
        return grads

    def read(params: Params, batch: Arrays) -> Any:
        return row_logprobs(merge(policy.graphdef, params), *(batch[name] for name in rows))

    batch = shapes_of(trees)
    megabytes = {
        "gradient": temporary_mb(gradient, state.params, policy.frozen, batch),
        "read": temporary_mb(read, policy.params, batch),
    }
    if quality is not None:
        graphdef = quality.graphdef

        def score(params: Params, batch: Arrays) -> Any:
            token, position, visible_until = (batch[name] for name in rows[:3])
            return merge(graphdef, params)(token, position, visible_until, batch["leaf"])

        megabytes["score"] = temporary_mb(score, quality.params, batch)
    return megabytes


def memory(name: str, trees: int) -> dict[str, dict[str, Any]]:
    """Return the megabytes of each contender."""
    figures: dict[str, dict[str, Any]] = {}
    for which in ("full", "adapters", "one"):
        before = sum(array.nbytes for array in jax.live_arrays())
        contender = contender_of(which, name)
        held = (sum(array.nbytes for array in jax.live_arrays()) - before) / 1e6
        # The policy of `one` is that of `adapters`, and so are its programs.
        known = figures["adapters"]["programs_mb"] if which == "one" else programs(contender, trees)
        temporary = {program: known[program] for program in known if which != "one" or program != "score"}
        peak = held + max(temporary.values())
        figures[which] = {"held_mb": round(held, 1), "peak_mb": round(peak, 1), "programs_mb": temporary}
        print(f"{name}: {which}: {figures[which]}", flush=True)
        # The next contender is counted without this one.
        del contender
    return figures


def decoding(name: str, prompts: int, rounds: int, seed: int) -> dict[str, Any]:
    """Return seconds of a rollout with unmerged adapters, and with weights merged for it, and what the merged take."""
    vocabulary, base = MODELS[name][1], base_of(name)
    model, targets = on(base, Decoder, name), {"q", "k", "v", "o", "gate", "up", "down"}
    sampler = Sampler(Closings.roles(1, 2, 3), OUTPUT)
    inputs = np.random.default_rng(seed).integers(4, vocabulary, (prompts, INPUT)).tolist()
    merge_weights = jax.jit(
        lambda params: {n: v for n, v in merged(params, ADAPTER).items() if n.rpartition(".")[2] in targets}
    )

    def draw(weights: Callable[[], Model[Decoder]]) -> None:
        ids = list(range(prompts))
        sampler.answers(weights(), ids, inputs, strategy=1.0, seed=seed)

    seconds = alternate(
        {
            "unmerged": lambda: draw(lambda: model),
            "merged": lambda: draw(lambda: base.with_trained(merge_weights(model.params))),
        },
        rounds,
    )
    copied = jax.eval_shape(merge_weights, model.params)
    return {
        "what": f"{prompts} samples of at most {OUTPUT} tokens after {INPUT}, merging included",
        **{f"{way}_s": spread(values) for way, values in seconds.items()},
        "merged_over_unmerged": spread(seconds["merged"] / seconds["unmerged"]),
        "merged_weights_mb": round(sum(4 * value.size for value in copied.values()) / 1e6),
    }


def compared(name: str, trees: int) -> dict[str, Any]:
    """Return the memory of all contenders, and how they compare."""
    contenders = memory(name, trees)
    full, adapters, one = contenders.values()
    return {
        "what": f"an RL step on {trees} x {SAMPLES} samples, {INPUT} + {OUTPUT} tokens, {name}, rank {ADAPTER.rank}",
        "contenders": contenders,
        "adapters_over_one": {key: round(adapters[key] / one[key], 3) for key in ("held_mb", "peak_mb")},
        "full_over_adapters": {key: round(full[key] / adapters[key], 3) for key in ("held_mb", "peak_mb")},
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, help="prompts of a step [1; with --full 4]")
    parser.add_argument("--rounds", type=int, help="timed rollouts [1; with --full 3]")
    parser.add_argument("--decode", choices=list(MODELS), default="small", help="model that is timed [small]")
    parser.add_argument("--seed", type=int, default=0)
    size_options(parser, "adapters")
    options = parser.parse_args()
    name, out = "smollm2-135m" if options.full else "small", results_file(options, "adapters")
    trees, rounds = options.trees or (4 if options.full else 1), options.rounds or (3 if options.full else 1)
    row = compared(name, trees)
    ratio = row["adapters_over_one"]
    summary = f"{name}: five models on one base peak at {ratio['peak_mb']:.2f} times one model"
    keep(out, {f"memory {name}": row | origin(options.seed, 1)}, summary)
    timed = decoding(options.decode, SAMPLES * trees, rounds, options.seed)
    keep(
        out,
        {f"decoding {options.decode}": timed | origin(options.seed, rounds)},
        f"{summary} ({ratio['held_mb']:.2f} times between steps); {options.decode}: merged weights decode in "
        f"{timed['merged_over_unmerged']['median']:.2f} of the time",
    )


if __name__ == "__main__":
    main()
