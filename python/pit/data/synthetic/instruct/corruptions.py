"""Answers with one known fault each, to test whether a reward model notices it.

The faults are constructed, not measured by the oracle, so training code may use this module.
"""

import random
from collections.abc import Mapping

from pit.data.synthetic.instruct.draft import Draft
from pit.data.synthetic.instruct.grammar import Request, parse_prompt
from pit.data.synthetic.instruct.task import FAULTS, compose, other_topic, sentences_of, spoil
from pit.data.synthetic.shared import Dice

RUNGS = "constraints broken"
"""Quantity that grows by one from answer to answer of `progress`."""

SENTENCES = 3
"""Sentences of a clean answer after its first one, before the length is set."""


def _draft(request: Request, broken: Mapping[str, float]) -> Draft:
    """Return the clean draft of a request, but for some kinds of constraints: the way in which each is broken."""
    kinds = [constraint.kind for constraint in request.constraints]
    sentences = sentences_of(request.topic, Dice(0, 0, f"instruct clean {request.topic.phrase}"))
    kept = tuple(kind not in broken for kind in kinds)
    return compose(request, sentences, SENTENCES, kept, tuple(broken.get(kind, 0.0) for kind in kinds))


def clean_answer(prompt: str) -> str:
    """Return a fluent answer to a prompt of the family that holds all of its constraints.

    >>> clean_answer("Write a short note about a harbour at dawn. Use at most 30 words. Write without commas.")[:46]
    'This is a quick note about a harbour at dawn. '
    """
    return _draft(parse_prompt(prompt), {}).render()


def corruptions(prompt: str, answer: str, rng: random.Random) -> dict[str, str]:
    """Return one corrupted copy of a clean answer per constraint of the prompt, by its kind, and per fault of fluency.

    repeats: the first sentence is said twice.
    too short: the topic is named, and nothing is said of it.
    off topic: the sentences are about another topic.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer, of which there is one.
        rng: chooses the way in which a constraint is broken.
    """
    request = parse_prompt(prompt)
    clean = _draft(request, {})
    broken = {each.kind: _draft(request, {each.kind: rng.random()}).render() for each in request.constraints}
    spoilt = {fault: spoil(clean, fault).render() for fault in FAULTS}
    return broken | spoilt | {"off topic": _draft(request._replace(topic=other_topic(request.topic)), {}).render()}


def progress(prompt: str, answer: str, rng: random.Random) -> list[str]:
    """Return a clean answer, then copies with one more constraint broken each, until all are.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer.
        rng: chooses the order in which constraints are broken, and the ways.
    """
    request = parse_prompt(prompt)
    kinds = [constraint.kind for constraint in request.constraints]
    broken, ladder = dict[str, float](), [answer]
    for kind in rng.sample(kinds, len(kinds)):
        broken[kind] = rng.random()
        ladder.append(_draft(request, broken).render())
    return ladder
