"""The kinds of constraints of the family "instruct": which are trained, which conflict, and which are held out.

Each edit of a draft leaves the other constraints of a prompt as they are. Kinds for which that is impossible conflict,
and no prompt asks for both.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pit.data.synthetic.instruct.base import Constraint
from pit.data.synthetic.instruct.trained import (
    AtMost,
    Bullets,
    Closing,
    Include,
    LowerCase,
    NoCommas,
    Opening,
    Question,
    Quotes,
    Title,
)
from pit.data.synthetic.instruct.unseen import Numbers, Placeholder, Postscript

KINDS: Mapping[str, type[Constraint]] = MappingProxyType(
    {
        each.kind: each
        for each in (
            *(Include, NoCommas, Title, AtMost, Question, Opening, Closing, Quotes, LowerCase, Bullets),
            *(Postscript, Numbers, Placeholder),
        )
    }
)
"""All kinds by name."""

UNSEEN_KINDS = ("postscript", "numbers", "placeholder")
"""Kinds that only prompts of the eval fold have."""

TRAINED_KINDS = tuple(kind for kind in KINDS if kind not in UNSEEN_KINDS)
"""Kinds of all other prompts."""

CONFLICTS = frozenset(
    map(
        frozenset,
        (
            ("title", "opening"),  # both come first
            ("question", "closing"),  # three kinds come last
            ("question", "postscript"),
            ("closing", "postscript"),
        ),
    )
)
"""Pairs of kinds that no text, or no order of edits, can hold together."""

UNSEEN_PAIRS = frozenset(
    map(frozenset, (("title", "commas"), ("include", "question"), ("lower case", "closing"), ("quotes", "at most")))
)
"""Pairs of trained kinds that only prompts of the eval fold have together."""
