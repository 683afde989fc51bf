"""Short tables for readers, made from the figures per seed alone: docs/studies/evidence.md and the README."""

from collections.abc import Mapping

from _evidence.markdown import interval, table
from _evidence.per_seed import BEST_OVER_FIRST, Figures, values
from _evidence.variants import MAIN
from pit.evaluate.across import across_seeds

ROWS: dict[str, str] = {
    "one plain pass": "one plain pass over y0",
    "one pass, accepted": "one accepted pass over y0",
    "5 passes, accepted": "five accepted passes over y0",
    "one pass over best of 2 by R_P": "one accepted pass over best of 2",
    "5 passes over best of 6 by R_P": "five accepted passes over best of 6",
    "5 passes over resampling": "five accepted passes over five draws accepted by the same rule",
    "more RLHF over y0": "more RLHF over y0",
    "one pass over more RLHF": "one accepted pass over more RLHF",
    "5 passes over the fine-tuned improver's": "five accepted passes over the same before RL",
    "own reference over another prompt's": "plain pass, own reference over another prompt's",
    BEST_OVER_FIRST: "five accepted passes over y0, both at temperature .2",
}
"""Rows of a family's table: name of the comparison, words for it."""

README: dict[tuple[str, str], str] = {
    ("describe", "one pass, accepted"): "`describe`: one accepted pass over one answer",
    ("describe", "one pass over best of 2 by R_P"): "`describe`: one accepted pass over best of two",
    ("describe", "5 passes over best of 6 by R_P"): "`describe`: five accepted passes over best of six",
    ("relay", "5 passes over best of 6 by R_P"): "`relay`: five accepted passes over best of six",
}
"""Rows of the README's table: family and comparison, words for it."""


def tables(by_family: Mapping[str, Figures]) -> dict[str, str]:
    """Return every table by the name of its place in a page."""
    texts = {"evidence readme": readme(by_family)}
    for family, figures in by_family.items():
        texts[f"evidence {family}"] = comparisons(family, figures)
    return texts


def readme(by_family: Mapping[str, Figures]) -> str:
    """Return the README's table of results."""
    rows = [_row(words, by_family[family], MAIN[family], name) for (family, name), words in README.items()]
    return table(["comparison", "points [95 % interval]", "seeds above 0"], rows)


def comparisons(family: str, figures: Figures) -> str:
    """Return win rate minus lose rate of a family's main comparisons, over seeds."""
    main = MAIN[family]
    rows = [_row(words, figures, main, name) for name, words in ROWS.items() if values(figures, main, name)]
    return table(["comparison", "points [95 % interval]", "seeds above 0"], rows)


def _row(words: str, figures: Figures, main: str, name: str) -> list[str]:
    over = across_seeds(values(figures, main, name))
    return [words, interval(over._asdict()), f"{over.above} of {over.seeds}"]
