"""The ten kinds of constraints that training prompts have; most agree with a kind of IFEval (arXiv 2311.07911)."""

import re
from dataclasses import replace

from pit.data.synthetic.instruct.base import Constraint, bare, pick
from pit.data.synthetic.instruct.draft import Draft, words_of
from pit.data.synthetic.instruct.words import AFTERTHOUGHTS, ASIDES, CLOSINGS, KEYWORDS, MENTIONS, OPENINGS, QUESTIONS


class Include(Constraint):
    """A word occurs, in any case."""

    kind = "include"
    wordings = (
        'Include the word "{value}".',
        'The word "{value}" must appear in your answer.',
        'Use the word "{value}" somewhere.',
    )
    values, pattern = KEYWORDS, "[a-z]+"

    def holds(self, text: str) -> bool:
        """Return whether the word occurs."""
        return self.value in map(str.lower, words_of(text))

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with a sentence about the word."""
        return replace(draft, extras=(*draft.extras, pick(MENTIONS, way).format(word=self.value)))

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft as it is, or with a sentence about another word."""
        if way < 0.5:
            return draft
        return replace(draft, extras=(*draft.extras, MENTIONS[0].format(word=pick(self.others(), 2 * way - 1))))


class NoCommas(Constraint):
    """The text has no comma."""

    kind = "commas"
    wordings = ("Do not use any commas.", "Write without commas.", "Avoid commas altogether.")

    def holds(self, text: str) -> bool:
        """Return whether there is no comma."""
        return "," not in text

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft without the commas of its sentences."""
        return draft.without(",")

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft with an aside in its first sentence."""
        first = draft.sentences[0].replace(",", "").removesuffix(".") + pick(ASIDES, way) + "."
        return replace(draft, sentences=(first, *draft.sentences[1:]))


class Title(Constraint):
    """The text has a title in double angular brackets."""

    kind = "title"
    wordings = (
        "Give it a title in double angular brackets, such as <<title>>.",
        "Put a title wrapped in << and >> above the text.",
        "Add a title like this: <<title>>.",
    )

    def holds(self, text: str) -> bool:
        """Return whether some line has a title that is not blank."""
        titles = re.findall(r"<<[^\n]+>>", text)
        return any(title.lstrip("<").rstrip(">").strip() for title in titles)

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with a title."""
        return replace(draft, title=f"<<{_title(draft, way)}>>")

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft without a title, or with one in other brackets."""
        return replace(draft, title=pick(("", f"<{_title(draft, way)}>", f"**{_title(draft, way)}**"), way))


class AtMost(Constraint):
    """The text has at most so many words; a word is a run of letters and digits."""

    kind = "at most"
    wordings = ("Use at most {value} words.", "Write no more than {value} words.", "Stay within {value} words.")
    values, pattern = ("30", "35", "40"), r"\d+"

    def holds(self, text: str) -> bool:
        """Return whether there are at most so many words."""
        return len(words_of(text)) <= self.number

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with fewer sentences."""
        return draft.at_most(self.number)

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft with more sentences."""
        return draft.more_than(self.number)


class Question(Constraint):
    """The text ends with a question mark."""

    kind = "question"
    wordings = (
        "End with a question.",
        "Let the last sentence be a question.",
        "Finish by asking the reader a question.",
    )

    def holds(self, text: str) -> bool:
        """Return whether the last character is a question mark."""
        return bare(text).endswith("?")

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with a question at its end."""
        return replace(draft, last=_question(draft, way))

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft without a question, or with one that is not its end."""
        return replace(draft, last="" if way < 0.5 else f"{_question(draft, way)} {pick(AFTERTHOUGHTS, 2 * way - 1)}")


