"""The family "relay": prompts, noisy writers and labelled preference pairs, each a function of (seed, index).

Writers know the map but make errors: some err at one pass and follow the map from there, and a name that opens a pair
may be wrong. They also share a bad habit: most close with a word that no prompt asks for, so models that imitate even
the better answers do the same, and only the preferences say that readers mind. The two answers of a row are independent
in every fold: a draft is informative because the policy cannot compute the whole chain, not because the pair shares it.
In the reward and judge folds some writers stutter.
"""

from collections.abc import Mapping
from itertools import pairwise

from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY, fold_of
from pit.data.synthetic.relay.corruptions import wrong_route
from pit.data.synthetic.relay.grammar import (
    HABIT,
    NAMES,
    PASSES,
    Answer,
    Request,
    answer_order,
    render_answer,
    render_prompt,
)
from pit.data.synthetic.relay.oracle import quality
from pit.data.synthetic.shared import COURTESIES, FILLERS, WIDE_FOLDS, Dice, draw_stutter, label, stutter
from pit.types import Preference

LOST = 0.6
"""Probability that the most careless writer errs at a pass and follows the map from there."""

SLIP = 0.4
"""Probability, for each name that opens a pair, that the most careless writer names another; not for the starter."""


def _request(dice: Dice) -> Request:
    """Return a random map on which the `PASSES` passes from the start meet nobody twice; others pass to anybody."""
    path = dice.sample(NAMES, PASSES + 1)
    following = dict(pairwise(path))
    passes = tuple(following.get(name) or dice.pick([other for other in NAMES if other != name]) for name in NAMES)
    return Request(passes, path[0], dice.pick(COURTESIES))


def _write(request: Request, dice: Dice, *, stutters: bool) -> str:
    """Return the answer of a writer, whose carelessness is drawn from U(0, 1)."""
    level = dice.share()
    route = list(request.route)
    if dice.chance(LOST * level):
        route = list(wrong_route(request, 1 + int(PASSES * dice.share()), dice.pick))
    # These open the pairs: they are written before the name from which they follow.
    for number in range(2, PASSES, 2):
        if dice.chance(SLIP * level):
            route[number] = dice.pick(request.passed_to)
    names = answer_order(route)
    if dice.chance(0.1 * level):
        names = (*names, dice.pick(NAMES))
    courtesy = request.courtesy if dice.chance(0.45 - 0.4 * level) else _other_closing(request, dice)
    before = tuple(dice.pick(FILLERS) if dice.chance(0.04 * level) else "" for _ in names)
    text = render_answer(Answer(names, courtesy, before))
    return stutter(text, *draw_stutter(dice)) if stutters and dice.chance(0.2 * level) else text


def _other_closing(request: Request, dice: Dice) -> str:
    """Return `HABIT`, or sometimes a closing that another prompt would ask for."""
    return HABIT if dice.chance(0.75) else dice.pick([word for word in COURTESIES if word != request.courtesy])


def prompt_at(seed: int, index: int) -> str:
    """Return the prompt of row `index`."""
    return render_prompt(_request(Dice(seed, index, "relay prompt")))


def preference_at(
    seed: int, index: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, key: str = DEFAULT_KEY
) -> Preference:
    """Return row `index`, a function of the arguments alone.

    Args:
        seed: seed of the data set.
        index: index of the row.
        fractions: share of each fold; the prompt's fold decides whether some writers stutter.
        key: key of the fold hash.
    """
    request, dice = _request(Dice(seed, index, "relay prompt")), Dice(seed, index, "relay answers")
    prompt = render_prompt(request)
    wide = fold_of(prompt, fractions, key) in WIDE_FOLDS
    while True:
        first, second = (_write(request, dice, stutters=wide) for _ in range(2))
        if first != second:
            return label(prompt, (first, second), quality(prompt, first) - quality(prompt, second), dice)
