"""Bodies of the backward GPU kernels of three-way attention, in Triton's language: dQ, and dK with dV.

Each gradient is written by one program, so that nothing is added up by atomics and every run gives the same bits.
Letters and lists are those of `kernels_gpu`.
"""

import triton.language as tl

from pit_kernels.three_way_attention.kernels_gpu import seen_pairs
from pit_kernels.triton_call import jit
from pit_kernels.triton_parts import capped, rows, store_rows


@jit
def _query_gradient_step(
    q: tl.tensor,
    d_out: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    until_at: tl.tensor,
    position_at: tl.tensor,
    row: tl.tensor,
    at_row: tl.tensor,
    block: tl.tensor,
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
) -> tl.tensor:
    """Return the running gradient of the queries, still without the scale, after one tile of keys."""
    key = block * KEYS + tl.arange(0, KEYS)
    until = key
    if MASKED:
        until = tl.load(until_at + key)
    k = rows(k_at, key, until > key, KEY_STRIDE, WIDTH, W, MASKED)
    v = rows(v_at, key, until > key, KEY_STRIDE, WIDTH, W, MASKED)
    logits, slope = capped(tl.dot(q, tl.trans(k), input_precision=PRECISION), SCALE, CAP)
    p = tl.exp2(logits - lse[:, None])
    if MASKED:
        at_key = key
        if WINDOW > 0:
            at_key = tl.load(position_at + key)
        seen = seen_pairs(row[:, None], key[None, :], until[None, :], at_row[:, None], at_key[None, :], WINDOW)
        p = tl.where(seen, p, 0.0)
    d_logits = p * (tl.dot(d_out, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    if CAP != 0.0:
        d_logits = d_logits * slope
    return tl.dot(d_logits.to(k.dtype), k, acc, input_precision=PRECISION)


@jit
def query_gradient_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    d_out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    until_ptr: tl.tensor,
    position_ptr: tl.tensor,
    block_ptr: tl.tensor,
    full_ptr: tl.tensor,
    number_ptr: tl.tensor,
    d_q_ptr: tl.tensor,
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
    """Write the gradient of one tile of queries of one head; programs as those of `forward_kernel`."""
    n_blocks: tl.constexpr = PADDED // QUERIES
    m_blocks: tl.constexpr = PADDED // KEYS
    i = n_blocks - 1 - tl.program_id(0)
    b = tl.program_id(1) // HEADS
    n = tl.program_id(1) % HEADS
    first = b.to(tl.int64) * TOKENS
    kv_at = first * (KV_HEADS * WIDTH) + n // (HEADS // KV_HEADS) * WIDTH
    q_at = first * (HEADS * WIDTH) + n * WIDTH
    statistics_at = first * HEADS + n * TOKENS
    until_at = until_ptr + b * PADDED
    position_at = position_ptr + b * PADDED

    row = i * QUERIES + tl.arange(0, QUERIES)
    alive = tl.load(until_at + row) > row
    at_row = row
    if WINDOW > 0:
        at_row = tl.load(position_at + row)
    q = rows(q_ptr + q_at, row, alive, HEADS * WIDTH, WIDTH, W, True)
    d_out = rows(d_out_ptr + q_at, row, alive, HEADS * WIDTH, WIDTH, W, True)
    lse = tl.load(lse_ptr + statistics_at + row, mask=alive, other=0.0) * 1.4426950408889634
    delta = tl.load(delta_ptr + statistics_at + row, mask=alive, other=0.0)
    acc = tl.zeros([QUERIES, W], tl.float32)
    full = tl.load(full_ptr + b * n_blocks + i)
    number = tl.load(number_ptr + b * n_blocks + i)
    list_at = block_ptr + (b * n_blocks + i).to(tl.int64) * m_blocks
    for c in range(full):
        acc = _query_gradient_step(
            q, d_out, lse, delta, k_ptr + kv_at, v_ptr + kv_at, until_at, position_at, row, at_row,
            tl.load(list_at + c), acc, KV_HEADS * WIDTH, WIDTH, W, KEYS, SCALE, CAP, WINDOW, PRECISION, False,
        )  # fmt: skip
    for c in range(full, number):
        acc = _query_gradient_step(
            q, d_out, lse, delta, k_ptr + kv_at, v_ptr + kv_at, until_at, position_at, row, at_row,
            tl.load(list_at + c), acc, KV_HEADS * WIDTH, WIDTH, W, KEYS, SCALE, CAP, WINDOW, PRECISION, True,
        )  # fmt: skip
    d_q = tl.where(alive[:, None], acc * SCALE, 0.0)
    store_rows(d_q_ptr + q_at, row, d_q, HEADS * WIDTH, TOKENS, WIDTH, W)


@jit
def _key_gradient_step(
    k: tl.tensor,
    v: tl.tensor,
    until: tl.tensor,
    q_at: tl.tensor,
    d_out_at: tl.tensor,
    lse_at: tl.tensor,
    delta_at: tl.tensor,
    until_at: tl.tensor,
    position_at: tl.tensor,
    key: tl.tensor,
    at_key: tl.tensor,
    block: tl.tensor,
    d_k: tl.tensor,
    d_v: tl.tensor,
    QUERY_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
    QUERIES: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tuple:
    """Return the running gradients of keys, still without the scale, and of values after one tile of queries."""
    row = block * QUERIES + tl.arange(0, QUERIES)
    alive = row >= 0
    if MASKED:
        alive = tl.load(until_at + row) > row
    q = rows(q_at, row, alive, QUERY_STRIDE, WIDTH, W, MASKED)
    d_out = rows(d_out_at, row, alive, QUERY_STRIDE, WIDTH, W, MASKED)
    lse = tl.load(lse_at + row, mask=alive, other=0.0) * 1.4426950408889634
    delta = tl.load(delta_at + row, mask=alive, other=0.0)
    logits, slope = capped(tl.dot(k, tl.trans(q), input_precision=PRECISION), SCALE, CAP)
    p = tl.exp2(logits - lse[None, :])
    if MASKED:
        at_row = row
        if WINDOW > 0:
            at_row = tl.load(position_at + row)
        seen = seen_pairs(row[None, :], key[:, None], until[:, None], at_row[None, :], at_key[:, None], WINDOW)
        p = tl.where(seen & alive[None, :], p, 0.0)
    d_v = tl.dot(p.to(d_out.dtype), d_out, d_v, input_precision=PRECISION)
    d_logits = p * (tl.dot(v, tl.trans(d_out), input_precision=PRECISION) - delta[None, :])
    if CAP != 0.0:
        d_logits = d_logits * slope
    return tl.dot(d_logits.to(q.dtype), q, d_k, input_precision=PRECISION), d_v


@jit
def key_gradient_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    d_out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    until_ptr: tl.tensor,
    position_ptr: tl.tensor,
    block_ptr: tl.tensor,
    full_ptr: tl.tensor,
    number_ptr: tl.tensor,
    d_k_ptr: tl.tensor,
    d_v_ptr: tl.tensor,
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
    """Write the gradients of one tile of keys and values of one key/value head, over all heads of its group.

    Programs: tiles of keys, the first first because most queries see them, and rows times key/value heads.
    """
    n_blocks: tl.constexpr = PADDED // QUERIES
    m_blocks: tl.constexpr = PADDED // KEYS
    group: tl.constexpr = HEADS // KV_HEADS
    j = tl.program_id(0)
    b = tl.program_id(1) // KV_HEADS
    kv = tl.program_id(1) % KV_HEADS
    first = b.to(tl.int64) * TOKENS
    kv_at = first * (KV_HEADS * WIDTH) + kv * WIDTH
    until_at = until_ptr + b * PADDED
    position_at = position_ptr + b * PADDED

    key = j * KEYS + tl.arange(0, KEYS)
    until = tl.load(until_at + key)
    at_key = key
    if WINDOW > 0:
        at_key = tl.load(position_at + key)
    k = rows(k_ptr + kv_at, key, until > key, KV_HEADS * WIDTH, WIDTH, W, True)
    v = rows(v_ptr + kv_at, key, until > key, KV_HEADS * WIDTH, WIDTH, W, True)
    d_k = tl.zeros([KEYS, W], tl.float32)
    d_v = tl.zeros([KEYS, W], tl.float32)
    full = tl.load(full_ptr + b * m_blocks + j)
    number = tl.load(number_ptr + b * m_blocks + j)
    list_at = block_ptr + (b * m_blocks + j).to(tl.int64) * n_blocks
    for r in range(group):
        n = kv * group + r
        q_at = first * (HEADS * WIDTH) + n * WIDTH
        statistics_at = first * HEADS + n * TOKENS
        for c in range(full):
            d_k, d_v = _key_gradient_step(
                k, v, until, q_ptr + q_at, d_out_ptr + q_at, lse_ptr + statistics_at, delta_ptr + statistics_at,
                until_at, position_at, key, at_key, tl.load(list_at + c), d_k, d_v,
                HEADS * WIDTH, WIDTH, W, QUERIES, SCALE, CAP, WINDOW, PRECISION, False,
            )  # fmt: skip
        for c in range(full, number):
            d_k, d_v = _key_gradient_step(
                k, v, until, q_ptr + q_at, d_out_ptr + q_at, lse_ptr + statistics_at, delta_ptr + statistics_at,
                until_at, position_at, key, at_key, tl.load(list_at + c), d_k, d_v,
                HEADS * WIDTH, WIDTH, W, QUERIES, SCALE, CAP, WINDOW, PRECISION, True,
            )  # fmt: skip
    store_rows(d_k_ptr + kv_at, key, d_k * SCALE, KV_HEADS * WIDTH, TOKENS, WIDTH, W)
    store_rows(d_v_ptr + kv_at, key, d_v, KV_HEADS * WIDTH, TOKENS, WIDTH, W)
