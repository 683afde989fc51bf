"""Invariants of reward models: exact ones, behavioural ones after CheckList, and learned ones."""

from pit.testing.invariants.base import Case, Exact, Finding, Invariant, Material, Statistical
from pit.testing.invariants.behavioural import BEHAVIOURAL
from pit.testing.invariants.draws import DRAW_INVARIANTS
from pit.testing.invariants.learned import LEARNED
from pit.testing.invariants.rows import ROW_INVARIANTS
from pit.testing.invariants.text import TEXT_INVARIANTS

EXACT: tuple[Exact, ...] = (*TEXT_INVARIANTS, *ROW_INVARIANTS, *DRAW_INVARIANTS)
"""Violations of these are bugs."""

ALL: tuple[Invariant, ...] = (*EXACT, *BEHAVIOURAL, *LEARNED)
"""All of them; names are unique."""

__all__ = ["ALL", "BEHAVIOURAL", "EXACT", "LEARNED", "Case", "Exact", "Finding", "Invariant", "Material", "Statistical"]
