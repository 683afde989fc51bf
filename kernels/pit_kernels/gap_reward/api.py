"""The gap reward's last mile: scores at the leaves of context trees, and the gaps made of them.

The raw gap of a candidate y over a reference is the score r(y, ref) itself; it has a free offset and must not be
compared with 0. The centred and the symmetric gap have none (Wang et al., ICLR 2024, arXiv 2310.00898, train
differences only).
"""

from jaxtyping import Array, Float, Int32

from pit_kernels import checks, dispatch
from pit_kernels.gap_reward import autodiff
from pit_kernels.gap_reward.backends import BACKENDS
from pit_kernels.gap_reward.leaves import Settings
from pit_kernels.gap_reward.tiles import Tiles
from pit_kernels.partition import WHOLE, Partition

_NAME = "gap_reward"


def leaf_scores(
    hidden: Float[Array, "B T D"],
    leaf: Int32[Array, "G L 2"],
    norm_scale: Float[Array, " D"],
    head_weight: Float[Array, " D"],
    head_bias: Float[Array, ""] | None = None,
    *,
    eps: float,
    offset_norm: bool = False,
    implementation: str = "auto",
    interpret: dispatch.Interpret = False,
    partition: Partition | None = None,
    tiles: Tiles | None = None,
) -> Float[Array, "G L"]:
    """Return the final RMSNorm and scalar head, on the leaf rows only.

    score = sum_d head_weight_d * gain_d * h_d / sqrt(mean(h^2) + eps) + head_bias, in float32 (float64 stays). An
    absent leaf (an index of -1) scores 0 and sends no gradient anywhere. No other token is read, so a NaN elsewhere
    reaches nothing.

    Args:
      hidden: hidden states before the final norm.
      leaf: (row, index) of the last token of each leaf; a negative entry means absent. A leaf outside the
        rows scores NaN.
      norm_scale: scale of the RMSNorm.
      head_weight: weight of the scalar head.
      head_bias: bias of the scalar head.
      eps: added to the mean square.
      offset_norm: whether the gain is 1 + norm_scale, as in Gemma, and not norm_scale.
      implementation: backend; see `pit_kernels.dispatch`.
      interpret: runs the TPU kernels on any platform, slowly, in Pallas' interpreter.
      partition: axes of the mesh in context that split the rows of `hidden` and, with them, the trees of `leaf`; the
        leaves of a tree must lie in rows of its shard, or they score NaN.
      tiles: sizes of the TPU kernels' blocks; those of the committed table when None.

    Raises:
      ValueError: if shapes or dtypes do not fit.
      UnsupportedImplementationError: if the named backend cannot serve.

    Example:
      >>> import jax.numpy as jnp
      >>> leaf = jnp.array([[[0, 1], [-1, -1]]], jnp.int32)
      >>> leaf_scores(jnp.ones((1, 2, 4)), leaf, jnp.ones(4), jnp.ones(4), eps=1e-6).round(3).tolist()
      [[4.0, 0.0]]
    """
    checks.require_rank(_NAME, "hidden", hidden, "B T D")
    checks.require_same_float(_NAME, hidden=hidden)
    checks.require_rank(_NAME, "leaf", leaf, "G L 2")
    checks.require_shape(_NAME, "leaf", leaf, "G L 2", (*leaf.shape[:2], 2))
    checks.require_int32(_NAME, "leaf", leaf)
    for name, x in (("norm_scale", norm_scale), ("head_weight", head_weight)):
        checks.require_shape(_NAME, name, x, "D", hidden.shape[2:])
    if head_bias is not None:
        checks.require_shape(_NAME, "head_bias", head_bias, "", ())
    checks.require_positive(_NAME, "eps", eps)
    settings = Settings(
        eps=float(eps),
        offset_norm=offset_norm,
        tiles=tiles,
        interpret=dispatch.interpreter(interpret),
        partition=(partition or WHOLE).here([hidden.shape[0], leaf.shape[0]]),
    )
    arrays = hidden, leaf, norm_scale, head_weight, head_bias
    route = dispatch.choose(_NAME, BACKENDS, implementation, settings, *arrays, interpret=interpret)
    scores: Array = autodiff.leaf_scores(*arrays, settings, route)
    return scores


def centred_gap(
    r_yr: Float[Array, "*shape"], r_yy: Float[Array, "*shape"], r_rr: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return the gap of y over its reference with the offset removed: r(y, ref) - (r(y, y) + r(ref, ref)) / 2.

    Exactly 0 where the three scores are equal, so at y = ref. Arguments: scores, candidate first, reference second.

    Example:
      >>> import jax.numpy as jnp
      >>> float(centred_gap(jnp.array(3.0), jnp.array(1.0), jnp.array(2.0)))
      1.5
    """
    return r_yr - (r_yy + r_rr) / 2


def symmetric_gap(r_yr: Float[Array, "*shape"], r_ry: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the gap of y over its reference as half the difference of the two orders: (r(y, ref) - r(ref, y)) / 2.

    Swapping y and ref flips its sign exactly.

    Example:
      >>> import jax.numpy as jnp
      >>> float(symmetric_gap(jnp.array(3.0), jnp.array(1.0)))
      1.0
    """
    return (r_yr - r_ry) / 2
