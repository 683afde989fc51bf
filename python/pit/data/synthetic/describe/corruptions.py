"""Answers with one known fault each, to test whether a reward model notices it.

The faults are constructed, not measured by the oracle, so training code may use this module.
"""

import random

from pit.data.synthetic.describe.grammar import (
    ATTRIBUTES,
    Answer,
    Item,
    Request,
    parse_answer,
    parse_prompt,
    render_answer,
)
from pit.data.synthetic.shared import COURTESIES, FILLERS, stutter

RUNGS = "wrong values"
"""Quantity that grows by one from answer to answer of `progress`."""


def clean_answer(prompt: str) -> str:
    """Return the faultless answer to a prompt of the task.

    >>> clean_answer("Describe this red small cheap old round lamp: price, colour and size. End fondly.")
    'price cheap, colour red, size small. fondly'
    """
    request = parse_prompt(prompt)
    truth = request.truth
    return render_answer(Answer(tuple(Item(name, truth[name]) for name in request.asked), request.courtesy))


def corruptions(prompt: str, answer: str, rng: random.Random) -> dict[str, str]:
    """Return one corrupted copy of a clean answer per aspect of the quality, and per fault that policies exploit.

    coverage: an item omitted (correctness falls too, because an omitted item is not correct).
    correct: one value replaced by another of the same attribute.
    order: two neighbouring items swapped.
    clean: an unasked item added, or one item repeated.
    courtesy: another courtesy.
    brevity: a filler before one item.
    repetition: an item replaced by an earlier one; length and form remain those of a clean answer. A reward model that
        counts correct items misses it, and a policy trained on such a reward repeats its surest item.
    stutter: a word repeated several times.

    Args:
        prompt: a prompt of the task.
        answer: its clean answer.
        rng: chooses the place of each fault.
    """
    request = parse_prompt(prompt)
    items = list(parse_answer(answer).items)
    courtesy = request.courtesy
    spot = rng.randrange(len(items))
    chosen = items[spot]
    left = rng.randrange(len(items) - 1)
    again = rng.randrange(1, len(items))
    wrong = rng.choice([value for value in ATTRIBUTES[chosen.attribute] if value != chosen.value])
    other = rng.choice([word for word in COURTESIES if word != courtesy])
    extra = _extra(request, items, rng)

    def write(changed: list[Item], closing: str = courtesy) -> str:
        return render_answer(Answer(tuple(changed), closing))

    return {
        "coverage": write([*items[:spot], *items[spot + 1 :]]),
        "correct": write([*items[:spot], chosen._replace(value=wrong), *items[spot + 1 :]]),
        "order": write([*items[:left], items[left + 1], items[left], *items[left + 2 :]]),
        "clean": write(extra),
        "courtesy": write(items, other),
        "brevity": write([*items[:spot], chosen._replace(filler=rng.choice(FILLERS)), *items[spot + 1 :]]),
        "repetition": write([*items[:again], items[rng.randrange(again)], *items[again + 1 :]]),
        "stutter": stutter(answer, rng.random(), rng.randint(1, 8)),
    }


def progress(prompt: str, answer: str, rng: random.Random) -> list[str]:
    """Return a clean answer, then copies with one more wrong value each, until all are wrong.

    Args:
        prompt: a prompt of the task.
        answer: its clean answer.
        rng: chooses the order of the errors and the wrong values.

    >>> prompt = "Describe this red small cheap old round lamp: price and size. End fondly."
    >>> len(progress(prompt, "price cheap, size small. fondly", random.Random(0)))
    3
    """
    parsed = parse_answer(answer)
    items, ladder = list(parsed.items), [answer]
    for spot in rng.sample(range(len(items)), len(items)):
        wrong = rng.choice([value for value in ATTRIBUTES[items[spot].attribute] if value != items[spot].value])
        items[spot] = items[spot]._replace(value=wrong)
        ladder.append(render_answer(Answer(tuple(items), parsed.courtesy)))
    return ladder


def _extra(request: Request, items: list[Item], rng: random.Random) -> list[Item]:
    """Return the items plus one: an unasked item at any place, or a repeated one after its first mention."""
    if rng.random() < 0.5:
        name, value = rng.choice([pair for pair in request.given if pair[0] not in request.asked])
        place = rng.randint(0, len(items))
        return [*items[:place], Item(name, value), *items[place:]]
    source = rng.randrange(len(items))
    place = rng.randint(source + 1, len(items))
    return [*items[:place], items[source], *items[place:]]
