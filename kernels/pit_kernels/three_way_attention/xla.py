"""Three-way attention in plain XLA: blockwise with an online softmax, memory linear in T forward and backward.

The algorithm is FlashAttention-2's (Dao, arXiv 2307.08691) with one addition: a block of queries visits only the blocks
of keys that some tree of the batch lets it see, determined on the device from block maxima of `visible_until`. The cost
therefore follows the visible pairs, not T squared.

Letters besides the project's: R query heads per key/value head (N = K R), Q tokens of a block, n blocks of a row.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import numerics
from pit_kernels.dispatch import OTHERS, Backend, serves_all
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.visible_blocks import alive

BLOCK = 128
"""Tokens of a block of queries and of a block of keys (chosen by measurement: see kernels/README.md)."""

SINGLE_BLOCK_LIMIT = 256
"""Rows of at most this many tokens are one block: nothing is padded and the loops run once."""


class _Tiles(NamedTuple):
    """A row cut into n blocks of Q tokens, block axis first so that taking one block is a contiguous slice.

    query_index is the token's flat index, or -1 for padding: no key index is <= -1, so padding sees nothing.
    position is None without a window.
    """

    q: Float[Array, "n B K R Q H"]
    k: Float[Array, "n B K Q H"]
    v: Float[Array, "n B K Q H"]
    query_index: Int32[Array, "n B Q"]
    visible_until: Int32[Array, "n B Q"]
    position: Int32[Array, "n B Q"] | None


def block_size(tokens: int) -> int:
    """Return the tokens of a block for rows of `tokens` tokens."""
    return max(tokens, 1) if tokens <= SINGLE_BLOCK_LIMIT else BLOCK


def forward(
    settings: Settings,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    position: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Return the output and log-sum-exp (natural log, -inf in padding)."""
    q, k, v = _without_padding(visible_until, q, k, v)
    tiles = _tile(q, k, v, visible_until, position)

    def query_block(i: Array) -> tuple[Array, Array]:
        return _forward_block(tiles, i, settings)

    out_nBKRQH, lse_nBKRQ = lax.map(query_block, jnp.arange(tiles.q.shape[0], dtype=jnp.int32))
    # Narrowed here: XLA's CPU backend widens the whole of a bfloat16 array for each block that is written into it.
    out_BTNH = _untile(out_nBKRQH, q.shape[1]).astype(q.dtype)
    lse_BTN = _untile(lse_nBKRQ[..., None], q.shape[1])[..., 0]
    return out_BTNH, lse_BTN.swapaxes(1, 2)


