"""A survey of preferences before training: rows by fold, repeats, and what is odd about them, said in lines."""

import hashlib
import json
import math
from collections import Counter

from pit.data.folds import Folds, opening
from pit.types import FOLDS, Preference

_SHOWN = 40
"""Most characters of an opening that are shown."""


class Survey:
    """Counts of a preference set.

    Attributes:
        rows: preferences by fold.
        repeated_prompts: preferences whose prompt occurs in an earlier one.
        repeated_pairs: preferences that equal an earlier one.
    """

    def __init__(self, folds: Folds) -> None:
        self._folds = folds
        self.rows = Counter(dict.fromkeys(FOLDS, 0))
        self.repeated_prompts = self.repeated_pairs = 0
        self._prompts: set[bytes] = set()
        self._pairs: set[bytes] = set()
        self._openings: Counter[bytes] = Counter()
        self._shown: dict[bytes, str] = {}

    def add(self, row: Preference) -> None:
        """Count a preference."""
        self.rows[self._folds.of(row.prompt)] += 1
        self.repeated_prompts += not _added(self._prompts, row.prompt)
        self.repeated_pairs += not _added(self._pairs, row[:3])
        text = opening(row.prompt)
        self._openings[_digest(text)] += 1
        if self._openings[_digest(text)] == 2:
            self._shown[_digest(text)] = text[:_SHOWN]

    def notes(self) -> list[str]:
        """Return a line for each thing that a user of the data should know."""
        lines = []
        if self.repeated_pairs:
            lines.append(f"note: pairs that repeat an earlier one, prompt and both answers: {self.repeated_pairs:,}")
        return lines + self._lopsided()

    def _lopsided(self) -> list[str]:
        """Return a line about the fold that is farthest from its share, by half of it and four standard deviations."""
        total = self.rows.total()
        if not total:
            return []
        far = [
            (apart, name)
            for name, share in self._folds.fractions.items()
            if (apart := abs(self.rows[name] / total - share))
            > max(share / 2, 4 * math.sqrt(share * (1 - share) / total))
        ]
        if not far:
            return []
        name = max(far)[1]
        key, count = self._openings.most_common(1)[0]
        cause = f": {count:,} of {total:,} conversations open with {self._shown[key]!r}" if count > 1 else ""
        remedy = (
            "; set data.fold_by=prompt to fold by the whole prompt" if cause and self._folds.by == "opening" else ""
        )
        share, held = self._folds.fractions[name], self.rows[name] / total
        return [f"note: fold {name} holds {held:.0%} of the pairs, its share is {share:.0%}{cause}{remedy}"]


def _digest(content: object) -> bytes:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()


def _added(known: set[bytes], content: object) -> bool:
    """Add some content and return whether it is new."""
    before = len(known)
    known.add(_digest(content))
    return len(known) > before
