"""Hidden quality of an answer of the family "instruct": the share of its constraints held, if it is fluent.

Only the synthetic generators and `pit.evaluate` may import this module: training on it would be cheating.
"""

from pit.data.synthetic.instruct.draft import words_of
from pit.data.synthetic.instruct.grammar import parse_prompt
from pit.data.synthetic.instruct.words import Topic

LEAST_WORDS = 15
"""Fewest words of a fluent answer."""

RUN = 4
"""Words in a row that a fluent answer does not repeat."""

LEAST_TOPIC = 2
"""Fewest different words of the topic in a fluent answer; the words of its phrase are among them."""


def aspects(prompt: str, answer: str) -> dict[str, float]:
    """Return each aspect of the answer, in [0, 1].

    held: share of the prompt's constraints that the answer holds.
    all held: 1 if it holds all of them.
    no repeats: 1 if no four words in a row occur twice, in any case.
    enough words: 1 if it has at least 15 words.
    on topic: 1 if at least two different words of the topic occur, in the singular or the plural.
    fluent: 1 if the last three are.
    holds KIND: for the kind of each of its constraints, 1 if the answer holds it.

    Args:
        prompt: a prompt of this family.
        answer: any text.

    Raises:
        ValueError: the prompt is not of this family.
    """
    request = parse_prompt(prompt)
    held = [constraint.holds(answer) for constraint in request.constraints]
    words = [word.lower() for word in words_of(answer)]
    runs = list(zip(*(words[first:] for first in range(RUN)), strict=False))
    checks = {
        "no repeats": len(set(runs)) == len(runs),
        "enough words": len(words) >= LEAST_WORDS,
        "on topic": len(topic_words(request.topic) & set(map(_stem, words))) >= LEAST_TOPIC,
    }
    kinds = {f"holds {each.kind}": holds for each, holds in zip(request.constraints, held, strict=True)}
    gates = {"all held": all(held), **checks, "fluent": all(checks.values()), **kinds}
    return {"held": sum(held) / len(held), **{name: float(passed) for name, passed in gates.items()}}


def quality(prompt: str, answer: str) -> float:
    """Return the hidden quality of the answer in [0, 1]: the share of constraints held, 0 if it is not fluent.

    >>> prompt = "Write a short note about a harbour at dawn. Write without commas. End with a question."
    >>> quality(prompt, "The boats and the gulls of the harbour wait at dawn, as they do every day.")
    0.0
    >>> quality(prompt, "The boats and the gulls of the harbour wait at dawn as they do every day.")
    0.5
    """
    values = aspects(prompt, answer)
    return values["held"] * values["fluent"]


def topic_words(topic: Topic) -> frozenset[str]:
    """Return the words that show that a text is about a topic, in lower case and without a plural's s."""
    phrase = [word for word in topic.phrase.lower().split() if len(word) > 3]
    return frozenset(map(_stem, (*topic.nouns, *phrase)))


def _stem(word: str) -> str:
    return word.removesuffix("s")