class Opening(Constraint):
    """The text begins with a phrase, in any case."""

    kind = "opening"
    wordings = (
        'Begin with the exact words "{value}".',
        'The first words must be "{value}".',
        'Start your answer with "{value}".',
    )
    values, pattern = OPENINGS, '[^"]+'

    def holds(self, text: str) -> bool:
        """Return whether the phrase comes first."""
        return bare(text).lower().startswith(self.value.lower())

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with the phrase before it."""
        return replace(draft, opening=f"{self.value}{pick(('.', '!'), way)}")

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft without the phrase, or with another one."""
        return replace(draft, opening="" if way < 0.5 else f"{pick(self.others(), 2 * way - 1)}.")


class Closing(Constraint):
    """The text ends with a sentence, in any case."""

    kind = "closing"
    wordings = (
        'End with the exact sentence "{value}"',
        'The last sentence must be "{value}"',
        'Close your answer with "{value}"',
    )
    values, pattern = CLOSINGS, '[^"]+'

    def holds(self, text: str) -> bool:
        """Return whether the sentence comes last."""
        return bare(text).lower().endswith(self.value.lower())

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with the sentence at its end."""
        return replace(draft, last=self.value)

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft without the sentence, with another one, or with words after it."""
        spoilt = f"{self.value} {pick(AFTERTHOUGHTS, way)}"
        return replace(draft, last=pick(("", pick(self.others(), way), spoilt), way))


class Quotes(Constraint):
    """The whole text stands in double quotation marks."""

    kind = "quotes"
    wordings = (
        "Wrap your whole answer in double quotation marks.",
        "Put the entire answer inside double quotation marks.",
        "Your answer must begin and end with a double quotation mark.",
    )

    def holds(self, text: str) -> bool:
        """Return whether the first and the last character are quotation marks."""
        text = text.strip()
        return len(text) > 1 and text[0] == text[-1] == '"'

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft in quotation marks."""
        return replace(draft, mark='"', end='"')

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft without quotation marks, or without the last one."""
        return replace(draft, mark='"' if way < 0.5 else "", end="")


class LowerCase(Constraint):
    """All letters are small."""

    kind = "lower case"
    wordings = (
        "Write everything in lower case.",
        "Use small letters only.",
        "Do not use any capital letters.",
    )

    def holds(self, text: str) -> bool:
        """Return whether there are letters, and no capital one."""
        return text.islower()

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft in small letters."""
        return replace(draft, lower=True)

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft with its capital letters."""
        return replace(draft, lower=False)


class Bullets(Constraint):
    """The text has exactly so many lines that begin with a bullet, * or -."""

    kind = "bullets"
    wordings = (
        "Include exactly {value} bullet points, each on a line that begins with *.",
        "Your answer must have exactly {value} bullet points like this: * point.",
        "List exactly {value} things as bullet points that begin with *.",
    )
    values, pattern = ("2", "3"), r"\d+"

    def holds(self, text: str) -> bool:
        """Return whether so many lines begin with a bullet; two asterisks are bold type."""
        lines = (re.findall(pattern, text, re.MULTILINE) for pattern in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
        return sum(map(len, lines)) == self.number

    def keep(self, draft: Draft, way: float) -> Draft:
        """Return the draft with so many points."""
        return replace(draft, points=_points(draft, way, self.number))

    def violate(self, draft: Draft, way: float) -> Draft:
        """Return the draft with no points, or one too few or too many."""
        return replace(draft, points=_points(draft, way, pick((0, self.number - 1, self.number + 1), way)))


def _title(draft: Draft, way: float) -> str:
    return f"{pick(draft.topic.adjectives, way)} {pick(draft.topic.nouns, way)}".capitalize()


def _question(draft: Draft, way: float) -> str:
    return pick(QUESTIONS, way).format(noun=pick(draft.topic.nouns, way))


def _points(draft: Draft, way: float, count: int) -> tuple[str, ...]:
    """Return so many lines, of different nouns."""
    topic, first = draft.topic, int(way * len(draft.topic.nouns))
    nouns = (topic.nouns * 2)[first : first + count]
    return tuple(f"{pick(topic.adjectives, way)} {noun}" for noun in nouns)
