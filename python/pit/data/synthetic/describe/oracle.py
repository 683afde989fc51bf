"""Hidden quality of an answer of the family "describe".

Only the synthetic generators and `pit.evaluate` may import this module: training on it would be cheating.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pit.data.synthetic.describe.grammar import ATTRIBUTE_OF, Answer, parse_answer, parse_prompt, render_answer

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"coverage": 0.15, "correct": 0.30, "order": 0.15, "clean": 0.20, "courtesy": 0.12, "brevity": 0.08}
)
"""Share of each aspect in the quality; they sum to 1."""


def aspects(prompt: str, answer: str) -> dict[str, float]:
    """Return each aspect of the answer, in [0, 1].

    coverage: share of the asked attributes that the answer reports with a value of that attribute.
    correct: share of the asked attributes whose first mention has the true value (an omitted one is not correct).
    order: 1 if at least two asked attributes are mentioned and all first mentions are in the asked order.
    clean: 1 minus 1/2 for each unasked, repeated or senseless item, each junk word, and for a wrong form.
    courtesy: 1 if the last word is the one that the prompt asks for.
    brevity: 1 minus 1/2 for each filler word.

    Args:
        prompt: a prompt of the synthetic task.
        answer: any text.

    Raises:
        ValueError: the prompt is not of this task.
    """
    request = parse_prompt(prompt)
    parsed = parse_answer(answer)
    truth = request.truth
    first: dict[str, str] = {}
    faults = 0
    for item in parsed.items:
        fits = ATTRIBUTE_OF[item.value] == item.attribute
        if item.attribute not in request.asked or item.attribute in first or not fits:
            faults += 1
        first.setdefault(item.attribute, item.value)
    mentioned = [attribute for attribute in first if attribute in request.asked]
    covered = sum(ATTRIBUTE_OF[first[attribute]] == attribute for attribute in mentioned)
    correct = sum(first[attribute] == truth[attribute] for attribute in mentioned)
    in_order = len(mentioned) >= 2 and mentioned == [name for name in request.asked if name in first]
    faults += parsed.junk + _ill_formed(parsed, answer)
    return {
        "coverage": covered / len(request.asked),
        "correct": correct / len(request.asked),
        "order": float(in_order),
        "clean": max(0.0, 1 - faults / 2),
        "courtesy": float(parsed.courtesy == request.courtesy),
        "brevity": max(0.0, 1 - parsed.fillers / 2),
    }


def quality(prompt: str, answer: str) -> float:
    """Return the hidden quality of the answer in [0, 1], the weighted mean of its `aspects`.

    >>> prompt = "Describe this red small cheap old round lamp: price, colour and size. End fondly."
    >>> round(quality(prompt, "price cheap, colour blue, size small. fondly"), 3)
    0.9
    """
    values = aspects(prompt, answer)
    return sum(WEIGHTS[name] * value for name, value in values.items())


def _ill_formed(parsed: Answer, text: str) -> bool:
    """Return whether the text deviates from the task's form (commas between items, a full stop before the courtesy).

    Without this, a trained policy would drop all punctuation. Misplaced fillers do not count: brevity counts them.
    """
    if parsed.fillers == sum(bool(item.filler) for item in parsed.items) and not parsed.junk:
        return render_answer(parsed) != text.strip()
    return False
