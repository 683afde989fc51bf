"""The family "instruct": prompts, noisy writers and labelled preference pairs, each a function of (seed, index).

Noisy writers compose drafts of sentences about the topic and hold or break each constraint. As in `describe`, the two
answers of a row share a draft in the folds that train and evaluate improvers, so the worse answer is informative about
the better one; in the reward and judge folds they are independent, and some have faults of fluency. A logistic coin on
the hidden quality labels a pair. Prompts with unseen kinds of constraints, or with unseen pairs of kinds, are in the
eval fold alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar

from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY, fold_of
from pit.data.synthetic.instruct.constraints import KINDS, TRAINED_KINDS, UNSEEN_KINDS
from pit.data.synthetic.instruct.draft import Draft
from pit.data.synthetic.instruct.grammar import (
    MOST,
    SEEN,
    SUBSETS,
    UNSEEN_KIND,
    Request,
    Wording,
    conflicting,
    render_prompt,
    subset_of_kinds,
)
from pit.data.synthetic.instruct.oracle import quality
from pit.data.synthetic.instruct.words import ASIDES, FORMS, SENTENCES, TOPICS, Topic
from pit.data.synthetic.shared import WIDE_FOLDS, Dice, label
from pit.types import Preference

SHARED_DRAFT = 0.75
"""Probability with which a coupled writer copies a decision from the shared draft."""

SHARPNESS = 8.0
"""Slope of the label's coin per unit of quality: one of three constraints more is preferred in 93 % of the pairs."""

Fault = Literal["", "repeats", "too short", "off topic"]
"""A fault of fluency; empty for none."""

FAULTS: tuple[Fault, ...] = ("repeats", "too short", "off topic")

_T = TypeVar("_T")


class _Decisions(NamedTuple):
    """All decisions of a writer about an answer.

    topic: what is written about; sentences: sentences about it in order, of which the first `size` are written.
    kept: whether each constraint is held; ways: place in [0, 1) of the way in which it is.
    """

    topic: Topic
    sentences: tuple[str, ...]
    size: int
    kept: tuple[bool, ...]
    ways: tuple[float, ...]
    fault: Fault


def request_at(seed: int, index: int, fractions: Mapping[str, float], key: str) -> tuple[Request, str]:
    """Return the request of row `index`, and its text.

    The fold of a prompt follows from its text, so texts are drawn until one is in a fold that may have it.
    """
    dice = Dice(seed, index, "instruct prompt")
    held_out = dice.chance(fractions.get("eval", 0.0))
    subset = dice.pick(SUBSETS) if held_out else SEEN
    while True:
        kinds = _kinds(dice, subset)
        constraints = tuple(KINDS[kind](dice.pick(KINDS[kind].values)) for kind in kinds)
        request = Request(dice.pick(tuple(FORMS)), dice.pick(TOPICS), constraints)
        wording = Wording(int(2 * dice.share()), tuple(int(len(each.wordings) * dice.share()) for each in constraints))
        prompt = render_prompt(request, wording)
        if (fold_of(prompt, fractions, key) == "eval") == held_out:
            return request, prompt


def _kinds(dice: Dice, subset: str) -> tuple[str, ...]:
    """Return the kinds of a prompt of a subset; most prompts have `MOST` constraints."""
    options = (*TRAINED_KINDS, *UNSEEN_KINDS) if subset == UNSEEN_KIND else TRAINED_KINDS
    while True:
        count = MOST if dice.chance(0.7) else 1 + int((MOST - 1) * dice.share())
        kinds = tuple(dice.sample(options, count))
        if not conflicting(kinds) and subset_of_kinds(kinds) == subset:
            return kinds


def sentences_of(topic: Topic, dice: Dice) -> tuple[str, ...]:
    """Return all sentences about a topic, in random order, some of them with an aside after a comma."""
    return tuple(
        template.format(noun=dice.pick(topic.nouns), adjective=dice.pick(topic.adjectives)).removesuffix(".")
        + (dice.pick(ASIDES) if dice.chance(0.25) else "")
        + "."
        for template in dice.sample(SENTENCES, len(SENTENCES))
    )


