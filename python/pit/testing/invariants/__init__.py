"""Invariants of scorers: exact ones, behavioural ones after CheckList, and learned ones.

`ALL` is the list that `pit check` and the pytest plugin run.
"""

from pit.testing.invariants.base import Case, Direct, Exact, Invariant, Material, Measurement, Statistical
from pit.testing.invariants.behavioural import BEHAVIOURAL
from pit.testing.invariants.biases import BIASES
from pit.testing.invariants.choices import CHOICES
from pit.testing.invariants.draws import DRAW_INVARIANTS
from pit.testing.invariants.learned import LEARNED
from pit.testing.invariants.rows import ROW_INVARIANTS
from pit.testing.invariants.sampler import SAMPLER
from pit.testing.invariants.served import SERVED_INVARIANTS
from pit.testing.invariants.text import TEXT_INVARIANTS

EXACT: tuple[Exact, ...] = (*TEXT_INVARIANTS, *SERVED_INVARIANTS, *ROW_INVARIANTS, *DRAW_INVARIANTS)
"""Invariants whose violation is a bug."""

ALL: tuple[Invariant, ...] = (*EXACT, *BEHAVIOURAL, *BIASES, *LEARNED, *CHOICES, *SAMPLER)
"""All invariants; names are unique."""

__all__ = [
    "ALL",
    "BEHAVIOURAL",
    "BIASES",
    "CHOICES",
    "EXACT",
    "LEARNED",
    "SAMPLER",
    "Case",
    "Direct",
    "Exact",
    "Invariant",
    "Material",
    "Measurement",
    "Statistical",
]
