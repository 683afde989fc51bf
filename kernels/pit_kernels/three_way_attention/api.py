"""Attention over rows of packed context trees: one int32 vector gives causality, packing, prefix sharing and padding.

This is the attention of every training and scoring pass of the project; the mask is described in kernels/README.md.
"""

from typing import Literal, overload

from jaxtyping import Array, Float, Int32

from pit_kernels import checks, dispatch
from pit_kernels.partition import WHOLE, Partition
from pit_kernels.three_way_attention import autodiff
from pit_kernels.three_way_attention.backends import BACKENDS
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.tiles import Tiles

_NAME = "three_way_attention"

Axes = Literal["BTNH", "BNTH"]
"""Order of the axes of q, k, v and the output: batch, tokens, heads, width."""


@overload
def three_way_attention(
    q: Float[Array, "B _ _ H"],
    k: Float[Array, "B _ _ H"],
    v: Float[Array, "B _ _ H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    window: int | None = None,
    implementation: str = "auto",
    interpret: dispatch.Interpret = False,
    partition: Partition | None = None,
    tiles: Tiles | None = None,
    axes: Axes = "BTNH",
    return_lse: Literal[False] = False,
) -> Float[Array, "B _ _ H"]: ...


@overload
def three_way_attention(
    q: Float[Array, "B _ _ H"],
    k: Float[Array, "B _ _ H"],
    v: Float[Array, "B _ _ H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    window: int | None = None,
    implementation: str = "auto",
    interpret: dispatch.Interpret = False,
    partition: Partition | None = None,
    tiles: Tiles | None = None,
    axes: Axes = "BTNH",
    return_lse: Literal[True],
) -> tuple[Float[Array, "B _ _ H"], Float[Array, "B T N"]]: ...


def three_way_attention(
    q: Float[Array, "B _ _ H"],
    k: Float[Array, "B _ _ H"],
    v: Float[Array, "B _ _ H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
    *,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    window: int | None = None,
    implementation: str = "auto",
    interpret: dispatch.Interpret = False,
    partition: Partition | None = None,
    tiles: Tiles | None = None,
    axes: Axes = "BTNH",
    return_lse: bool = False,
) -> Float[Array, "B _ _ H"] | tuple[Float[Array, "B _ _ H"], Float[Array, "B T N"]]:
    """Return the softmax attention in which query t sees key s exactly when s <= t < visible_until[s] and t is alive.

    A token t is alive when visible_until[t] > t; any other token is padding. Padding gets output exactly 0, log-sum-exp
    -inf and gradients exactly 0, and a NaN in its q, k, v or incoming gradients reaches nothing. A living token always
    sees itself, so its log-sum-exp is finite. Every int32 value follows the formula; none reads out of bounds. With a
    window, t sees s only if position[t] - position[s] < window as well.

    Products accumulate in float32 and the softmax is float32, whatever the dtype (float64 inputs stay float64). The
    gradient is defined for reverse mode only, through the output and through the log-sum-exp.

    Args:
      q: queries; B rows of T flat tokens, N heads of width H: [B T N H], or [B N T H] by `axes`.
      k: keys; K heads, each serving the N/K consecutive query heads from N/K times its index.
      v: values.
      visible_until: flat index at which the subtree of the token's segment ends.
      position: position of the token on its own root-to-leaf path; needed with `window` only.
      scale: factor of the logits, H**-0.5 when None.
      logit_soft_cap: c of the cap c tanh(z / c) on the scaled logits z (Gemma 2); no cap when None.
      window: positions of its path that a query sees, its own included (sliding window, Mistral); all when None. It
        must be known when the program is compiled.
      implementation: backend; see `pit_kernels.dispatch`. The TPU kernel pads inside: rows to whole blocks of 128
        tokens, widths to 64 or whole multiples of 128. Rows whose keys do not fit into VMEM take it stretch by stretch.
      interpret: whether, and with what parameters, Pallas' interpreter runs the TPU kernel, on any platform.
      partition: axes of the mesh in context (`jax.set_mesh`) that split the rows B, and the heads N and K.
      tiles: block sizes of the TPU kernel; the committed table's when None.
      axes: order of the axes of q, k, v and the output. "BNTH" is that of the TPU kernels, and of other packages: an
        array that is stored so is read as it is. The log-sum-exp is [B T N] in both.
      return_lse: whether to return the log-sum-exp too.

    Returns:
      The output in the dtype of q; with `return_lse` a pair of the output and the natural log-sum-exp of each query's
      logits, float32.

    Raises:
      ValueError: if shapes or dtypes do not fit.
      UnsupportedImplementationError: if the named backend cannot serve.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((1, 3, 1, 2))
      >>> out, lse = three_way_attention(x, x, x, jnp.array([[2, 2, 0]], jnp.int32), return_lse=True)
      >>> out[0, :, 0, 0].tolist()
      [1.0, 1.0, 0.0]
      >>> float(lse[0, 2, 0])
      -inf
    """
    if axes not in ("BTNH", "BNTH"):
        raise ValueError(f'{_NAME}: axes is {axes!r}; it must be "BTNH" or "BNTH"')
    of_q, of_k = ("B T N H", "B T K H") if axes == "BTNH" else ("B N T H", "B K T H")
    for name, x, letters in (("q", q, of_q), ("k", k, of_k), ("v", v, of_k)):
        checks.require_rank(_NAME, name, x, letters)
    checks.require_same_float(_NAME, q=q, k=k, v=v)
    checks.require_int32(_NAME, "visible_until", visible_until)
    at_tokens, at_heads = axes.index("T"), axes.index("N")
    batch, tokens, heads, width = q.shape[0], q.shape[at_tokens], q.shape[at_heads], q.shape[3]
    kv_heads = k.shape[at_heads]
    like_k = (batch, tokens, kv_heads, width) if axes == "BTNH" else (batch, kv_heads, tokens, width)
    checks.require_shape(_NAME, "k", k, of_k, like_k)
    checks.require_shape(_NAME, "v", v, of_k, like_k)
    checks.require_shape(_NAME, "visible_until", visible_until, "B T", (batch, tokens))
    checks.require_grouped_heads(_NAME, heads, kv_heads)
    scale = width**-0.5 if scale is None else scale
    checks.require_positive(_NAME, "scale", scale)
    if logit_soft_cap is not None:
        checks.require_positive(_NAME, "logit_soft_cap", logit_soft_cap)

    if window is not None:
        checks.require_window(_NAME, window)
        if position is None:
            raise ValueError(f"{_NAME}: position is None; with window = {window} it must be [B T], int32")
        checks.require_int32(_NAME, "position", position)
        checks.require_shape(_NAME, "position", position, "B T", (batch, tokens))

    settings = Settings(
        scale=float(scale),
        logit_soft_cap=None if logit_soft_cap is None else float(logit_soft_cap),
        window=window,
        tiles=tiles,
        interpret=dispatch.interpreter(interpret),
        partition=(partition or WHOLE).here([batch], [heads, kv_heads]),
    )
    if axes == "BNTH":
        # Views: XLA lays the arrays out as the backend reads them.
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    # Without a window no program takes positions.
    arrays = (q, k, v, visible_until) if window is None else (q, k, v, visible_until, position)
    route = dispatch.choose(_NAME, BACKENDS, implementation, settings, *arrays, interpret=interpret)
    out, lse = autodiff.attend(q, k, v, arrays[3:], settings, route)
    out = out if axes == "BTNH" else out.swapaxes(1, 2)
    return (out, lse.swapaxes(1, 2)) if return_lse else out
