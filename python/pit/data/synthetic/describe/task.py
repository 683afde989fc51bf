"""The family "describe": prompts, noisy writers and labelled preference pairs, each a function of (seed, index).

Noisy writers write the two answers of a row. In the folds that train and evaluate improvers, the two share a draft, so
the worse answer is informative about the better one; without that an improver need not read its reference. In the
reward and judge folds they are independent, for wide contrasts, and some stutter, because the reward model of a policy
that repeats a word endlessly must know this fault. A logistic coin on the hidden quality labels a pair, as noisily as
people do.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY, fold_of
from pit.data.synthetic.describe.grammar import (
    ATTRIBUTES,
    NOUNS,
    Answer,
    Item,
    Request,
    render_answer,
    render_prompt,
)
from pit.data.synthetic.describe.oracle import quality
from pit.data.synthetic.shared import COURTESIES, FILLERS, WIDE_FOLDS, Dice, draw_stutter, label, stutter
from pit.types import Preference

SHARED_DRAFT = 0.85
"""Probability with which a coupled writer copies a decision from the shared draft."""

_T = TypeVar("_T")


class _Decisions(NamedTuple):
    """All decisions of a writer about an answer. Places are shares in [0, 1) of the possible places."""

    omit: tuple[bool, ...]
    value: tuple[str, ...]
    filler: tuple[str, ...]
    ranks: tuple[float, ...]
    extra: tuple[str, str, float] | None
    repeat: tuple[float, float] | None
    courtesy: str
    stutter: tuple[float, int] | None


def _request(dice: Dice) -> Request:
    given = [(name, dice.pick(ATTRIBUTES[name])) for name in dice.sample(list(ATTRIBUTES), 5)]
    asked = dice.sample([name for name, _ in given], 3 + dice.chance(0.5))
    return Request(tuple(given), dice.pick(NOUNS), tuple(asked), dice.pick(COURTESIES))


def _decide(request: Request, dice: Dice, *, stutters: bool) -> _Decisions:
    """Return the decisions of a writer, whose carelessness is drawn from U(0, 1)."""
    level = dice.share()
    truth = request.truth
    asked = request.asked
    values = []
    for name in asked:
        wrong = dice.pick([value for value in ATTRIBUTES[name] if value != truth[name]])
        values.append(wrong if dice.chance(0.6 * level) else truth[name])
    ranks = tuple(dice.share() for _ in asked)
    extra = dice.pick([name for name in ATTRIBUTES if name not in asked])
    extra_value = truth.get(extra) or dice.pick(ATTRIBUTES[extra])
    courtesy = request.courtesy
    bad = dice.pick([word for word in ("", *COURTESIES) if word != courtesy])
    return _Decisions(
        omit=tuple(dice.chance(0.45 * level) for _ in asked),
        value=tuple(values),
        filler=tuple(dice.pick(FILLERS) if dice.chance(0.5 * level) else "" for _ in asked),
        ranks=ranks if dice.chance(0.7 * level) else tuple(float(i) for i in range(len(asked))),
        extra=(extra, extra_value, dice.share()) if dice.chance(0.5 * level) else None,
        repeat=(dice.share(), dice.share()) if dice.chance(0.5 * level) else None,
        courtesy=bad if dice.chance(0.25 + 0.6 * level) else courtesy,
        stutter=draw_stutter(dice) if stutters and dice.chance(0.5 * level) else None,
    )


def _mix(mine: _Decisions, draft: _Decisions, dice: Dice) -> _Decisions:
    """Return each decision of the draft with probability `SHARED_DRAFT`, else that of `mine`."""

    def either(one: _T, shared: _T) -> _T:
        return shared if dice.chance(SHARED_DRAFT) else one

    return _Decisions(
        omit=tuple(either(a, b) for a, b in zip(mine.omit, draft.omit, strict=True)),
        value=tuple(either(a, b) for a, b in zip(mine.value, draft.value, strict=True)),
        filler=tuple(either(a, b) for a, b in zip(mine.filler, draft.filler, strict=True)),
        ranks=either(mine.ranks, draft.ranks),
        extra=either(mine.extra, draft.extra),
        repeat=either(mine.repeat, draft.repeat),
        courtesy=either(mine.courtesy, draft.courtesy),
        stutter=either(mine.stutter, draft.stutter),
    )


def _write(request: Request, decisions: _Decisions) -> str:
    order = sorted(range(len(request.asked)), key=decisions.ranks.__getitem__)
    items = [Item(request.asked[i], decisions.value[i], decisions.filler[i]) for i in order if not decisions.omit[i]]
    if decisions.extra:
        name, value, place = decisions.extra
        items.insert(int(place * (len(items) + 1)), Item(name, value))
    if decisions.repeat and items:
        source = int(decisions.repeat[0] * len(items))
        place = source + 1 + int(decisions.repeat[1] * (len(items) - source))
        items.insert(place, items[source]._replace(filler=""))
    text = render_answer(Answer(tuple(items), decisions.courtesy))
    return stutter(text, *decisions.stutter) if text and decisions.stutter else text


def _pair(request: Request, coupled: bool, dice: Dice) -> tuple[str, str]:
    """Return two different answers, neither of them empty."""
    while True:
        draft = _decide(request, dice, stutters=False) if coupled else None
        decisions = [_decide(request, dice, stutters=not coupled) for _ in range(2)]
        if draft is not None:
            decisions = [_mix(mine, draft, dice) for mine in decisions]
        first, second = (_write(request, choice) for choice in decisions)
        if first and second and first != second:
            return first, second


def prompt_at(seed: int, index: int) -> str:
    """Return the prompt of row `index`."""
    return render_prompt(_request(Dice(seed, index, "prompt")))


def preference_at(
    seed: int, index: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, key: str = DEFAULT_KEY
) -> Preference:
    """Return row `index`, a function of the arguments alone.

    Args:
        seed: seed of the data set.
        index: index of the row.
        fractions: share of each fold; the prompt's fold decides whether the answers share a draft.
        key: key of the fold hash.
    """
    request = _request(Dice(seed, index, "prompt"))
    prompt = render_prompt(request)
    coupled = fold_of(prompt, fractions, key) not in WIDE_FOLDS
    dice = Dice(seed, index, "answers")
    first, second = _pair(request, coupled, dice)
    return label(prompt, (first, second), quality(prompt, first) - quality(prompt, second), dice)
