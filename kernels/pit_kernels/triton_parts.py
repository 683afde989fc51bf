"""Parts that GPU kernels share, in Triton's language. Logits of attention are in units of log 2."""

import triton.language as tl

from pit_kernels.triton_call import jit


@jit
def rows(
    at: tl.tensor,
    row: tl.tensor,
    alive: tl.tensor,
    stride: tl.tensor,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Return rows [n, W] of a head; zeros beyond the width, and with MASKED in rows that are not alive."""
    h = tl.arange(0, W)
    place = at + row[:, None] * stride + h[None, :]
    if MASKED:
        tile = tl.load(place, mask=alive[:, None] & (h < WIDTH)[None, :], other=0.0)
    elif WIDTH < W:
        tile = tl.load(place, mask=(row >= 0)[:, None] & (h < WIDTH)[None, :], other=0.0)
    else:
        tile = tl.load(place)
    return tile


@jit
def store_rows(
    at: tl.tensor,
    row: tl.tensor,
    tile: tl.tensor,
    stride: tl.tensor,
    tokens: tl.tensor,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
) -> None:
    """Write rows [n, W] of a head, those of the row's tokens."""
    h = tl.arange(0, W)
    inside = (row < tokens)[:, None] & (h < WIDTH)[None, :]
    tl.store(at + row[:, None] * stride + h[None, :], tile.to(at.dtype.element_ty), mask=inside)


@jit
def tanh(x: tl.tensor) -> tl.tensor:
    """Return the hyperbolic tangent; exp2 overflows to infinity or to 0, and both are right."""
    return 2.0 / (1.0 + tl.exp2(x * (-2.0 * 1.4426950408889634))) - 1.0


@jit
def capped(products: tl.tensor, SCALE: tl.constexpr, CAP: tl.constexpr) -> tl.tuple:
    """Return logits in units of log 2, and with a cap the derivative of the capped logit by the raw one."""
    if CAP == 0.0:
        logits, slope = products * (SCALE * 1.4426950408889634), products
    else:
        ratio = tanh(products * (SCALE / CAP))
        logits, slope = ratio * (CAP * 1.4426950408889634), 1.0 - ratio * ratio
    return logits, slope
