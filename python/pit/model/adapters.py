"""Adapters (LoRA) of a decoder: added to a module, named among its parameters, merged into its weights.

The weights below them are frozen: all models of a run can share one base, and each brings its own adapters and head.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pit.config import AdapterConfig, FieldError
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.low_rank import Adaptable, LowRank

M = TypeVar("M", Decoder, RewardModel)

DROPOUT = "dropout"
"""Entry of a batch with the random key, uint32 [2], of the dropout of its forward pass."""

MODULES: Mapping[str, str] = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""Projections of a layer, and their names as modules of transformers, by which PEFT's targets know them."""


def module_name(layer: int, projection: str) -> str:
    """Return the name of a projection as PEFT spells it.

    >>> module_name(3, "attention.q")
    'model.layers.3.self_attn.q_proj'
    """
    return f"model.layers.{layer}.{MODULES[projection]}"


def input_axes(projection: str) -> int:
    """Return the number of axes of a projection's weight that are its inputs."""
    return 2 if projection == "attention.o" else 1


def targets(adapter: AdapterConfig, layers: int) -> list[tuple[int, str]]:
    """Return the layer and the projection of every target of an adapter in a decoder of so many layers.

    Raises:
        FieldError: there is none.
    """
    pattern = re.compile(adapter.targets)
    matched = [
        (layer, name) for layer in range(layers) for name in MODULES if pattern.fullmatch(module_name(layer, name))
    ]
    if not matched:
        rule = f"must match the whole name of a projection of the {layers} layers, such as {module_name(0, 'mlp.up')}"
        raise FieldError("adapter.targets", adapter.targets, rule, r"for example {path}=.*\.(q|v)_proj")
    return matched


def attach(model: Decoder | RewardModel, adapter: AdapterConfig, rngs: nnx.Rngs) -> None:
    """Add fresh adapters to a module, which computes the same as before until they are trained.

    Raises:
        FieldError: no projection matches the targets.
    """
    decoder = model.decoder if isinstance(model, RewardModel) else model
    terms: dict[tuple[int, str], dict[str, LowRank]] = {}
    for layer, projection in targets(adapter, len(decoder.layers)):
        owner, name = projection.split(".")
        weight = getattr(getattr(decoder.layers[layer], owner), name)[...]
        inputs = input_axes(projection)
        term = LowRank(weight.shape[:inputs], weight.shape[inputs:], adapter, rngs)
        terms.setdefault((layer, owner), {})[name] = term
    for (layer, owner), by_name in terms.items():
        getattr(decoder.layers[layer], owner).adapters = nnx.Dict(by_name)


def trainable_names(names: Iterable[str]) -> frozenset[str]:
    """Return which parameters of a model with adapters train: the adapters, and the head of a reward model.

    >>> sorted(trainable_names(["score", "decoder.embedding", "decoder.layers.0.mlp.adapters.up.a"]))
    ['decoder.layers.0.mlp.adapters.up.a', 'score']
    """
    return frozenset(name for name in names if name == "score" or ".adapters." in name)


def merged(params: Mapping[str, Array], adapter: AdapterConfig) -> dict[str, Array]:
    """Return the weights of the same model without adapters: W + scale x A B, float32 where an adapter was.

    Args:
        params: weights of a Decoder or a RewardModel with adapters.
        adapter: their config.
    """
    weights = {name: value for name, value in params.items() if ".adapters." not in name}
    for name, a in params.items():
        stem, _, part = name.rpartition(".")
        if ".adapters." not in name or part != "a":
            continue
        owner, _, projection = stem.partition(".adapters.")
        term = jnp.tensordot(a, params[f"{stem}.b"], axes=1, precision=jax.lax.Precision.HIGHEST)
        weight = f"{owner}.{projection}"
        weights[weight] = weights[weight].astype(jnp.float32) + term * jnp.float32(adapter.scale)
    return weights


def stacked(
    under: Mapping[str, Array], lower: AdapterConfig, over: Mapping[str, Array], upper: AdapterConfig
) -> tuple[AdapterConfig, dict[str, Array]]:
    """Return one adapter that adds what two together add, as if their ranks stood side by side; its scale is 1.

    Args:
        under: adapters of a Decoder by name, which its base has merged into its weights.
        lower: their config.
        over: adapters of a Decoder or a RewardModel on that base, and the head of the latter.
        upper: their config; its dropout is that of the result.
    """
    prefix, rank = "decoder." if "score" in over else "", lower.rank + upper.rank
    parts = [({f"{prefix}{name}": value for name, value in under.items()}, lower), (over, upper)]
    params = {name: value for name, value in over.items() if name == "score"}
    for stem in sorted({name[:-2] for of, _ in parts for name in of if name.endswith(".a")}):
        columns = []
        for of, config in parts:
            there = of if f"{stem}.a" in of else next(other for other, _ in parts if f"{stem}.a" in other)
            a, b = there[f"{stem}.a"], there[f"{stem}.b"] * jnp.float32(config.scale)
            # Where one of the two has no such projection, it adds nothing.
            none = (*a.shape[:-1], config.rank), (config.rank, *b.shape[1:])
            columns.append((a, b) if there is of else tuple(map(jnp.zeros, none)))
        (a, b), (more_a, more_b) = columns
        params[f"{stem}.a"] = jnp.concatenate([a, more_a], axis=-1)
        params[f"{stem}.b"] = jnp.concatenate([b, more_b], axis=0)
    pattern = upper.targets if lower.targets == upper.targets else f"(?:{lower.targets})|(?:{upper.targets})"
    return AdapterConfig(rank=rank, alpha=float(rank), dropout=upper.dropout, targets=pattern), params


def with_dropout(model: M, batch: Mapping[str, Any]) -> M:
    """Return the module for a training pass: its adapters drop inputs if the batch holds a key for it.

    Each adapter has random numbers of its own. Without a key, nothing is dropped.
    """
    if DROPOUT in batch:
        key, number = jax.random.wrap_key_data(batch[DROPOUT]), 0
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Adaptable) and module.adapters is not None:
                for name in sorted(module.adapters):
                    module.adapters[name].key = jax.random.key_data(jax.random.fold_in(key, number))
                    number += 1
    return model
