"""Drafts of the family "instruct": the parts of an answer, so that an edit of one constraint leaves others alone."""

import re
from dataclasses import dataclass, replace

from pit.data.synthetic.instruct.words import Topic

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Return the words of a text: runs of letters, digits and underscores.

    >>> words_of("I don't know, at 10.")
    ['I', 'don', 't', 'know', 'at', '10']
    """
    return _WORD.findall(text)


@dataclass(frozen=True)
class Draft:
    """Parts of an answer, in the order of its text.

    topic: the subject, whose words fill what an edit adds.
    sentences: sentences that an edit of the length may drop or add to, but for the first one.
    spare: further sentences, for a longer draft.
    mark: what stands before all, such as a quotation mark; title: a line of its own; opening: the first words.
    extras: sentences that constraints have asked for.
    points: lines of a list, without their bullets.
    last: a final sentence of its own.
    postscript: a line after everything else; end: what stands after that, such as a quotation mark.
    lower: whether all is written in lower case.
    """

    topic: Topic
    sentences: tuple[str, ...]
    spare: tuple[str, ...]
    mark: str = ""
    title: str = ""
    opening: str = ""
    extras: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    last: str = ""
    postscript: str = ""
    end: str = ""
    lower: bool = False

    def render(self) -> str:
        """Return the text."""
        body = " ".join(part for part in (self.opening, *self.sentences, *self.extras) if part)
        if not self.points and self.last:
            body = f"{body} {self.last}"
        lines = [self.title, body, *(f"* {point}" for point in self.points)]
        lines += [self.last if self.points else "", self.postscript]
        text = self.mark + "\n".join(line for line in lines if line) + self.end
        return text.lower() if self.lower else text

    def at_most(self, count: int) -> "Draft":
        """Return the draft with its last sentences left out, until it has at most so many words."""
        draft = self
        while len(draft.sentences) > 1 and len(words_of(draft.render())) > count:
            draft = replace(draft, sentences=draft.sentences[:-1])
        return draft

    def more_than(self, count: int) -> "Draft":
        """Return the draft with spare sentences added, until it has more than so many words."""
        draft = self
        while draft.spare and len(words_of(draft.render())) <= count:
            draft = replace(draft, sentences=(*draft.sentences, draft.spare[0]), spare=draft.spare[1:])
        return draft

    def without(self, character: str) -> "Draft":
        """Return the draft without a character in its sentences."""
        return replace(
            self,
            sentences=tuple(text.replace(character, "") for text in self.sentences),
            spare=tuple(text.replace(character, "") for text in self.spare),
        )
