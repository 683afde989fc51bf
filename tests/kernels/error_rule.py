"""The random context trees that attention is judged on; the rule and the fixed cases are `pit_kernels.conformance`."""

import numpy as np
from hypothesis import strategies as st

from pit_kernels.conformance import LENGTHS, assert_within_rule, write_segments

__all__ = ["assert_within_rule", "tree_rows", "write_segments"]


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
