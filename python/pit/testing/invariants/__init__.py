"""Invariants of reward models: exact ones, behavioural ones after CheckList, and learned ones."""

from pit.testing.invariants.base import Case, Exact, Finding, Invariant, Material, Statistical
from pit.testing.invariants.rows import ROW_INVARIANTS
from pit.testing.invariants.text import TEXT_INVARIANTS

EXACT: tuple[Exact, ...] = (*TEXT_INVARIANTS, *ROW_INVARIANTS)
"""Violations of these are bugs."""

__all__ = ["EXACT", "Case", "Exact", "Finding", "Invariant", "Material", "Statistical"]
