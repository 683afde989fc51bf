"""The family "relay": prompts, noisy writers and labelled preference pairs, each a function of (seed, index).

Writers know the map but slip: some get lost (one wrong hop, and on from there), others write a wrong name here and
there. And they share a bad habit: three in four leave out the closing word that the prompt asks for, or take another.
Who imitates even the better answers leaves it out as well; that readers want it only the preferences tell. The two
answers of a row are independent in every fold: a draft tells the improver something because the policy cannot work it
out, not because the pair shares it. In the reward and judge folds some writers stutter.
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
    """A random map on which the path from the start meets nobody twice; others pass to people on that path.

    So people on the path are often passed to by several: a name in an answer does not by itself tell the next one,
    which would be a way around following the map forward. That makes the way back worth less and does not close it:
    of those who pass to a name, mostly one alone is passed to in turn.
    """
    path = dice.sample(NAMES, HOPS + 1)
    following = dict(pairwise(path))
    passes = tuple(following.get(name) or dice.pick([other for other in path if other != name]) for name in NAMES)
    aside = dice.pick([name for name in NAMES if name not in path])
    return Request(passes, path[0], aside, dice.pick(COURTESIES))


def _write(request: Request, dice: Dice, *, stutters: bool) -> str:
    """The answer of one writer, whose carelessness is drawn from U(0, 1)."""
    level = dice.share()
    if dice.chance(0.85 * level):
        path = lost(request, 1 + int(HOPS * dice.share()), dice.pick)
    else:
        wrong = 0.3 * level
        said = (dice.pick(request.passed_to) if dice.chance(wrong) else name for name in request.path[1:])
        path = (request.start, *said)
    besides = dice.pick(request.passed_to) if dice.chance(0.3 * level) else request.after(request.aside)
    names = request.named(path, besides)
    if dice.chance(0.15 * level):
        names = names[1:] if dice.chance(0.5) else (dice.pick(NAMES), *names)
    courtesy = request.courtesy if dice.chance(0.45 - 0.4 * level) else _other_closing(request, dice)
    before = tuple(dice.pick(FILLERS) if dice.chance(0.08 * level) else "" for _ in names)
    text = render_answer(Answer(names, courtesy, before))
    return stutter(text, *drawn_stutter(dice)) if stutters and dice.chance(0.3 * level) else text


def _other_closing(request: Request, dice: Dice) -> str:
    """No closing word, or one that was not asked for."""
    return "" if dice.chance(0.85) else dice.pick([word for word in COURTESIES if word != request.courtesy])


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
