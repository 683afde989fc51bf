"""The deterministic cases of each operation, from small and easy ones to those that reveal mistakes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels.conformance.check import Case
from pit_kernels.conformance.rows import is_packed, named_rows, path_positions, write_segments
from pit_kernels.three_way_attention import reference as attention_reference
from pit_kernels.token_logprob import reference as logprob_reference

TOKENS = 512
"""Row length of the attention cases: a few blocks of every kernel."""


def attention_cases(head_dim: int = 128) -> list[Case]:
    """Return the cases of `f(q, k, v, visible_until, *, logit_soft_cap=None)`, whose result is the output [B, T, N, H].

    They may need "trees" beyond packed sequences, "grouped" heads, "soft_cap", and a "window", with which the function
    takes `position` after the mask and the keyword `window`.
    """
    cases = []
    for name, segments in named_rows(TOKENS).items():
        row = write_segments(TOKENS, segments)
        needs = frozenset() if is_packed(row) else frozenset({"trees"})
        rows = np.stack([row, np.zeros_like(row) if "trees" in needs else row])
        cases.append(_attention(f"{name}, float32", rows, (2, 2), head_dim, jnp.float32, None, needs))
    mixed = [write_segments(TOKENS, [(0, 130, False), (0, 382, False)]), write_segments(TOKENS, [(0, TOKENS, False)])]
    gap = [
        (0, 100, False),
        (1, 50, False),
        (2, 50, False),
        (2, 47, False),
        (1, 47, False),
        (2, 50, False),
        (2, 47, False),
    ]
    trees = np.stack(
        [write_segments(TOKENS, gap), write_segments(TOKENS, named_rows(TOKENS)["one tree fills the row"])]
    )
    packed = np.stack(mixed)
    for window in (1, 60, 130):
        name, needs = f"trees, window of {window}, float32", frozenset({"trees", "grouped", "window"})
        cases.append(_attention(name, trees, (4, 2), head_dim, jnp.float32, None, needs, window))
    cases += [
        _attention("packed sequences, bfloat16", packed, (2, 2), head_dim, jnp.bfloat16, None, frozenset()),
        _attention(
            "packed, grouped heads, bfloat16", packed, (4, 2), head_dim, jnp.bfloat16, None, frozenset({"grouped"})
        ),
        _attention("gap trees, bfloat16", trees, (2, 2), head_dim, jnp.bfloat16, None, frozenset({"trees"})),
        _attention(
            "gap trees, grouped heads, soft cap, bfloat16",
            trees,
            (4, 2),
            head_dim,
            jnp.bfloat16,
            5.0,
            frozenset({"trees", "grouped", "soft_cap"}),
        ),
    ]
    return cases


def _attention(
    name: str,
    rows: np.ndarray,
    heads: tuple[int, int],
    head_dim: int,
    dtype: Any,
    soft_cap: float | None,
    needs: frozenset[str],
    window: int | None = None,
) -> Case:
    rng = np.random.default_rng(len(name))
    batch, tokens = rows.shape
    q, d_out = rng.normal(size=(2, batch, tokens, heads[0], head_dim))
    # The floor of the rule assumes that a query's d_out . v is about 1.
    d_out = d_out * head_dim**-0.5
    k, v = rng.normal(size=(2, batch, tokens, heads[1], head_dim))
    alive = rows > np.arange(tokens)

    options: dict[str, Any] = {} if soft_cap is None else {"logit_soft_cap": soft_cap}
    mask = [rows]
    if window is not None:
        mask.append(np.stack([path_positions(row) for row in rows]))
        options["window"] = window
    cotangent = np.where(alive[:, :, None, None], d_out, 0)
    return Case(name, needs, (q, k, v), tuple(mask), options, (cotangent,), dtype, _attention_formula, ("out",))


def _attention_formula(*arguments: Any, **options: Any) -> Any:
    return attention_reference.three_way_attention(*arguments, **options)[0]


def token_logprob_cases() -> list[Case]:
    """Return the cases of `f(hidden, weight, target, *, temperature=1.0, logit_soft_cap=None)` for a [V, D] table.

    Cases that need "entropy" have the results (logp, lse, entropy), those that need "logp" have logp alone, and those
    that need "sum" the loss -sum(logp). Further needs are "temperature", "soft_cap" and "ragged" sizes.
    """
    cases = []
    for name, (rows, width, vocabulary), options, dtype in (
        ("float32", (256, 256, 1024), {}, jnp.float32),
        ("bfloat16", (256, 256, 1024), {}, jnp.bfloat16),
        ("temperature", (256, 256, 1024), {"temperature": 0.6}, jnp.bfloat16),
        ("soft cap", (256, 256, 1024), {"logit_soft_cap": 5.0}, jnp.bfloat16),
        ("sizes that fill no block", (131, 136, 1031), {}, jnp.bfloat16),
    ):
        needs = frozenset(
            need
            for need, asked in (
                ("temperature", "temperature" in options),
                ("soft_cap", "logit_soft_cap" in options),
                ("ragged", rows % 128 != 0),
            )
            if asked
        )
        for results in (1, 3):
            cases.append(_logprob(name, (rows, width, vocabulary), options, dtype, needs, results))
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        cases.append(_logprob(name, (1024, 512, 1024), {}, dtype, frozenset(), 0))
    return cases


def _logprob(
    name: str,
    sizes: tuple[int, int, int],
    options: dict[str, float],
    dtype: Any,
    needs: frozenset[str],
    results: int,
) -> Case:
    """Return a case with that many results per row; with none the result is the loss of all rows."""
    rows, width, vocabulary = sizes
    rng = np.random.default_rng(rows + width + vocabulary)
    hidden, weight = rng.normal(size=(rows, width)), rng.normal(size=(vocabulary, width)) * width**-0.5
    target = rng.integers(0, vocabulary, rows).astype(np.int32)
    cotangents = tuple(rng.normal(size=(results, rows))) if results else (np.ones(()),)

    formula = {0: _loss_formula, 1: _logp_formula, 3: logprob_reference.token_logprob}[results]
    names = ("logp", "lse", "entropy")[:results] or ("loss",)
    extra = frozenset({{0: "sum", 1: "logp", 3: "entropy"}[results]})
    return Case(
        f"{name}, {'+'.join(names)}",
        needs | extra,
        (hidden, weight),
        (target,),
        options,
        cotangents,
        dtype,
        formula,
        names,
    )


def _loss_formula(*arguments: Any, **options: Any) -> Any:
    return -jnp.sum(logprob_reference.token_logprob(*arguments, **options)[0])


def _logp_formula(*arguments: Any, **options: Any) -> Any:
    return logprob_reference.token_logprob(*arguments, **options)[0]


def gap_reward_cases() -> list[Case]:
    """Return the cases of `f(hidden, norm_scale, head_weight, head_bias, leaf)`, whose result is the scores [G, L]."""
    cases = []
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        rng = np.random.default_rng(7)
        hidden = rng.normal(size=(2, 256, 256))
        leaf = np.stack([rng.integers(0, 2, (8, 4)), rng.integers(0, 256, (8, 4))], axis=-1).astype(np.int32)
        leaf[0, 1] = leaf[3] = -1
        scale, weight, bias = rng.normal(size=256), rng.normal(size=256), np.asarray(rng.normal())
        cotangent = np.where(leaf[..., 0] >= 0, rng.normal(size=(8, 4)), 0)
        floats = (hidden, scale, weight, bias)
        cases.append(Case(name, frozenset(), floats, (leaf,), {}, (cotangent,), dtype, _leaf_formula, ("scores",)))
    return cases


def _leaf_formula(hidden: Any, scale: Any, weight: Any, bias: Any, leaf: Any) -> Any:
    """Return `leaf_scores` by the definition: norm and head on every token, then one lookup per leaf."""
    normed = hidden * (1 / jnp.sqrt(jnp.mean(hidden**2, axis=-1, keepdims=True) + 1e-5)).astype(hidden.dtype)
    score_BT = jnp.einsum("btd,d->bt", normed, scale * weight) + bias
    present = leaf[..., 0] >= 0
    row, index = (jnp.where(present, leaf[..., axis], 0) for axis in (0, 1))
    return jnp.where(present, score_BT[row, index], 0)


def cached_attention_cases() -> list[Case]:
    """Return the cases of cached attention, whose result is the output [S, N, H] and has no gradient.

    The arguments are q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length, prefix_id and
    suffix_start. The keywords are `logit_soft_cap`, `window` and `slots_per_prefix`. The cases may need "grouped"
    heads, "soft_cap" and a "window".
    """
    plain, grouped = (2, 2, 64), (4, 2, 64)
    return [
        _cached("caches that fill no block, float32", (9, 5), plain, jnp.float32, {}),
        _cached("grouped heads, soft cap, bfloat16", (128, 128), grouped, jnp.bfloat16, {"logit_soft_cap": 2.0}),
        _cached("caches of several blocks, float32", (640, 384), grouped, jnp.float32, {"slots_per_prefix": 3}),
        _cached("window inside the suffixes, float32", (9, 5), grouped, jnp.float32, {"window": 3}),
        _cached("window across both caches, float32", (128, 64), grouped, jnp.float32, {"window": 70}),
    ]


def _cached(
    name: str, capacities: tuple[int, int], heads: tuple[int, int, int], dtype: Any, options: dict[str, Any]
) -> Case:
    """Return a case with six slots on three prefixes: full, partial and empty caches, wrapped suffixes, no prefix."""
    slots, prefixes, (count, kv_heads, width) = 6, 3, heads
    rng = np.random.default_rng(len(name))
    of_prefixes, of_slots = ((n, kv_heads, c, width) for n, c in zip((prefixes, slots), capacities, strict=True))
    shapes = (slots, count, width), of_prefixes, of_prefixes, of_slots, of_slots
    floats = tuple(rng.normal(size=shape) for shape in shapes)
    most_prefix, most = capacities
    numbers = (
        (most_prefix, most_prefix // 2 + 1, 0),
        (1, most, 0, most // 2, most - 1, 0),
        (0, 1, 0, 2, -1, 2),
        (0, most - 1, 3, most + 1, most // 2, 0),
    )
    others = tuple(np.array(x, np.int32) for x in numbers)
    needs = {"grouped"} if count != kv_heads else set()
    needs |= {"soft_cap"} if "logit_soft_cap" in options else set()
    needs |= {"window"} if "window" in options else set()
    cotangents = (np.ones((slots, count, width)),)
    return Case(
        name, frozenset(needs), floats, others, options, cotangents, dtype, cached_formula, ("out",), gradients=False
    )


def cached_formula(
    q: Any,
    prefix_k: Any,
    prefix_v: Any,
    suffix_k: Any,
    suffix_v: Any,
    prefix_length: Any,
    suffix_length: Any,
    prefix_id: Any,
    suffix_start: Any,
    *,
    logit_soft_cap: float | None = None,
    window: int | None = None,
    slots_per_prefix: int | None = None,
) -> Any:
    """Return the cached attention by the dense formula: one masked softmax over each slot's two caches side by side."""
    group, (prefixes, _, most_prefix, width), most = q.shape[1] // prefix_k.shape[1], prefix_k.shape, suffix_k.shape[2]
    k, v = (jnp.concatenate(x, 2) for x in ((prefix_k[prefix_id], suffix_k), (prefix_v[prefix_id], suffix_v)))
    k, v = jnp.repeat(k, group, axis=1), jnp.repeat(v, group, axis=1)
    prefix_length = jnp.where((prefix_id >= 0) & (prefix_id < prefixes), prefix_length[prefix_id], 0)
    prefix_length, suffix_length = jnp.clip(prefix_length, 0, most_prefix), jnp.clip(suffix_length, 0, most)
    first, second = (jnp.arange(n, dtype=jnp.int32)[None] for n in (most_prefix, most))
    second = (second - suffix_start[:, None]) % most
    held = [first < prefix_length[:, None], second < suffix_length[:, None]]
    if window is not None:
        # The oldest token that a slot sees, counted from its path's first.
        oldest = (prefix_length + suffix_length - window)[:, None]
        held = [held[0] & (first >= oldest), held[1] & (second + prefix_length[:, None] >= oldest)]
    logits = jnp.einsum("snh,snch->snc", q, k) * width**-0.5
    if logit_soft_cap is not None:
        logits = logit_soft_cap * jnp.tanh(logits / logit_soft_cap)
    p = jax.nn.softmax(jnp.where(jnp.concatenate(held, 1)[:, None], logits, -jnp.inf), axis=-1)
    return jnp.where((prefix_length + suffix_length > 0)[:, None, None], jnp.einsum("snc,snch->snh", p, v), 0)
