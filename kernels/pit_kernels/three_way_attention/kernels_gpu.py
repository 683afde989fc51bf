"""Body of the forward GPU kernel of three-way attention, in Triton's language, and the mask of all of them.

Letters: Q queries and K keys of a tile, W the head's width inside, a power of two. Logits are in units of log 2. A list
of tiles begins with those that are wholly visible, which need no mask; tokens of the others are loaded only where they
are alive, so that nothing in padding, nor beyond the row, reaches a product.
"""

import triton.language as tl

from pit_kernels.triton_call import jit
from pit_kernels.triton_parts import capped, rows, store_rows


@jit
def seen_pairs(
    query: tl.tensor, key: tl.tensor, until: tl.tensor, at_query: tl.tensor, at_key: tl.tensor, WINDOW: tl.constexpr
) -> tl.tensor:
    """Return which keys the queries see; the arguments broadcast to the tile."""
    seen = (key <= query) & (query < until)
    if WINDOW > 0:
        seen = seen & (at_query - at_key < WINDOW)
    return seen


@jit
def _forward_step(
    q: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    until_at: tl.tensor,
    position_at: tl.tensor,
    row: tl.tensor,
    at_row: tl.tensor,
    block: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    KEY_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
    KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tuple:
    """Return the running peak, sum and weighted values after one tile of keys."""
    key = block * KEYS + tl.arange(0, KEYS)
    until = key
    if MASKED:
        until = tl.load(until_at + key)
    k = rows(k_at, key, until > key, KEY_STRIDE, WIDTH, W, MASKED)
    logits, _ = capped(tl.dot(q, tl.trans(k), input_precision=PRECISION), SCALE, CAP)
    if MASKED:
        at_key = key
        if WINDOW > 0:
            at_key = tl.load(position_at + key)
        seen = seen_pairs(row[:, None], key[None, :], until[None, :], at_row[:, None], at_key[None, :], WINDOW)
        # Finite, so that the difference of two is not NaN; every living query sees itself and forgets these.
        logits = tl.where(seen, logits, -1e30)
    higher = tl.maximum(peak, tl.max(logits, 1))
    p = tl.exp2(logits - higher[:, None])
    fade = tl.exp2(peak - higher)
    v = rows(v_at, key, until > key, KEY_STRIDE, WIDTH, W, MASKED)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return higher, total * fade + tl.sum(p, 1), acc


@jit
def forward_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    until_ptr: tl.tensor,
    position_ptr: tl.tensor,
    block_ptr: tl.tensor,
    full_ptr: tl.tensor,
    number_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    TOKENS: tl.constexpr,
    PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the output and log-sum-exp of one tile of queries of one head.

    Programs: tiles of queries, the last first because they see most, and rows times heads.
    """
    n_blocks: tl.constexpr = PADDED // QUERIES
    m_blocks: tl.constexpr = PADDED // KEYS
    i = n_blocks - 1 - tl.program_id(0)
    b = tl.program_id(1) // HEADS
    n = tl.program_id(1) % HEADS
    first = b.to(tl.int64) * TOKENS
    kv_at = first * (KV_HEADS * WIDTH) + n // (HEADS // KV_HEADS) * WIDTH
    q_at = first * (HEADS * WIDTH) + n * WIDTH
    until_at = until_ptr + b * PADDED
    position_at = position_ptr + b * PADDED

    row = i * QUERIES + tl.arange(0, QUERIES)
    alive = tl.load(until_at + row) > row
    at_row = row
    if WINDOW > 0:
        at_row = tl.load(position_at + row)
    q = rows(q_ptr + q_at, row, alive, HEADS * WIDTH, WIDTH, W, True)
    peak = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, W], tl.float32)
    full = tl.load(full_ptr + b * n_blocks + i)
    number = tl.load(number_ptr + b * n_blocks + i)
    list_at = block_ptr + (b * n_blocks + i).to(tl.int64) * m_blocks
    for c in range(full):
        peak, total, acc = _forward_step(
            q, k_ptr + kv_at, v_ptr + kv_at, until_at, position_at, row, at_row, tl.load(list_at + c), peak, total, acc,
            KV_HEADS * WIDTH, WIDTH, W, KEYS, SCALE, CAP, WINDOW, PRECISION, False,
        )  # fmt: skip
    for c in range(full, number):
        peak, total, acc = _forward_step(
            q, k_ptr + kv_at, v_ptr + kv_at, until_at, position_at, row, at_row, tl.load(list_at + c), peak, total, acc,
            KV_HEADS * WIDTH, WIDTH, W, KEYS, SCALE, CAP, WINDOW, PRECISION, True,
        )  # fmt: skip
    out = tl.where(alive[:, None], acc / tl.where(alive, total, 1.0)[:, None], 0.0)
    lse = tl.where(alive, (peak + tl.log2(tl.where(alive, total, 1.0))) * 0.6931471805599453, float("-inf"))
    store_rows(out_ptr + q_at, row, out, HEADS * WIDTH, TOKENS, WIDTH, W)
    tl.store(lse_ptr + (first * HEADS + n * TOKENS) + row, lse, mask=row < TOKENS)
