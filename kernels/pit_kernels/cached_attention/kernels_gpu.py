"""Body of the GPU kernel of cached attention, in Triton's language: one pass over a group's cache.

Letters: M queries and C entries of a tile, W the head's width inside, a power of two. Logits are in units of log 2.
"""

import triton.language as tl

from pit_kernels.triton_call import jit
from pit_kernels.triton_parts import capped, rows


@jit
def pass_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    start_ptr: tl.tensor,
    length_ptr: tl.tensor,
    first_ptr: tl.tensor,
    weighted_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    GROUPS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    CAPACITY: tl.constexpr,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
    QUERIES: tl.constexpr,
    ENTRIES: tl.constexpr,
    PIECE: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the sums of one tile of queries over one piece of the held entries of its cache.

    Entries are counted from the oldest one that is held, so that a cache that wraps around is read like any other.
    Programs: tiles of queries, groups times key/value heads, pieces of PIECE entries.
    """
    gk = tl.program_id(1).to(tl.int64)
    g = gk // KV_HEADS
    s = tl.program_id(2)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = row < ROWS
    start = tl.load(start_ptr + g)
    length = tl.minimum(tl.maximum(tl.load(length_ptr + g), 0), CAPACITY)
    q = rows(q_ptr + gk * (ROWS * WIDTH), row, inside, WIDTH, WIDTH, W, True)
    first_entry = s * PIECE
    first = row
    if WINDOW:
        first = tl.load(first_ptr + g * ROWS + row, mask=inside, other=CAPACITY)
        first_entry = tl.maximum(first_entry, tl.minimum(tl.min(first, 0), CAPACITY) // ENTRIES * ENTRIES)
    last_entry = tl.minimum((s + 1) * PIECE, length)

    peak = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, W], tl.float32)
    for at in range(first_entry, last_entry, ENTRIES):
        number = at + tl.arange(0, ENTRIES)
        held = number < last_entry
        place = start + number
        place = tl.where(place >= CAPACITY, place - CAPACITY, place)
        k = rows(k_ptr + gk * (CAPACITY * WIDTH), place, held, WIDTH, WIDTH, W, True)
        v = rows(v_ptr + gk * (CAPACITY * WIDTH), place, held, WIDTH, WIDTH, W, True)
        logits, _ = capped(tl.dot(q, tl.trans(k), input_precision=PRECISION), SCALE, CAP)
        if WINDOW:
            seen = held[None, :] & (number[None, :] >= first[:, None])
        else:
            seen = held[None, :] & (row >= 0)[:, None]
        logits = tl.where(seen, logits, -1e30)
        higher = tl.maximum(peak, tl.max(logits, 1))
        # A query may see nothing at all: what it does not see counts 0 by selection.
        p = tl.where(seen, tl.exp2(logits - higher[:, None]), 0.0)
        fade = tl.exp2(peak - higher)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        total = total * fade + tl.sum(p, 1)
        peak = higher

    h = tl.arange(0, W)
    at_row = (s * GROUPS * KV_HEADS + gk) * ROWS + row
    tl.store(weighted_ptr + at_row[:, None] * WIDTH + h[None, :], acc, mask=inside[:, None] & (h < WIDTH)[None, :])
    tl.store(peak_ptr + at_row, peak * 0.6931471805599453, mask=inside)
    tl.store(total_ptr + at_row, total, mask=inside)
