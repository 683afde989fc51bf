"""Synthetic instructions: prompts, noisy writers and labelled preference pairs, each a function of (seed, index).

A row's two answers are written by noisy writers. In the folds on which improvers are trained and evaluated the two
share a draft, so that the worse answer tells something about the better one (without that an improver has no reason
to read its reference). In the reward and judge folds they are independent, for wide contrasts, and some stutter: that
a policy repeats a word without end must not be news to its reward model. A pair is labelled by the hidden quality
through a logistic coin, as people's preferences are: noisily.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pit.data.atomic import new_folder
from pit.data.errors import DataError
from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY, fold_of
from pit.data.synthetic.oracle import quality
from pit.data.synthetic.words import (
    ATTRIBUTES,
    COURTESIES,
    FILLERS,
    NOUNS,
    Answer,
    Item,
    Request,
    render_answer,
    render_prompt,
    stutter,
)
from pit.types import Message, Preference

INDEPENDENT_FOLDS = frozenset({"reward", "judge"})
"""Folds whose two answers share no draft."""

SHARED_DRAFT = 0.85
"""Probability with which a coupled writer takes a decision from the shared draft."""

SHARPNESS = 20.0
"""Slope of the label's logistic coin per unit of quality."""

_T = TypeVar("_T")


class _Decisions(NamedTuple):
    """Everything a writer decides about one answer. Places are shares in [0, 1) of the places there are."""

    omit: tuple[bool, ...]
    value: tuple[str, ...]
    filler: tuple[str, ...]
    ranks: tuple[float, ...]
    extra: tuple[str, str, float] | None
    repeat: tuple[float, float] | None
    courtesy: str
    stutter: tuple[float, int] | None


class _Dice:
    """Draws built on `random.Random.random` alone, whose stream Python keeps stable between versions."""

    def __init__(self, seed: int, index: int, purpose: str) -> None:
        self.share = random.Random(f"{purpose}/{seed}/{index}").random

    def chance(self, probability: float) -> bool:
        return self.share() < probability

    def pick(self, options: Sequence[_T]) -> _T:
        return options[int(self.share() * len(options))]

    def sample(self, options: Sequence[_T], count: int) -> list[_T]:
        rest = list(options)
        return [rest.pop(int(self.share() * len(rest))) for _ in range(count)]


def _request(dice: _Dice) -> Request:
    given = [(name, dice.pick(ATTRIBUTES[name])) for name in dice.sample(list(ATTRIBUTES), 5)]
    asked = dice.sample([name for name, _ in given], 3 + dice.chance(0.5))
    return Request(tuple(given), dice.pick(NOUNS), tuple(asked), dice.pick(COURTESIES))


def _stutter(dice: _Dice) -> tuple[float, int]:
    """Where a writer repeats a word, half of the time the last one, and how often."""
    place, end = dice.share(), 1.0 - 2.0**-20
    return place if dice.chance(0.5) else end, 1 + int(6 * dice.share())


def _decide(request: Request, dice: _Dice, *, stutters: bool) -> _Decisions:
    """The decisions of one writer, whose carelessness is drawn from U(0, 1)."""
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
        stutter=_stutter(dice) if stutters and dice.chance(0.5 * level) else None,
    )


def _mix(own: _Decisions, draft: _Decisions, dice: _Dice) -> _Decisions:
    """Each decision of the draft with probability `SHARED_DRAFT`, else the writer's own."""

    def either(mine: _T, shared: _T) -> _T:
        return shared if dice.chance(SHARED_DRAFT) else mine

    return _Decisions(
        omit=tuple(either(a, b) for a, b in zip(own.omit, draft.omit, strict=True)),
        value=tuple(either(a, b) for a, b in zip(own.value, draft.value, strict=True)),
        filler=tuple(either(a, b) for a, b in zip(own.filler, draft.filler, strict=True)),
        ranks=either(own.ranks, draft.ranks),
        extra=either(own.extra, draft.extra),
        repeat=either(own.repeat, draft.repeat),
        courtesy=either(own.courtesy, draft.courtesy),
        stutter=either(own.stutter, draft.stutter),
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


def _pair(request: Request, coupled: bool, dice: _Dice) -> tuple[str, str]:
    """Two different answers, neither of them empty."""
    while True:
        draft = _decide(request, dice, stutters=False) if coupled else None
        decisions = [_decide(request, dice, stutters=not coupled) for _ in range(2)]
        if draft is not None:
            decisions = [_mix(own, draft, dice) for own in decisions]
        first, second = (_write(request, each) for each in decisions)
        if first and second and first != second:
            return first, second


def prompt_at(seed: int, index: int) -> str:
    """The prompt of row `index`."""
    return render_prompt(_request(_Dice(seed, index, "prompt")))


def preference_at(
    seed: int, index: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, key: str = DEFAULT_KEY
) -> Preference:
    """Row `index`: a function of its arguments and of nothing else.

    Args:
        seed: names the data set.
        index: row.
        fractions: share of each fold; the prompt's fold decides whether its answers share a draft.
        key: key of the fold hash.
    """
    request = _request(_Dice(seed, index, "prompt"))
    prompt = render_prompt(request)
    coupled = fold_of(prompt, fractions, key) not in INDEPENDENT_FOLDS
    dice = _Dice(seed, index, "answers")
    first, second = _pair(request, coupled, dice)
    margin = SHARPNESS * (quality(prompt, first) - quality(prompt, second))
    if not dice.chance(1 / (1 + math.exp(-margin))):
        first, second = second, first
    return Preference((Message("user", prompt),), first, second)


def generate(
    n: int, seed: int, *, start: int = 0, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, key: str = DEFAULT_KEY
) -> Iterator[Preference]:
    """Rows `start` to `start + n - 1` of the data set named by `seed`; see `preference_at`."""
    for index in range(start, start + n):
        yield preference_at(seed, index, fractions, key)


def generate_prompts(n: int, seed: int, *, start: int = 0) -> Iterator[str]:
    """The prompts of rows `start` to `start + n - 1`, without their answers."""
    for index in range(start, start + n):
        yield prompt_at(seed, index)


def write(
    out: str | Path,
    n: int,
    seed: int,
    *,
    shards: int = 1,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    key: str = DEFAULT_KEY,
) -> list[Path]:
    """Write `n` rows as JSONL with the columns prompt, chosen and rejected; the folder appears whole or not at all.

    Args:
        out: folder to make; it must be absent or empty.
        n: rows, at least 1.
        seed: names the data set.
        shards: files to spread the rows over, in order.
        fractions: share of each fold.
        key: key of the fold hash.

    Returns:
        The files, `train-00000-of-0000k.jsonl` onward.

    Raises:
        DataError: `out` holds something, or the counts are impossible.
    """
    if not 1 <= shards <= n:
        raise DataError(f"{n} rows in {shards} shards: rows and shards must be at least 1 and shards at most rows")
    names = [f"train-{shard:05d}-of-{shards:05d}.jsonl" for shard in range(shards)]
    with new_folder(out) as folder:
        for shard, name in enumerate(names):
            first, last = n * shard // shards, n * (shard + 1) // shards
            with (folder / name).open("w", encoding="utf-8") as file:
                for row in generate(last - first, seed, start=first, fractions=fractions, key=key):
                    record = {"prompt": row.prompt[0].content, "chosen": row.better, "rejected": row.worse}
                    file.write(json.dumps(record) + "\n")
    return [Path(out) / name for name in names]
