"""Report of a reader: rows read, kept and dropped by reason, and files that were passed over."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

KEPT_PLACES = 5
"""Number of places reported per reason."""

_DETAIL = 160
"""Longest part of a detail that is printed, in characters."""


class Reason(StrEnum):
    """Reason to drop a row."""

    JSON = "bad JSON"
    UTF8 = "bad UTF-8"
    OBJECT = "not an object"
    DOUBLED = "doubled key"
    FIELDS = "wrong number of fields"
    MISSING = "missing column"
    TYPE = "wrong type"
    ENCODED = "messages as text"
    ROLE = "unsupported role"
    PARTS = "content that is not text"
    TRANSCRIPT = "bad transcript"
    NO_ANSWER = "no answer at the end"
    PROMPTS = "prompts differ"
    SEVERAL = "several turns differ"
    REPEATED = "prompt repeated in the answers"
    TIED = "no two scores differ"
    EQUAL = "equal answers"
    EMPTY_ANSWER = "empty answer"
    EMPTY_PROMPT = "empty prompt"
    NO_PROMPT = "no prompt"
    HELD_OUT = "prompt of the evaluation split"
    EQUAL_TOKENS = "answers with equal tokens"
    EQUAL_CUT = "answers equal in the window"
    NO_TOKENS = "answer without tokens"
    NO_PROMPT_TOKENS = "prompt without tokens"
    FORMAT = "conversation that the chat format refuses"


class RowError(ValueError):
    """A row cannot be used; the message gives the reason and a detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass
class ReadReport:
    """Report of a reader; complete once its iterator is exhausted.

    files: the files read, each with its format.
    passed_over: files that look like data but are not read, each with the cause.
    rows: number of rows read, without blank lines and rows of other splits.
    kept: number of usable rows.
    pairs: number of preferences yielded; a row of scored answers gives several.
    other_splits: number of rows that belong to another split, by the value of their column.
    dropped: number of dropped rows, by reason.
    places: the first few ``file:line`` of each reason; files are relative to the folder that was read.
    details: what was wrong with the first row of each reason.
    marked: number of preferences whose text holds a marker of some chat format, by marker.
    """

    files: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    kept: int = 0
    pairs: int = 0
    other_splits: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    marked: Counter[str] = field(default_factory=Counter)

    @property
    def other_split(self) -> int:
        """Number of rows that belong to another split."""
        return self.other_splits.total()

    def drop(self, error: RowError, place: str) -> None:
        """Count a dropped row."""
        reason = error.reason.value
        self.dropped[reason] += 1
        self.details.setdefault(reason, error.detail)
        places = self.places.setdefault(reason, [])
        if len(places) < KEPT_PLACES:
            places.append(place)

    def losses(self) -> list[str]:
        """Return a line for each cause of rows that were read but not kept."""
        lines = []
        for reason, count in self.dropped.most_common():
            where = f" ({self.places[reason][0]})" if self.places.get(reason) else ""
            lines.append(f"dropped {count:,}: {reason}; {_shortened(self.details[reason])}{where}")
        if self.other_splits:
            named = ", ".join(f"{value!r} {count:,}" for value, count in self.other_splits.most_common(KEPT_PLACES))
            lines.append(f"of another split {self.other_split:,}: column 'split' says {named}")
        return lines

    def notes(self) -> list[str]:
        """Return a line for each thing that a reader of the data should know, beyond the losses."""
        lines = [f"passed over {name}: {cause}" for name, cause in self.passed_over.items()]
        for marker, count in sorted(self.marked.items(), key=lambda item: (-item[1], item[0])):
            lines.append(
                f"note: pairs that hold {marker!r}, a marker of chat formats, as plain text: {count:,}; give such "
                "texts as lists of messages without it"
            )
        lacking = self.dropped[Reason.NO_PROMPT.value]
        if lacking > self.kept > 0:
            lines.append(
                f"note: in {lacking:,} rows the answers do not begin alike, so they may not include their prompts: "
                f"what stands as the prompt of the {self.kept:,} kept rows may be the beginning of their answers"
            )
        return lines


def _shortened(text: str) -> str:
    return text if len(text) <= _DETAIL else f"{text[: _DETAIL - 1]}…"
