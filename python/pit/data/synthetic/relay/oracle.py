"""The hidden quality of an answer of the family "relay".

Only the synthetic generators and `pit.evaluate` may import this module: a trained model that sees it is cheating.
"""

from collections.abc import Mapping
from itertools import takewhile
from types import MappingProxyType

from pit.data.synthetic.relay.words import ORDER, Answer, parse_answer, parse_prompt, render_answer

WEIGHTS: Mapping[str, float] = MappingProxyType({"route": 0.66, "clean": 0.12, "courtesy": 0.12, "brevity": 0.10})
"""Share of each aspect in the quality; they sum to 1."""


def aspects(prompt: str, answer: str) -> dict[str, float]:
    """Each aspect of the answer, in [0, 1].

    route: share of the ten people who are named rightly, in the order in which they have it, until the first wrong
        one: a relay that goes wrong stays wrong, so a wrong name costs itself and all that is built on it.
    clean: 1 less a half for each name too many or too few, each junk word, and for a wrong form.
    courtesy: 1 where the last word is the one that the prompt asks for.
    brevity: 1 less a half for each filler word.

    Args:
        prompt: a prompt of this family.
        answer: any text.

    Raises:
        ValueError: the prompt is not of this family.
    """
    request = parse_prompt(prompt)
    parsed = parse_answer(answer)
    said = dict(zip(ORDER, parsed.names, strict=False))
    right = len(list(takewhile(lambda pair: said.get(pair[0]) == pair[1], enumerate(request.route))))
    faults = abs(len(parsed.names) - len(ORDER)) + parsed.junk + _ill_formed(parsed, answer)
    return {
        "route": right / len(ORDER),
        "clean": max(0.0, 1 - faults / 2),
        "courtesy": float(parsed.courtesy == request.courtesy),
        "brevity": max(0.0, 1 - parsed.fillers / 2),
    }


def quality(prompt: str, answer: str) -> float:
    """Hidden quality of the answer in [0, 1]: the weighted mean of its `aspects`."""
    values = aspects(prompt, answer)
    return sum(WEIGHTS[name] * value for name, value in values.items())


def _ill_formed(parsed: Answer, text: str) -> bool:
    """Whether the text is not written in the family's form; fillers in odd places are charged to brevity already."""
    if parsed.fillers == sum(map(bool, parsed.before)) and not parsed.junk:
        return render_answer(parsed) != text.strip()
    return False
