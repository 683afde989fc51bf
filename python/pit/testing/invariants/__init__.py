"""Invariants of scorers: exact ones, behavioural ones after CheckList, and learned ones.

`ALL` is the list that `pit check` and the pytest plugin run.
"""

from pit.testing.invariants.base import Case, Exact, Invariant, Material, Measurement, Statistical
from pit.testing.invariants.behavioural import BEHAVIOURAL
from pit.testing.invariants.draws import DRAW_INVARIANTS
from pit.testing.invariants.learned import LEARNED
from pit.testing.invariants.rows import ROW_INVARIANTS
from pit.testing.invariants.text import TEXT_INVARIANTS

EXACT: tuple[Exact, ...] = (*TEXT_INVARIANTS, *ROW_INVARIANTS, *DRAW_INVARIANTS)
"""Invariants whose violation is a bug."""

ALL: tuple[Invariant, ...] = (*EXACT, *BEHAVIOURAL, *LEARNED)
"""All invariants; names are unique."""

__all__ = [
    "ALL",
    "BEHAVIOURAL",
    "EXACT",
    "LEARNED",
    "Case",
    "Exact",
    "Invariant",
    "Material",
    "Measurement",
    "Statistical",
]
