"""Hidden quality of an answer of the family "relay".

Only the synthetic generators and `pit.evaluate` may import this module: training on it would be cheating.
"""

from collections.abc import Mapping
from itertools import takewhile
from types import MappingProxyType

from pit.data.synthetic.relay.grammar import ORDER, Answer, parse_answer, parse_prompt, render_answer

WEIGHTS: Mapping[str, float] = MappingProxyType({"route": 0.66, "clean": 0.12, "courtesy": 0.12, "brevity": 0.10})
"""Share of each aspect in the quality; they sum to 1."""


def aspects(prompt: str, answer: str) -> dict[str, float]:
    """Return each aspect of the answer, in [0, 1].

    route: share of the ten holders that are named correctly before the first wrong one, in the order of the passes: a
        wrong name costs itself and all names that follow from it.
    clean: 1 minus 1/2 for each extra or missing name, each junk word, and for a wrong form.
    courtesy: 1 if the last word is the one that the prompt asks for.
    brevity: 1 minus 1/2 for each filler word.

    Args:
        prompt: a prompt of this family.
        answer: any text.

    Raises:
        ValueError: the prompt is not of this family.
    """
    request = parse_prompt(prompt)
    parsed = parse_answer(answer)
    named = dict(zip(ORDER, parsed.names, strict=False))
    right = len(list(takewhile(lambda pair: named.get(pair[0]) == pair[1], enumerate(request.route))))
    faults = abs(len(parsed.names) - len(ORDER)) + parsed.junk + _ill_formed(parsed, answer)
    return {
        "route": right / len(ORDER),
        "clean": max(0.0, 1 - faults / 2),
        "courtesy": float(parsed.courtesy == request.courtesy),
        "brevity": max(0.0, 1 - parsed.fillers / 2),
    }


def quality(prompt: str, answer: str) -> float:
    """Return the hidden quality of the answer in [0, 1], the weighted mean of its `aspects`."""
    values = aspects(prompt, answer)
    return sum(WEIGHTS[name] * value for name, value in values.items())


def _ill_formed(parsed: Answer, text: str) -> bool:
    """Return whether the text deviates from the family's form; misplaced fillers do not count: brevity counts them."""
    if parsed.fillers == sum(map(bool, parsed.before)) and not parsed.junk:
        return render_answer(parsed) != text.strip()
    return False
