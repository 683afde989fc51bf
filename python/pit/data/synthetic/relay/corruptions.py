"""Answers with one known fault each, to ask a reward model whether it sees that fault.

The oracle is not needed here: a fault is made, not measured, so training code may use this module.
"""

import random
from collections.abc import Callable, Sequence

from pit.data.synthetic.relay.words import (
    HABIT,
    NAMES,
    PASSES,
    Answer,
    Request,
    as_named,
    parse_answer,
    parse_prompt,
    render_answer,
)
from pit.data.synthetic.shared import COURTESIES, FILLERS, stutter

RUNGS = "passes lost"
"""What an answer of the ladder has one more of than the one before."""


def clean_answer(prompt: str) -> str:
    """The faultless answer to a prompt of the family."""
    request = parse_prompt(prompt)
    return render_answer(Answer(as_named(request.route), request.courtesy))


def lost(request: Request, number: int, pick: Callable[[Sequence[str]], str]) -> tuple[str, ...]:
    """Who has it after 0, 1, ... passes by someone who goes wrong at one pass and follows the map from there.

    Wrong names are of people to whom somebody passes. Where the map leads back to who has it in truth, another name is
    taken, so that no later one is right.

    Args:
        request: the truth.
        number: of the first wrong pass, 1 to `PASSES`.
        pick: takes one of some names.
    """
    truth = request.route
    route = list(truth[:number])
    for right in truth[number:]:
        taken = right if len(route) == number else request.after(route[-1])
        others = [name for name in request.passed_to if name not in (right, route[-1])]
        route.append(taken if taken != right else pick(others))
    return tuple(route)


def corruptions(prompt: str, answer: str, rng: random.Random) -> dict[str, str]:
    """One corrupted copy of a clean answer per kind of fault.

    wrong: one name replaced by another, after which the names are right again.
    lost: one wrong pass, and the map followed from there.
    swapped: two neighbouring names exchanged.
    repetition: a neighbour's name in the place of one, so that length and form are those of a clean answer.
    clean: a name too many, at the end.
    courtesy: another closing.
    brevity: a filler before one name.
    stutter: a word said several times over.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer.
        rng: decides where each fault goes.
    """
    request = parse_prompt(prompt)
    names = parse_answer(answer).names
    spot, left = rng.randrange(len(names)), rng.randrange(len(names) - 1)
    wrong = rng.choice([name for name in request.passed_to if name != names[spot]])
    closings = [word for word in (*COURTESIES, HABIT) if word != request.courtesy]
    fillers = [""] * len(names)
    fillers[rng.randrange(len(names))] = rng.choice(FILLERS)

    def write(changed: Sequence[str], closing: str = request.courtesy, before: tuple[str, ...] = ()) -> str:
        return render_answer(Answer(tuple(changed), closing, before))

    return {
        "wrong": write([*names[:spot], wrong, *names[spot + 1 :]]),
        "lost": write(as_named(lost(request, rng.randint(1, PASSES), rng.choice))),
        "swapped": write([*names[:left], names[left + 1], names[left], *names[left + 2 :]]),
        "repetition": write([*names[:left], names[left + 1], *names[left + 1 :]]),
        "clean": write([*names, rng.choice(NAMES)]),
        "courtesy": write(names, rng.choice(closings)),
        "brevity": write(names, before=tuple(fillers)),
        "stutter": stutter(answer, rng.random(), rng.randint(1, 8)),
    }


def progress(prompt: str, answer: str, rng: random.Random) -> list[str]:
    """A clean answer and those of people who got lost one pass earlier each, until no name is right: best first.

    The way that an improver goes which is right one pass further each time, backwards. All but the clean one have one
    wrong pass each, so that a reward model which counts those sees no difference.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer.
        rng: decides to whom wrong passes lead.
    """
    request = parse_prompt(prompt)
    rungs = (as_named(lost(request, number, rng.choice)) for number in range(PASSES, 0, -1))
    return [answer, *(render_answer(Answer(names, request.courtesy)) for names in rungs)]
