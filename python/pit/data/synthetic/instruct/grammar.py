"""Grammar of the family "instruct": requests, their English text, and its parser.

A prompt names a form and a topic, and states one to three constraints:

    Write a short note about a harbour at dawn. Write without commas. Include the word "lantern". End with a question.
"""

import re
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from pit.data.synthetic.instruct.base import Constraint
from pit.data.synthetic.instruct.constraints import CONFLICTS, KINDS, UNSEEN_KINDS, UNSEEN_PAIRS
from pit.data.synthetic.instruct.words import FORMS, TOPICS, Topic

MOST = 3
"""Most constraints of a prompt."""

SEEN, UNSEEN_COMBINATION, UNSEEN_KIND = SUBSETS = ("seen combinations", "unseen combinations", "unseen kinds")
"""Evaluation subsets; prompts of the last two are in the eval fold alone."""

_TASKS = ("Write a short {form} about {topic}.", "Please write a short {form} about {topic}.")
_TOPICS = {topic.phrase: topic for topic in TOPICS}


class Request(NamedTuple):
    """Content of a prompt: a form, a topic, and constraints of different kinds, in the order of their statements."""

    form: str
    topic: Topic
    constraints: tuple[Constraint, ...]


class Wording(NamedTuple):
    """Numbers of the wordings of a prompt: of its task, and of each constraint."""

    task: int
    statements: tuple[int, ...]


def conflicting(kinds: tuple[str, ...]) -> bool:
    """Return whether no text can hold constraints of these kinds together."""
    return len(set(kinds)) < len(kinds) or any(frozenset(pair) in CONFLICTS for pair in combinations(kinds, 2))


def subset_of(prompt: str) -> str:
    """Return the evaluation subset of a prompt, one of `SUBSETS`.

    Raises:
        ValueError: `prompt` is not a prompt of this family.
    """
    return subset_of_kinds(tuple(constraint.kind for constraint in parse_prompt(prompt).constraints))


def subset_of_kinds(kinds: tuple[str, ...]) -> str:
    """Return the evaluation subset of the prompts that state these kinds."""
    if set(kinds) & set(UNSEEN_KINDS):
        return UNSEEN_KIND
    unseen = any(frozenset(pair) in UNSEEN_PAIRS for pair in combinations(kinds, 2))
    return UNSEEN_COMBINATION if unseen else SEEN


def render_prompt(request: Request, wording: Wording) -> str:
    """Return the request in English."""
    task = _TASKS[wording.task].format(form=request.form, topic=request.topic.phrase)
    statements = (
        constraint.wordings[number].format(value=constraint.value)
        for constraint, number in zip(request.constraints, wording.statements, strict=True)
    )
    return " ".join((task, *statements))


def _compiled(text: str, **gaps: str) -> re.Pattern[str]:
    """Return the pattern of a text at the beginning of another one, with a named group per gap."""
    pattern = re.escape(text)
    for name, values in gaps.items():
        pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>{values})")
    return re.compile(rf"{pattern}(?: |$)")


_TASK_PATTERNS = tuple(
    _compiled(task, form="|".join(FORMS), topic="|".join(map(re.escape, _TOPICS))) for task in _TASKS
)
_STATEMENTS = tuple(
    (kind, _compiled(wording, value=kind.pattern)) for kind in KINDS.values() for wording in kind.wordings
)


def statements_of(text: str) -> list[tuple[Constraint, str]]:
    """Return every constraint that a text may begin with, and the rest of the text; a prompt leaves one choice."""
    found = []
    for kind, pattern in _STATEMENTS:
        if match := pattern.match(text):
            value = match["value"] if kind.pattern else ""
            found.append((kind(value), text[match.end() :]))
    return found


@lru_cache(maxsize=4096)
def parse_prompt(text: str) -> Request:
    """Return the request that `render_prompt` wrote.

    Raises:
        ValueError: `text` is not a prompt of this family.
    """
    prompt = text.strip()
    task = next((match for pattern in _TASK_PATTERNS if (match := pattern.match(prompt))), None)
    rest, constraints = prompt[task.end() :] if task else "", list[Constraint]()
    while rest and (stated := statements_of(rest)):
        constraint, rest = stated[0]
        constraints.append(constraint)
    kinds = tuple(constraint.kind for constraint in constraints)
    if task is None or rest or not 1 <= len(kinds) <= MOST or conflicting(kinds):
        raise ValueError(f"not a prompt of the instruct task: {text[:200]!r}; take prompts from synthetic.generate")
    return Request(task["form"], _TOPICS[task["topic"]], tuple(constraints))
