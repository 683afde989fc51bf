"""The obvious cached attention in NumPy float64: each slot concatenates its prefix and its suffix."""

import numpy as np
from jaxtyping import Float, Float64, Int32


def cached_attention(
    q: Float[np.ndarray, "S N H"],
    prefix_k: Float[np.ndarray, "P C0 K H"],
    prefix_v: Float[np.ndarray, "P C0 K H"],
    prefix_length: Int32[np.ndarray, " P"],
    suffix_k: Float[np.ndarray, "S C1 K H"],
    suffix_v: Float[np.ndarray, "S C1 K H"],
    suffix_length: Int32[np.ndarray, " S"],
    prefix_id: Int32[np.ndarray, " S"],
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
) -> Float64[np.ndarray, "S N H"]:
    """Output by the definition; arguments as in `api.cached_attention`."""
    slots, heads, width = q.shape
    group = heads // prefix_k.shape[2]
    scale = width**-0.5 if scale is None else scale
    out = np.zeros(q.shape)
    for s in range(slots):
        p = prefix_id[s]
        kept = [max(int(prefix_length[p]), 0), max(int(suffix_length[s]), 0)]
        if sum(kept) == 0:
            continue
        k = np.concatenate([prefix_k[p, : kept[0]], suffix_k[s, : kept[1]]]).astype(np.float64)
        v = np.concatenate([prefix_v[p, : kept[0]], suffix_v[s, : kept[1]]]).astype(np.float64)
        for n in range(heads):
            logits = k[:, n // group] @ q[s, n].astype(np.float64) * scale
            if logit_soft_cap is not None:
                logits = logit_soft_cap * np.tanh(logits / logit_soft_cap)
            p_S = np.exp(logits - logits.max())
            out[s, n] = p_S @ v[:, n // group] / p_S.sum()
    return out
