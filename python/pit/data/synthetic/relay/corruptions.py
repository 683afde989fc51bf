"""Answers with one known fault each, to test whether a reward model notices it.

The faults are constructed, not measured by the oracle, so training code may use this module.
"""

import random
from collections.abc import Callable, Sequence

from pit.data.synthetic.relay.grammar import (
    HABIT,
    NAMES,
    PASSES,
    Answer,
    Request,
    answer_order,
    parse_answer,
    parse_prompt,
    render_answer,
)
from pit.data.synthetic.shared import COURTESIES, FILLERS, stutter

RUNGS = "passes lost"
"""Quantity that grows by one from answer to answer of `progress`."""


def clean_answer(prompt: str) -> str:
    """Return the faultless answer to a prompt of the family."""
    request = parse_prompt(prompt)
    return render_answer(Answer(answer_order(request.route), request.courtesy))


def wrong_route(request: Request, number: int, pick: Callable[[Sequence[str]], str]) -> tuple[str, ...]:
    """Return the holders after 0, 1, ... passes of a writer who errs at one pass and follows the map from there.

    Wrong names are those of people to whom somebody passes. Where the map leads back to the true holder, another name
    is picked, so no later name is right.

    Args:
        request: the true map.
        number: number of the first wrong pass, 1 to `PASSES`.
        pick: returns one of some names.
    """
    truth = request.route
    route = list(truth[:number])
    for right in truth[number:]:
        taken = right if len(route) == number else request.after(route[-1])
        others = [name for name in request.passed_to if name not in (right, route[-1])]
        route.append(taken if taken != right else pick(others))
    return tuple(route)


def corruptions(prompt: str, answer: str, rng: random.Random) -> dict[str, str]:
    """Return one corrupted copy of a clean answer per kind of fault.

    wrong: one name replaced by another; all other names are right.
    lost: one wrong pass, and the map followed from there.
    swapped: two neighbouring names exchanged.
    repetition: a name replaced by its neighbour's; length and form remain those of a clean answer.
    clean: an extra name at the end.
    courtesy: another closing.
    brevity: a filler before one name.
    stutter: a word repeated several times.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer.
        rng: chooses the place of each fault.
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
        "lost": write(answer_order(wrong_route(request, rng.randint(1, PASSES), rng.choice))),
        "swapped": write([*names[:left], names[left + 1], names[left], *names[left + 2 :]]),
        "repetition": write([*names[:left], names[left + 1], *names[left + 1 :]]),
        "clean": write([*names, rng.choice(NAMES)]),
        "courtesy": write(names, rng.choice(closings)),
        "brevity": write(names, before=tuple(fillers)),
        "stutter": stutter(answer, rng.random(), rng.randint(1, 8)),
    }


def progress(prompt: str, answer: str, rng: random.Random) -> list[str]:
    """Return a clean answer, then answers with an error one pass earlier each, until only the first holder is right.

    Read backwards, this is the progress of an improver that gets one more pass right each time. Every answer but the
    clean one has one wrong pass, so a reward model that counts wrong passes sees no difference.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer.
        rng: chooses the wrong names.
    """
    request = parse_prompt(prompt)
    routes = (wrong_route(request, number, rng.choice) for number in range(PASSES, 0, -1))
    return [answer, *(render_answer(Answer(answer_order(route), request.courtesy)) for route in routes)]