def _decide(request: Request, dice: Dice, *, faulty: bool) -> _Decisions:
    """Return the decisions of a writer, whose carelessness is drawn from U(0, 1)."""
    level = dice.share()
    fault: Fault = dice.pick(FAULTS) if faulty and dice.chance(0.4 * level) else ""
    topic = other_topic(request.topic) if fault == "off topic" else request.topic
    return _Decisions(
        topic=topic,
        sentences=sentences_of(topic, dice),
        size=2 + int(3 * dice.share()),
        kept=tuple(not dice.chance(0.35 + 0.5 * level) for _ in request.constraints),
        ways=tuple(dice.share() for _ in request.constraints),
        fault=fault,
    )


def _mix(mine: _Decisions, draft: _Decisions, dice: Dice) -> _Decisions:
    """Return each decision of the draft with probability `SHARED_DRAFT`, else that of `mine`."""

    def either(one: _T, shared: _T) -> _T:
        return shared if dice.chance(SHARED_DRAFT) else one

    return _Decisions(
        topic=draft.topic,
        sentences=either(mine.sentences, draft.sentences),
        size=either(mine.size, draft.size),
        kept=tuple(either(a, b) for a, b in zip(mine.kept, draft.kept, strict=True)),
        ways=tuple(either(a, b) for a, b in zip(mine.ways, draft.ways, strict=True)),
        fault="",
    )


# Five parameters: the decisions of a writer, without a fault.
def compose(
    request: Request,
    sentences: tuple[str, ...],
    count: int,
    kept: tuple[bool, ...],
    ways: tuple[float, ...],
) -> Draft:
    """Return a draft that holds exactly those constraints of a request that are to be kept.

    Args:
        request: the request.
        sentences: sentences about its topic.
        count: number of them that follow the first sentence of the form.
        kept: whether each constraint is held.
        ways: place in [0, 1) of the way in which each is held or broken.
    """
    first = FORMS[request.form].format(topic=request.topic.phrase)
    draft = Draft(request.topic, (first, *sentences[:count]), sentences[count:])
    edits = zip(request.constraints, kept, ways, strict=True)
    # The length is what remains to be set once all other parts are there.
    for constraint, keep, way in sorted(edits, key=lambda edit: edit[0].kind == "at most"):
        draft = constraint.keep(draft, way) if keep else constraint.violate(draft, way)
    return draft


def spoil(draft: Draft, fault: Fault) -> Draft:
    """Return the draft with its first sentence said twice, or with nothing but its topic named, by the fault."""
    if fault == "repeats":
        return replace(draft, sentences=(draft.sentences[0], *draft.sentences))
    if fault == "too short":
        return replace(draft, sentences=(f"{draft.topic.phrase.capitalize()}.",), extras=(), points=())
    return draft


def other_topic(topic: Topic) -> Topic:
    """Return the next topic of the list."""
    return TOPICS[(TOPICS.index(topic) + 1) % len(TOPICS)]


def _write(request: Request, decisions: _Decisions) -> str:
    topic, sentences, size, kept, ways, fault = decisions
    return spoil(compose(request._replace(topic=topic), sentences, size, kept, ways), fault).render()


def _pair(request: Request, coupled: bool, dice: Dice) -> tuple[str, str]:
    """Return two different answers."""
    while True:
        draft = _decide(request, dice, faulty=False) if coupled else None
        decisions = [_decide(request, dice, faulty=not coupled) for _ in range(2)]
        if draft is not None:
            decisions = [_mix(mine, draft, dice) for mine in decisions]
        first, second = (_write(request, choice) for choice in decisions)
        if first != second:
            return first, second


def prompt_at(seed: int, index: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, key: str = DEFAULT_KEY) -> str:
    """Return the prompt of row `index`."""
    return request_at(seed, index, fractions, key)[1]


def preference_at(
    seed: int, index: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, key: str = DEFAULT_KEY
) -> Preference:
    """Return row `index`, a function of the arguments alone. Its answers differ in quality.

    Args:
        seed: seed of the data set.
        index: index of the row.
        fractions: share of each fold; the prompt's fold decides whether the answers share a draft.
        key: key of the fold hash.
    """
    request, prompt = request_at(seed, index, fractions, key)
    coupled = fold_of(prompt, fractions, key) not in WIDE_FOLDS
    dice = Dice(seed, index, "instruct answers")
    while True:
        answers = _pair(request, coupled, dice)
        advantage = quality(prompt, answers[0]) - quality(prompt, answers[1])
        if advantage:
            return label(prompt, answers, advantage, dice, SHARPNESS)
