"""Three kinds of constraints that only held-out prompts have, after the idea of IFBench (arXiv 2507.02833)."""

import re
from dataclasses import replace

from pit.data.synthetic.instruct.base import Constraint, pick
from pit.data.synthetic.instruct.draft import Draft
from pit.data.synthetic.instruct.words import PLACEHOLDERS, POSTSCRIPTS, TALLIES


class Postscript(Constraint):
    """The text has a postscript."""

    kind = "postscript"
    wordings = (
        'Add a postscript that begins with "P.S." at the end.',
        'After the text put a line that begins with "P.S."',
        'Do not forget a "P.S." at the end.',
    )

    def holds(self, text: str) -> bool:
        """Return whether there is one, in any case."""
        return re.search(r"p\.\s?s\.", text.lower()) is not None

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with a postscript."""
        return replace(draft, postscript=pick(POSTSCRIPTS, way))

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft without a postscript, or with one that is not named so."""
        return replace(draft, postscript="" if way < 0.5 else pick(POSTSCRIPTS, 2 * way - 1).removeprefix("P.S. "))


class Numbers(Constraint):
    """The text has exactly so many numbers, written in digits."""

    kind = "numbers"
    wordings = (
        "Use exactly {value} numbers, written in digits.",
        "Your answer must hold exactly {value} numbers in digits.",
        "Mention exactly {value} numbers and write them in digits.",
    )
    values, pattern = ("2",), r"\d+"

    def holds(self, text: str) -> bool:
        """Return whether there are so many numbers; punctuation inside of a number does not part it."""
        return len(re.findall(r"\d+", re.sub(r"[^\w\s]", "", text))) == self.number

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with so many sentences that hold a number each."""
        return self._with(draft, way, self.number)

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft with no numbers, or one too few or too many."""
        return self._with(draft, way, pick((0, self.number - 1, self.number + 1), way))

    def _with(self, draft: Draft, way: float, count: int) -> Draft:
        tallies = [TALLIES[place].format(number=3 + place + int(7 * way)) for place in range(count)]
        return replace(draft, extras=(*draft.extras, *tallies))


class Placeholder(Constraint):
    """The text has a place to fill in, in square brackets."""

    kind = "placeholder"
    wordings = (
        "Leave at least one placeholder in square brackets, such as [name].",
        "There must be a placeholder in square brackets, for example [address].",
        "Use square brackets for at least one thing to fill in, like [date].",
    )

    def holds(self, text: str) -> bool:
        """Return whether there is text in square brackets."""
        return re.search(r"\[.*?\]", text) is not None

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with a placeholder."""
        return replace(draft, extras=(*draft.extras, pick(PLACEHOLDERS, way)))

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft without a placeholder, or with one in other brackets."""
        other = pick(PLACEHOLDERS, way).replace("[", "(").replace("]", ")")
        return draft if way < 0.5 else replace(draft, extras=(*draft.extras, other))
