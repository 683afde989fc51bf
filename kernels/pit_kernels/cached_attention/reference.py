"""The obvious cached attention in NumPy float64: each slot concatenates its prefix and its suffix."""

import numpy as np
from jaxtyping import Float, Float64, Int32


def cached_attention(
    q: Float[np.ndarray, "S N H"],
    prefix_k: Float[np.ndarray, "P K C0 H"],
    prefix_v: Float[np.ndarray, "P K C0 H"],
    prefix_length: Int32[np.ndarray, " P"],
    suffix_k: Float[np.ndarray, "S K C1 H"],
    suffix_v: Float[np.ndarray, "S K C1 H"],
    suffix_length: Int32[np.ndarray, " S"],
    prefix_id: Int32[np.ndarray, " S"],
    suffix_start: Int32[np.ndarray, " S"] | None = None,
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    window: int | None = None,
) -> Float64[np.ndarray, "S N H"]:
    """Return the output by the definition; arguments as in `api.cached_attention`."""
    slots, heads, width = q.shape
    prefixes, kv_heads, prefix_capacity, _ = prefix_k.shape
    group, suffix_capacity = heads // kv_heads, suffix_k.shape[2]
    suffix_start = np.zeros(slots, np.int32) if suffix_start is None else suffix_start
    scale = width**-0.5 if scale is None else scale
    out = np.zeros(q.shape)
    for s in range(slots):
        p = prefix_id[s] if 0 <= prefix_id[s] < prefixes else None
        first = list(range(0 if p is None else min(max(int(prefix_length[p]), 0), prefix_capacity)))
        held = min(max(int(suffix_length[s]), 0), suffix_capacity)
        second = [(int(suffix_start[s]) + j) % suffix_capacity for j in range(held)]
        if window is not None:
            # Entries in the order of their positions; the query is the last.
            path = [*((True, i) for i in first), *((False, i) for i in second)][-window:]
            first, second = [i for of_prefix, i in path if of_prefix], [i for of_prefix, i in path if not of_prefix]
        if not first and not second:
            continue
        # Without a prefix nothing is taken of the one that is named here.
        k = np.concatenate([prefix_k[p or 0][:, first], suffix_k[s][:, second]], axis=1).astype(np.float64)
        v = np.concatenate([prefix_v[p or 0][:, first], suffix_v[s][:, second]], axis=1).astype(np.float64)
        for n in range(heads):
            logits = k[n // group] @ q[s, n].astype(np.float64) * scale
            if logit_soft_cap is not None:
                logits = logit_soft_cap * np.tanh(logits / logit_soft_cap)
            p_S = np.exp(logits - logits.max())
            out[s, n] = p_S @ v[n // group] / p_S.sum()
    return out
