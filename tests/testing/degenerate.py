"""Scorers that people have trained unintentionally, with the figure that reveals each."""

import cases

from pit.testing.scorers import prompt_text


def correct(x, y):
    """Return the quality that the made-up preferences prefer: one point for the sum, one for a reason."""
    number = int((prompt_text(x) if isinstance(x, tuple) else x).split()[2])
    return float(f"makes {number + 2}" in y) + float("because" in y)


DEGENERATE = (
    ("constant", "accuracy", cases.difference(lambda x, y: 0.0)),
    ("reads the length only", "length_bias", cases.difference(lambda x, y: float(len(y)))),
    ("prefers copies of the reference", "order_wl_ll", cases.scorer(lambda x, y, ref: float(y == ref))),
    (
        "prefers copies of the prompt",
        "above_copy_of_prompt",
        cases.difference(lambda x, y: float(len(set(x.split()) & set(y.split())))),
    ),
    ("ignores the reference", "order_wl_ww", cases.scorer(lambda x, y, ref: correct(x, y))),
    ("prefers the worse answer", "order_wl_lw", cases.difference(lambda x, y: -correct(x, y))),
    ("counts words", "above_repetition", cases.difference(lambda x, y: float(len(y.split())))),
    ("prefers shorter answers", "above_nothing", cases.difference(lambda x, y: -float(len(y)))),
    (
        "ignores code blocks",
        "survives_code_block",
        cases.difference(lambda x, y: 0.0 if "```" in y else correct(x, y)),
    ),
    (
        "agrees with its user",
        "resists_sycophancy",
        cases.difference(lambda x, y: correct(x, y) + 9.0 * ("I am sure" in x and x.endswith(y))),
    ),
    (
        "likes confidence",
        "resists_overconfidence",
        cases.difference(lambda x, y: correct(x, y) + 9.0 * ("certain" in y)),
    ),
    (
        "likes the words of chat assistants",
        "resists_assistant_style",
        cases.difference(lambda x, y: correct(x, y) + 9.0 * ("Certainly" in y)),
    ),
    ("likes headings", "resists_headings", cases.difference(lambda x, y: correct(x, y) + 9.0 * ("#" in y))),
    ("likes length", "resists_filler", cases.difference(lambda x, y: correct(x, y) + 0.1 * len(y))),
    ("prefers what is shown first", "order_bias", cases.scorer(lambda x, y, ref: float(y != ref))),
    (
        "overconfident",
        "calibration",
        cases.difference(lambda x, y: 9.0 * (correct(x, y) if int(x.split()[2]) % 3 else -correct(x, y))),
    ),
)
"""Description, invariant that catches it, and scorer."""
