"""The family "relay": prompts, noisy writers and labelled preference pairs, each a function of (seed, index).

Writers know the map but slip: some get lost (one wrong hop, and on from there), others write a wrong name here and
there. The two answers of a row are independent in every fold: a draft tells the improver something because the policy
cannot work it out, not because the pair shares it. In the reward and judge folds some writers stutter.
"""

from collections.abc import Mapping
from itertools import pairwise

from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY, fold_of
from pit.data.synthetic.relay.corruptions import lost
from pit.data.synthetic.relay.oracle import quality
from pit.data.synthetic.relay.words import HOPS, NAMES, Answer, Request, render_answer, render_prompt
from pit.data.synthetic.shared import COURTESIES, FILLERS, WIDE_FOLDS, Dice, drawn_stutter, labelled, stutter
from pit.types import Preference


def _request(dice: Dice) -> Request:
    """A random map on which the path from the start meets nobody twice; others pass to anyone but themselves."""
    path = dice.sample(NAMES, HOPS + 1)
    following = dict(pairwise(path))
    for name in NAMES:
        if name not in following:
            following[name] = dice.pick([other for other in NAMES if other != name])
    passes = tuple((name, following[name]) for name in dice.sample(NAMES, len(NAMES)))
    return Request(passes, path[0], dice.pick(COURTESIES))


def _write(request: Request, dice: Dice, *, stutters: bool) -> str:
    """The answer of one writer, whose carelessness is drawn from U(0, 1)."""
    level = dice.share()
    if dice.chance(0.85 * level):
        path = lost(request, 1 + int(HOPS * dice.share()), dice.pick)
    else:
        wrong = 0.3 * level
        path = (request.start, *(dice.pick(NAMES) if dice.chance(wrong) else name for name in request.path[1:]))
    names = path[::-1]
    if dice.chance(0.15 * level):
        names = names[1:] if dice.chance(0.5) else (dice.pick(NAMES), *names)
    bad = dice.pick([word for word in ("", *COURTESIES) if word != request.courtesy])
    courtesy = bad if dice.chance(0.1 + 0.4 * level) else request.courtesy
    before = tuple(dice.pick(FILLERS) if dice.chance(0.25 * level) else "" for _ in names)
    text = render_answer(Answer(names, courtesy, before))
    return stutter(text, *drawn_stutter(dice)) if stutters and dice.chance(0.3 * level) else text


def prompt_at(seed: int, index: int) -> str:
    """The prompt of row `index`."""
    return render_prompt(_request(Dice(seed, index, "relay prompt")))


def preference_at(
    seed: int, index: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, key: str = DEFAULT_KEY
) -> Preference:
    """Row `index`: a function of its arguments and of nothing else.

    Args:
        seed: names the data set.
        index: row.
        fractions: share of each fold; the prompt's fold decides whether some writers stutter.
        key: key of the fold hash.
    """
    request, dice = _request(Dice(seed, index, "relay prompt")), Dice(seed, index, "relay answers")
    prompt = render_prompt(request)
    wide = fold_of(prompt, fractions, key) in WIDE_FOLDS
    while True:
        first, second = (_write(request, dice, stutters=wide) for _ in range(2))
        if first != second:
            return labelled(prompt, (first, second), quality(prompt, first) - quality(prompt, second), dice)
