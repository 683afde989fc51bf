"""Scorers that people have trained without meaning to, with the figure in which each shows."""

import cases

from pit.testing.scorers import text_of


def right(x, y):
    """What the made-up preferences prefer: the sum, and a reason."""
    number = int(text_of(x).split()[2]) if isinstance(x, tuple) else int(x.split()[2])
    return float(f"makes {number + 2}" in y) + float("because" in y)


DEGENERATE = (
    ("constant", "accuracy", cases.difference(lambda x, y: 0.0)),
    ("length only", "length_bias", cases.difference(lambda x, y: float(len(y)))),
    ("copier's friend: loves its reference", "order_wl_ll", cases.scorer(lambda x, y, ref: float(y == ref))),
    (
        "copier's friend: loves the prompt",
        "above_copy_of_prompt",
        cases.difference(lambda x, y: float(len(set(x.split()) & set(y.split())))),
    ),
    ("does not read its reference", "order_wl_ww", cases.scorer(lambda x, y, ref: right(x, y))),
    ("prefers the worse", "order_wl_lw", cases.difference(lambda x, y: -right(x, y))),
    ("counts words", "above_repetition", cases.difference(lambda x, y: float(len(y.split())))),
    ("the shorter the better", "above_nothing", cases.difference(lambda x, y: -float(len(y)))),
    (
        "blind in code blocks",
        "survives_code_block",
        cases.difference(lambda x, y: 0.0 if "```" in y else right(x, y)),
    ),
    (
        "sure of everything",
        "calibration",
        cases.difference(lambda x, y: 9.0 * (right(x, y) if int(x.split()[2]) % 3 else -right(x, y))),
    ),
)
"""What it is, the figure, and the scorer."""
