"""Answers with one known fault each, to ask a reward model whether it sees that fault.

The oracle is not needed here: a fault is made, not measured, so training code may use this module.
"""

import random
from collections.abc import Callable, Sequence

from pit.data.synthetic.relay.words import HOPS, NAMES, Answer, Request, parse_answer, parse_prompt, render_answer
from pit.data.synthetic.shared import COURTESIES, FILLERS, stutter

RUNGS = "hops lost"
"""What an answer of the ladder has one more of than the one before."""


def clean_answer(prompt: str) -> str:
    """The faultless answer to a prompt of the family."""
    request = parse_prompt(prompt)
    return render_answer(Answer(request.names, request.courtesy))


def lost(request: Request, hop: int, pick: Callable[[Sequence[str]], str]) -> tuple[str, ...]:
    """Who has it after 0, 1, ... passes by someone who goes wrong at one hop and follows the map from there.

    Wrong names are of people to whom somebody passes. Where the map leads back to who has it in truth, another name is
    taken, so that no later one is right.

    Args:
        request: the truth.
        hop: the first wrong one, 1 to `HOPS`.
        pick: takes one of some names.
    """
    truth = request.path
    path = list(truth[:hop])
    for true in truth[hop:]:
        name = true if len(path) == hop else request.after(path[-1])
        others = [other for other in request.passed_to if other not in (true, path[-1])]
        path.append(name if name != true else pick(others))
    return tuple(path)


def corruptions(prompt: str, answer: str, rng: random.Random) -> dict[str, str]:
    """One corrupted copy of a clean answer per kind of fault.

    wrong: one name replaced by another, after which the names are right again.
    lost: one wrong hop, and the map followed from there.
    start: another name in the place of the one who began.
    aside: another name for the one to whom the other one passes.
    swapped: two neighbouring names exchanged.
    repetition: a neighbour's name in the place of one, so that length and form are those of a clean answer.
    clean: a name too many, before the others.
    courtesy: another courtesy.
    brevity: a filler before one name.
    stutter: a word said several times over.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer.
        rng: decides where each fault goes.
    """
    request = parse_prompt(prompt)
    names = parse_answer(answer).names
    spot, left = rng.randrange(HOPS), rng.randrange(HOPS)
    others = [name for name in NAMES if name not in names]

    def write(changed: Sequence[str], closing: str = request.courtesy, before: tuple[str, ...] = ()) -> str:
        return render_answer(Answer(tuple(changed), closing, before))

    fillers = [""] * len(names)
    fillers[rng.randrange(len(names))] = rng.choice(FILLERS)
    return {
        "wrong": write([*names[:spot], rng.choice(others), *names[spot + 1 :]]),
        "lost": write(request.named(lost(request, rng.randint(1, HOPS), rng.choice))),
        "start": write([*names[:HOPS], rng.choice(others), *names[-2:]]),
        "aside": write([*names[:-1], rng.choice([name for name in request.passed_to if name != names[-1]])]),
        "swapped": write([*names[:left], names[left + 1], names[left], *names[left + 2 :]]),
        "repetition": write([*names[:left], names[left + 1], *names[left + 1 :]]),
        "clean": write([rng.choice(NAMES), *names]),
        "courtesy": write(names, rng.choice([word for word in COURTESIES if word != request.courtesy])),
        "brevity": write(names, before=tuple(fillers)),
        "stutter": stutter(answer, rng.random(), rng.randint(1, 8)),
    }


def progress(prompt: str, answer: str, rng: random.Random) -> list[str]:
    """A clean answer and those of people who got lost one hop earlier each, until no hop is right: best first.

    The way that an improver goes which does one hop more a pass, backwards. All but the clean one have one wrong hop
    each, so that a reward model which counts those sees no difference.

    Args:
        prompt: a prompt of the family.
        answer: its clean answer.
        rng: decides to whom wrong hops lead.
    """
    request = parse_prompt(prompt)
    rungs = (request.named(lost(request, hop, rng.choice)) for hop in range(HOPS, 0, -1))
    return [answer, *(render_answer(Answer(names, request.courtesy)) for names in rungs)]
