"""The deterministic cases of each operation, from small and easy to what finds mistakes."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from pit_kernels.conformance.check import Case
from pit_kernels.conformance.rows import is_packed, named_rows, write_segments
from pit_kernels.three_way_attention import reference as attention_reference
from pit_kernels.token_logprob import reference as logprob_reference

TOKENS = 512
"""Row length of the attention cases: a few blocks of every kernel."""


def attention_cases(head_dim: int = 128) -> list[Case]:
    """Cases of `f(q, k, v, visible_until, *, logit_soft_cap=None)`, which gives the output [B, T, N, H].

    What they may need: "trees" beyond packed sequences, "grouped" heads, "soft_cap", "odd_lengths" of rows.
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
) -> Case:
    rng = np.random.default_rng(len(name))
    batch, tokens = rows.shape
    q, d_out = rng.normal(size=(2, batch, tokens, heads[0], head_dim))
    # So that a query's d_out . v is about 1, which the floor of the rule is made for.
    d_out = d_out * head_dim**-0.5
    k, v = rng.normal(size=(2, batch, tokens, heads[1], head_dim))
    alive = rows > np.arange(tokens)

    options = {} if soft_cap is None else {"logit_soft_cap": soft_cap}
    cotangent = np.where(alive[:, :, None, None], d_out, 0)
    return Case(name, needs, (q, k, v), (rows,), options, (cotangent,), dtype, _attention_formula, ("out",))


def _attention_formula(*arguments: Any, **options: Any) -> Any:
    return attention_reference.three_way_attention(*arguments, **options)[0]


def token_logprob_cases() -> list[Case]:
    """Cases of `f(hidden, weight, target, *, temperature=1.0, logit_soft_cap=None)` for a [V, D] table.

    Gives (logp, lse, entropy) to those that serve "entropy", logp alone to those that serve "logp", and the summed
    loss -sum(logp) to those that serve "sum". What they may need besides: "temperature", "soft_cap", "ragged" sizes.
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
    """A case with so many results a row; with none it is the loss of all rows."""
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
    """Cases of `f(hidden, norm_scale, head_weight, head_bias, leaf)`, which gives scores [G, L]."""
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
    """The definition of `leaf_scores`: norm and head on every token, then one lookup a leaf."""
    normed = hidden * (1 / jnp.sqrt(jnp.mean(hidden**2, axis=-1, keepdims=True) + 1e-5)).astype(hidden.dtype)
    score_BT = jnp.einsum("btd,d->bt", normed, scale * weight) + bias
    present = leaf[..., 0] >= 0
    row, index = (jnp.where(present, leaf[..., axis], 0) for axis in (0, 1))
    return jnp.where(present, score_BT[row, index], 0)


CASES: dict[str, Callable[[], list[Case]]] = {
    "three_way_attention": attention_cases,
    "token_logprob": token_logprob_cases,
    "gap_reward": gap_reward_cases,
}
"""The cases of each operation that can be measured."""
