"""Bodies of the GPU kernels of token log-probabilities, in Triton's language.

Letters: M rows and V words of a tile of logits, D a slice of the width. A tile of logits is a matrix product whose
result never leaves its program: statistics do, or the gradient of the logits.
"""

import triton.language as tl

from pit_kernels.triton_call import jit
from pit_kernels.triton_parts import tanh


@jit
def _products(
    hidden_ptr: tl.tensor,
    table_ptr: tl.tensor,
    row: tl.tensor,
    word: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    VOCABULARY: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Return hidden . table of a tile of rows and words; 0 outside. The table is [V, D], or [D, V] if TRANSPOSED."""
    acc = tl.zeros([M, V], tl.float32)
    held_row = (row < ROWS)[:, None]
    held_word = (word < VOCABULARY)[None, :]
    row_at = hidden_ptr + row.to(tl.int64)[:, None] * WIDTH
    wide_word = word.to(tl.int64)[None, :]
    for at in range(0, WIDTH, D):
        d = at + tl.arange(0, D)
        if WIDTH % D == 0:
            x = tl.load(row_at + d[None, :], mask=held_row, other=0.0)
        else:
            x = tl.load(row_at + d[None, :], mask=held_row & (d < WIDTH)[None, :], other=0.0)
        if TRANSPOSED:
            place = table_ptr + d.to(tl.int64)[:, None] * VOCABULARY + wide_word
        else:
            place = table_ptr + wide_word * WIDTH + d[:, None]
        if WIDTH % D == 0:
            w = tl.load(place, mask=held_word, other=0.0)
        else:
            w = tl.load(place, mask=held_word & (d < WIDTH)[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    return acc


@jit
def _logits(
    products: tl.tensor,
    bias_ptr: tl.tensor,
    word: tl.tensor,
    VOCABULARY: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
) -> tl.tuple:
    """Return the logits over the temperature, -inf beyond the vocabulary, and the slope of the cap, if there is one."""
    inside = word < VOCABULARY
    if BIAS:
        products = products + tl.load(bias_ptr + word, mask=inside, other=0.0).to(tl.float32)[None, :]
    if CAP == 0.0:
        logits, slope = products, products
    else:
        ratio = tanh(products * (1.0 / CAP))
        logits, slope = ratio * CAP, 1.0 - ratio * ratio
    return tl.where(inside[None, :], logits * (1.0 / TEMPERATURE), float("-inf")), slope


@jit
def _floored(shift: tl.tensor) -> tl.tensor:
    """Return a shifted logit, no lower than where exp is 0: see `settings.floor_shift`."""
    return tl.where(shift < -1e4, -1e4, shift)


@jit
def forward_kernel(
    hidden_ptr: tl.tensor,
    table_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    target_ptr: tl.tensor,
    valid_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    weighted_ptr: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    VOCABULARY: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    PIECE: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the statistics of a tile of rows over a piece of the vocabulary; see `settings.Partials`.

    Programs: tiles of rows, which read the same words side by side, and pieces of PIECE words. A tile of rows of which
    none is valid computes nothing.
    """
    s = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    inside = row < ROWS
    target = tl.load(target_ptr + row, mask=inside, other=-1)
    live = tl.max(tl.load(valid_ptr + row, mask=inside, other=0), 0)
    peak = tl.full([M], -1e38, tl.float32)
    total = tl.zeros([M], tl.float32)
    chosen = tl.zeros([M], tl.float32)
    weighted = tl.zeros([M], tl.float32)
    last = tl.where(live > 0, tl.minimum((s + 1) * PIECE, VOCABULARY), 0)
    for first in range(s * PIECE, last, V):
        word = first + tl.arange(0, V)
        products = _products(
            hidden_ptr, table_ptr, row, word, ROWS, WIDTH, VOCABULARY, TRANSPOSED, M, V, D, PRECISION
        )  # fmt: skip
        logits, _ = _logits(products, bias_ptr, word, VOCABULARY, BIAS, CAP, TEMPERATURE)
        higher = tl.maximum(peak, tl.max(logits, 1))
        moved = _floored(peak - higher)
        fade = tl.exp2(moved * 1.4426950408889634)
        shift = logits - higher[:, None]
        e = tl.exp2(shift * 1.4426950408889634)
        weighted = fade * (weighted + total * moved) + tl.sum(e * _floored(shift), 1)
        total = total * fade + tl.sum(e, 1)
        chosen += tl.sum(tl.where(word[None, :] == target[:, None], logits, 0.0), 1)
        peak = higher
    at = s * ROWS + row
    tl.store(peak_ptr + at, peak, mask=inside)
    tl.store(total_ptr + at, total, mask=inside)
    tl.store(chosen_ptr + at, chosen, mask=inside)
    tl.store(weighted_ptr + at, weighted, mask=inside)


@jit
def logit_gradient_kernel(
    hidden_ptr: tl.tensor,
    table_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    target_ptr: tl.tensor,
    valid_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    d_logp_ptr: tl.tensor,
    d_lse_ptr: tl.tensor,
    d_entropy_ptr: tl.tensor,
    first_ptr: tl.tensor,
    d_logits_ptr: tl.tensor,
    d_bias_ptr: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    VOCABULARY: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    ENTROPY: tl.constexpr,
    WORDS: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the gradient of a tile of the logits of WORDS words from the first one on, and its sum over the rows.

    Programs: tiles of rows and tiles of words. A tile of rows of which none is valid writes zeros.
    """
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * V + tl.arange(0, V)
    inside = row < ROWS
    word = tl.load(first_ptr) + column
    valid = tl.load(valid_ptr + row, mask=inside, other=0) > 0
    d_logits = tl.zeros([M, V], tl.float32)
    if tl.max(valid.to(tl.int32), 0) > 0:
        products = _products(
            hidden_ptr, table_ptr, row, word, ROWS, WIDTH, VOCABULARY, TRANSPOSED, M, V, D, PRECISION
        )  # fmt: skip
        logits, slope = _logits(products, bias_ptr, word, VOCABULARY, BIAS, CAP, TEMPERATURE)
        target = tl.load(target_ptr + row, mask=inside, other=-1)
        lse = tl.load(lse_ptr + row, mask=valid, other=0.0)
        d_logp = tl.load(d_logp_ptr + row, mask=valid, other=0.0)
        d_lse = tl.load(d_lse_ptr + row, mask=valid, other=0.0)
        log_p = logits - lse[:, None]
        p = tl.exp2(log_p * 1.4426950408889634)
        d_logits = p * (d_lse - d_logp)[:, None]
        if ENTROPY:
            entropy = tl.load(entropy_ptr + row, mask=valid, other=0.0)
            d_entropy = tl.load(d_entropy_ptr + row, mask=valid, other=0.0)
            d_logits = d_logits - d_entropy[:, None] * p * (_floored(log_p) + entropy[:, None])
        d_logits = d_logits + tl.where(word[None, :] == target[:, None], d_logp[:, None], 0.0)
        if CAP != 0.0:
            d_logits = d_logits * slope
        d_logits = tl.where(valid[:, None], d_logits * (1.0 / TEMPERATURE), 0.0)
    held = column < WORDS
    place = d_logits_ptr + row.to(tl.int64)[:, None] * WORDS + column[None, :]
    tl.store(place, d_logits.to(d_logits_ptr.dtype.element_ty), mask=inside[:, None] & held[None, :])
    if BIAS:
        tl.store(d_bias_ptr + tl.program_id(0) * WORDS + column, tl.sum(d_logits, 0), mask=held)
