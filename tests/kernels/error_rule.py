"""The one rule by which a low-precision result is judged, and the random context trees it is judged on."""

import numpy as np
from hypothesis import strategies as st


def assert_within_rule(actual, naive, truth, *, factor, name):
    """Asserts that the error against float64 is at most `factor` times that of the naive formula.

    The naive formula runs in the dtype under test. The floor, 16 float32 units of the largest magnitude, is for results
    that the naive formula gets exactly: a query that sees only itself has dp - sum_s p dp = 0, which a blockwise
    backward forms as the difference of two sums in different orders.
    """
    truth = np.asarray(truth)
    assert truth.dtype == np.float64, f"the truth of {name} must be float64, not {truth.dtype}"
    assert np.isfinite(truth).all(), f"the truth of {name} must be finite"
    floor = 16 * float(np.finfo(np.float32).eps) * max(1.0, np.abs(truth).max(initial=0.0))
    naive_error = np.abs(np.asarray(naive, np.float64) - truth).max(initial=0.0)
    error = np.abs(np.asarray(actual, np.float64) - truth).max(initial=0.0)
    assert error <= factor * naive_error + floor, (
        f"{name}: error {error:.3g} against float64, naive formula {naive_error:.3g}, x {factor} + {floor:.3g}"
    )


LENGTHS = (1, 1, 2, 3, 17, 60, 127, 128, 129)
"""Lengths of segments: one token, and about a block."""


def write_segments(tokens, segments):
    """`visible_until` [T] of segments (depth, length, is_padding) written one after another, cut off at T tokens.

    A segment's subtree ends where the next segment of the same or a smaller depth starts. Padding belongs to no tree
    and ends none: it may stand inside one, as in the classic layout of fixed slots.
    """
    until = np.zeros(tokens, np.int32)
    open_segments = []
    position = 0

    def close(depth):
        while open_segments and open_segments[-1][0] >= depth:
            _, start, end = open_segments.pop()
            until[start:end] = position

    for depth, length, is_padding in segments:
        end = min(position + length, tokens)
        if not is_padding:
            close(depth)
            open_segments.append((depth, position, end))
        position = end
    close(0)
    return until


@st.composite
def tree_rows(draw, batch, tokens):
    """`visible_until` [B, T] of random forests: deep and wide, any of LENGTHS, with padding anywhere."""
    rows = []
    for _ in range(batch):
        depth, room, segments = -1, draw(st.sampled_from((tokens, tokens, tokens - 1, tokens // 2, 0))), []
        while room > 0 and len(segments) < 40:
            is_padding = draw(st.integers(0, 9)) == 0
            length = min(draw(st.sampled_from(LENGTHS)), room)
            if not is_padding:
                depth = draw(st.integers(0, depth + 1))
            segments.append((depth, length, is_padding))
            room -= length
        rows.append(write_segments(tokens, segments))
    return np.stack(rows)
