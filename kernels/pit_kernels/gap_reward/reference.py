"""The obvious leaf scores in NumPy float64: norm and head on every token, then one lookup per leaf."""

import numpy as np
from jaxtyping import Float, Float64, Int32


def leaf_scores(
    hidden: Float[np.ndarray, "B T D"],
    leaf: Int32[np.ndarray, "G L 2"],
    norm_scale: Float[np.ndarray, " D"],
    head_weight: Float[np.ndarray, " D"],
    head_bias: float | None,
    *,
    eps: float,
    offset_norm: bool,
) -> Float64[np.ndarray, "G L"]:
    """Return the scores by the definition; arguments as in `api.leaf_scores`."""
    hidden = hidden.astype(np.float64)
    normed = hidden / np.sqrt(np.mean(hidden**2, axis=-1, keepdims=True) + eps)
    gain = norm_scale.astype(np.float64) + (1.0 if offset_norm else 0.0)
    score_BT = (normed * gain) @ head_weight.astype(np.float64) + (0.0 if head_bias is None else head_bias)
    scores = np.zeros(leaf.shape[:2])
    for g, leaves in enumerate(leaf):
        for slot, (row, index) in enumerate(leaves):
            if row >= 0 and index >= 0:
                scores[g, slot] = score_BT[row, index]
    return scores
