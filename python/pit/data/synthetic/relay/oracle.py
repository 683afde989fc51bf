"""The hidden quality of an answer of the family "relay".

Only the synthetic generators and `pit.evaluate` may import this module: a trained model that sees it is cheating.
"""

from collections.abc import Mapping
from itertools import takewhile
from types import MappingProxyType

from pit.data.synthetic.relay.words import HOPS, Answer, parse_answer, parse_prompt, render_answer

WEIGHTS: Mapping[str, float] = MappingProxyType({"chain": 0.66, "clean": 0.12, "courtesy": 0.12, "brevity": 0.10})
"""Share of each aspect in the quality; they sum to 1."""


def aspects(prompt: str, answer: str) -> dict[str, float]:
    """Each aspect of the answer, in [0, 1].

    chain: share of the six passes that are named until the first wrong name. Names are counted from the right-hand end,
        where the pass asked of besides stands and then the one who began: a relay that goes wrong stays wrong, so a
        wrong name costs itself and all that is built on it.
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
    pairs = zip(reversed(parsed.names), reversed(request.names), strict=False)
    right = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    # From the right: the one name that tells the pass asked of besides; who was asked of and who began; the five hops.
    passes = min(right, 1) + max(0, right - 3)
    faults = abs(len(parsed.names) - len(request.names)) + parsed.junk + _ill_formed(parsed, answer)
    return {
        "chain": passes / (HOPS + 1),
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