def backward(
    settings: Settings,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    d_out: Float[Array, "B T N H"],
    position: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Return the gradients of q, k and v; `lse` and `delta` are 0 in padding."""
    q, k, v, d_out = _without_padding(visible_until, q, k, v, d_out)
    tiles = _tile(q, k, v, visible_until, position)
    block, kv_heads = tiles.visible_until.shape[2], k.shape[2]
    statistics = (x.swapaxes(1, 2)[..., None] for x in (lse, delta))
    d_out_n, lse_n, delta_n = (_tile_heads(x, kv_heads, block) for x in (d_out, *statistics))

    def query_block(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        return _backward_block(tiles, d_out_n[i], lse_n[i], delta_n[i], carry, i, settings)

    zeros = jnp.zeros(tiles.k.shape, lse.dtype)
    (d_k, d_v), d_q = lax.scan(query_block, (zeros, zeros), jnp.arange(tiles.q.shape[0], dtype=jnp.int32))
    tokens = q.shape[1]
    d_k, d_v = (_untile(x[:, :, :, None], tokens) for x in (d_k, d_v))
    return _untile(d_q, tokens).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _without_padding(visible_until: Int32[Array, "B T"], *arrays: Float[Array, "B T _ H"]) -> tuple[Array, ...]:
    """Return the arrays with zeros in padding, by selection, before anything is multiplied: 0 * NaN is NaN."""
    alive_BT = alive(visible_until)
    return tuple(jnp.where(alive_BT[:, :, None, None], x, 0) for x in arrays)


def _tile_heads(x: Float[Array, "B T N H"], kv_heads: int, block: int) -> Float[Array, "n B K R Q H"]:
    """Pad the row to whole blocks and bring the block axis to the front."""
    batch, tokens, heads, width = x.shape
    blocks = -(-tokens // block)
    x = jnp.pad(x, ((0, 0), (0, blocks * block - tokens), (0, 0), (0, 0)))
    x = x.reshape(batch, blocks, block, kv_heads, heads // kv_heads, width)
    return x.transpose(1, 0, 3, 4, 2, 5)


def _untile(x: Float[Array, "n B K R Q H"], tokens: int) -> Float[Array, "B T N H"]:
    """Undo `_tile_heads`."""
    blocks, batch, kv_heads, group, block, width = x.shape
    x = x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, blocks * block, kv_heads * group, width)
    return x[:, :tokens]


def _tile(q: Array, k: Array, v: Array, visible_until: Array, position: Array | None) -> _Tiles:
    batch, tokens = visible_until.shape
    block = block_size(tokens)
    blocks = -(-tokens // block)
    # Tokens added to fill the last block have visible_until 0: padding, by the formula.
    until = jnp.pad(visible_until, ((0, 0), (0, blocks * block - tokens)))
    index = jnp.arange(blocks * block, dtype=jnp.int32)[None, :]
    query_index = jnp.where(until > index, index, -1)
    until, query_index = (x.reshape(batch, blocks, block).swapaxes(0, 1) for x in (until, query_index))
    if position is not None:
        position = jnp.pad(position, ((0, 0), (0, blocks * block - tokens)))
        position = position.reshape(batch, blocks, block).swapaxes(0, 1)
    kv_heads = k.shape[2]
    k, v = (_tile_heads(x, kv_heads, block)[:, :, :, 0] for x in (k, v))
    return _Tiles(_tile_heads(q, kv_heads, block), k, v, query_index, until, position)


def _visible_blocks(
    tiles: _Tiles, i: Int32[Array, ""], window: int | None
) -> tuple[Int32[Array, " n"], Int32[Array, ""]]:
    """Return the blocks of keys that block i of queries visits, in order, and how many they are.

    Block j < i is visited when one of its keys, in any row of the batch, is visible past the first query of block i,
    and, with a window, when in some row its last position is in the window of the first one of block i.
    """
    blocks, _, block = tiles.visible_until.shape
    reach_n = jnp.max(tiles.visible_until, axis=(1, 2))
    j_n = jnp.arange(blocks, dtype=jnp.int32)
    before_n = (j_n < i) & (reach_n > i * block)
    if tiles.position is not None and window is not None:
        far = int(np.iinfo(np.int32).max)
        first_B = jnp.min(jnp.where(tiles.query_index[i] >= 0, tiles.position[i], far), axis=1)
        last_nB = jnp.max(tiles.position, axis=2)
        before_n = before_n & jnp.any(first_B[None] - last_nB < window, axis=1)
    visited_n = (j_n == i) | before_n
    return jnp.argsort(~visited_n, stable=True).astype(jnp.int32), jnp.sum(visited_n, dtype=jnp.int32)


def _logits(
    tiles: _Tiles, i: Int32[Array, ""], j: Int32[Array, ""], settings: Settings
) -> tuple[Float[Array, "B K R Q S"], Bool[Array, "B 1 1 Q S"]]:
    """Return the capped logits of block i of queries against block j of keys, and which of them are visible."""
    q_BKRQH, k_BKSH = tiles.q[i], tiles.k[j]
    logits = jnp.einsum("bkrqh,bksh->bkrqs", q_BKRQH, k_BKSH, preferred_element_type=numerics.accumulator(q_BKRQH))
    logits = logits * settings.scale
    if settings.logit_soft_cap is not None:
        logits = settings.logit_soft_cap * jnp.tanh(logits / settings.logit_soft_cap)
    block = tiles.visible_until.shape[2]
    key_S = j * block + jnp.arange(block, dtype=jnp.int32)
    query_BQ1, until_B1S = tiles.query_index[i][:, :, None], tiles.visible_until[j][:, None, :]
    seen_BQS = (key_S[None, None, :] <= query_BQ1) & (query_BQ1 < until_B1S)
    if tiles.position is not None and settings.window is not None:
        distance_BQS = tiles.position[i][:, :, None] - tiles.position[j][:, None, :]
        seen_BQS = seen_BQS & (distance_BQS < settings.window)
    return logits, seen_BQS[:, None, None]


def _forward_block(
    tiles: _Tiles, i: Int32[Array, ""], settings: Settings
) -> tuple[Float[Array, "B K R Q H"], Float[Array, "B K R Q"]]:
    order_n, count = _visible_blocks(tiles, i, settings.window)
    accumulator = numerics.accumulator(tiles.q)
    shape_BKRQH = tiles.q.shape[1:]

    def visit(c: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        acc, peak, total = carry
        j = order_n[c]
        logits, visible = _logits(tiles, i, j, settings)
        logits = jnp.where(visible, logits, -jnp.inf)
        # `peak` starts finite, so an unseen logit gives exp(-inf - finite) = 0 and never inf - inf.
        new_peak = jnp.maximum(peak, jnp.max(logits, axis=-1))
        p = jnp.exp(logits - new_peak[..., None])
        fade = jnp.exp(peak - new_peak)
        v_BKSH = tiles.v[j]
        new = jnp.einsum("bkrqs,bksh->bkrqh", p.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=accumulator)
        return acc * fade[..., None] + new, new_peak, total * fade + jnp.sum(p, axis=-1)

    start = (
        jnp.zeros(shape_BKRQH, accumulator),
        jnp.full(shape_BKRQH[:-1], float(np.finfo(accumulator).min), accumulator),
        jnp.zeros(shape_BKRQH[:-1], accumulator),
    )
    acc, peak, total = lax.fori_loop(0, count, visit, start)
    alive_BQ = tiles.query_index[i] >= 0
    alive_BKRQ = alive_BQ[:, None, None, :]
    total = jnp.where(alive_BKRQ, total, 1)
    out = acc / total[..., None]
    lse = jnp.where(alive_BKRQ, peak + jnp.log(total), -jnp.inf)
    return out, lse


def _backward_block(
    tiles: _Tiles,
    d_out: Float[Array, "B K R Q H"],
    lse: Float[Array, "B K R Q 1"],
    delta: Float[Array, "B K R Q 1"],
    d_kv: tuple[Float[Array, "n B K Q H"], Float[Array, "n B K Q H"]],
    i: Int32[Array, ""],
    settings: Settings,
) -> tuple[tuple[Float[Array, "n B K Q H"], Float[Array, "n B K Q H"]], Float[Array, "B K R Q H"]]:
    """Add block i's share to the gradients of keys and values, and return the gradient of its queries."""
    order_n, count = _visible_blocks(tiles, i, settings.window)
    accumulator = numerics.accumulator(tiles.q)
    q = tiles.q[i]

    def visit(c: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d_q, d_k, d_v = carry
        j = order_n[c]
        logits, visible = _logits(tiles, i, j, settings)
        p = jnp.exp(jnp.where(visible, logits, -jnp.inf) - lse)
        d_p = jnp.einsum("bkrqh,bksh->bkrqs", d_out, tiles.v[j], preferred_element_type=accumulator)
        d_logits = p * (d_p - delta)
        if settings.logit_soft_cap is not None:
            d_logits = d_logits * (1 - (logits / settings.logit_soft_cap) ** 2)
        d_logits = (d_logits * settings.scale).astype(q.dtype)
        d_q = d_q + jnp.einsum("bkrqs,bksh->bkrqh", d_logits, tiles.k[j], preferred_element_type=accumulator)
        d_k_j = jnp.einsum("bkrqs,bkrqh->bksh", d_logits, q, preferred_element_type=accumulator)
        d_v_j = jnp.einsum("bkrqs,bkrqh->bksh", p.astype(d_out.dtype), d_out, preferred_element_type=accumulator)
        return d_q, d_k.at[j].add(d_k_j), d_v.at[j].add(d_v_j)

    d_q, d_k, d_v = lax.fori_loop(0, count, visit, (jnp.zeros(q.shape, accumulator), *d_kv))
    return (d_k, d_v), d_q


BACKEND = Backend("xla", (OTHERS,), serves_all, forward, backward)
