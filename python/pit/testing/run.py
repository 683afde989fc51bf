"""A whole check: every applicable invariant over examples and data, as `pit check` and the pytest plugin run it.

`run_check` runs many invariants and shares the scores of their items; `check_exact` and `check_statistical` run one.
"""

import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pit.testing.budget import left_out, longest_text
from pit.testing.errors import CheckError, InvariantError, NondeterminismError
from pit.testing.invariants import ALL, Case, Direct, Exact, Invariant, Material, Statistical
from pit.testing.invariants.base import Scores
from pit.testing.questions import Row
from pit.testing.report import Report, Result, Status
from pit.testing.scorers import Item, Method, methods_of
from pit.testing.scoring import LEAST_ROWS, ItemScores, score_cases
from pit.testing.search import Timed, find_counterexample, format_example, save_example

GATES = ("well_formed", "deterministic", "rows_deterministic", "draws_deterministic")
"""Invariants that are checked first, in this order; if one is violated, the other exact ones are not checked."""

_EXACT_SHARE, _DEAR_SHARE = 0.3, 0.15
"""Shares of the time that exact invariants and dear figures have at least where there are others too."""


class Request(NamedTuple):
    """The settings of a check.

    model: MODEL, as the command line names it; reports and replay commands print it.
    data: name of the preferences in reports.
    examples: number of examples to try of each exact invariant.
    seed: seed of the search.
    failures: folder for counterexamples; None keeps none.
    options: further words of a replay command that name the model, such as its stage.
    seconds: time that the check may take; what it has no time for is left out, and notes say so. None for no limit.
    measured: number of rows, from the first on, that figures are of; None for as many as there is time for.
    """

    model: str
    data: str
    examples: int = 30
    seed: int = 0
    failures: Path | None = None
    options: tuple[str, ...] = ()
    seconds: float | None = None
    measured: int | None = None


def cases_of(rows: Sequence[Row], where: str = "the data") -> list[Case]:
    """Return pairs and questions as cases, each with an answer to another prompt.

    Args:
        rows: the pairs and questions.
        where: name of the data in messages.

    Raises:
        CheckError: there are fewer than two pairs, or all have the same prompt.
    """
    others = [
        next((r.better for r in (*rows[i + 1 :], *rows[:i]) if r.prompt != row.prompt), None)
        for i, row in enumerate(rows)
    ]
    if len(rows) < 2 or any(other is None for other in others):
        raise CheckError(
            f"{where}: holds {len(rows)} pairs, must hold at least 2 with different prompts; give rows with a prompt, "
            "a better and a worse answer (columns prompt, chosen, rejected), or check exact invariants only "
            "(--invariant exact)"
        )
    return [Case.of(row, other or "", i) for i, (row, other) in enumerate(zip(rows, others, strict=True))]


def _cut_answers(scorer: Any, rows: Sequence[Row]) -> list[str]:
    """Return a line if a served model does not read all of the answers of the data."""
    if Method.TOKENS not in methods_of(scorer) or scorer.facts.max_length is None or not rows:
        return []
    limit = scorer.facts.max_length
    texts = [(row.prompt, answer) for row in rows for answer in (row.better, row.worse)]
    lengths = map(len, scorer.tokens(*map(list, zip(*texts, strict=True))))
    cut = sum(length >= limit for length in lengths)
    return [f"{cut} of {len(texts)} texts reach the limit of {limit} tokens, after which the model reads nothing"]


def digest_of(rows: Sequence[Row]) -> str:
    """Return a hex digest of some rows, so that reports of the same rows are known."""
    content = json.dumps([list(row) for row in rows], ensure_ascii=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def select(names: Sequence[str]) -> tuple[Invariant, ...]:
    """Return the invariants with the given names or kinds, or all if none are given.

    Raises:
        CheckError: a name is neither a name nor a kind.

    >>> [invariant.name for invariant in select(["batch_size", "directional"])]
    ['batch_size', 'half_is_worse', 'mixed_is_worse']
    """
    known = {invariant.name for invariant in ALL} | {invariant.kind for invariant in ALL}
    for name in names:
        if name not in known:
            kinds = ", ".join(dict.fromkeys(invariant.kind for invariant in ALL))
            raise CheckError(
                f"--invariant {name}: does not exist; give a kind ({kinds}) or a name "
                f"({', '.join(invariant.name for invariant in ALL)})"
            )
    return tuple(i for i in ALL if not names or i.name in names or i.kind in names)


def run_check(
    scorer: Any,
    rows: Sequence[Row],
    request: Request,
    *,
    invariants: Sequence[Invariant] = ALL,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Check a scorer.

    Args:
        scorer: an object with a method of `pit.testing.scorers.Method`.
        rows: preferences; exact invariants use their texts in examples, statistical ones are measured on them.
        request: the settings.
        invariants: the invariants to check.
        progress: function that is called with a description of each step.

    Raises:
        CheckError: the scorer has none of the methods, or there are too few pairs for a statistical invariant.

    >>> from pit.testing.adapters import GapFunction
    >>> scorer = GapFunction(lambda xs, ys, refs: np.array([len(y) - len(r) for y, r in zip(ys, refs)], np.float32))
    >>> report = run_check(scorer, [], Request("by_length", "no data", examples=5), invariants=select(["batch_size"]))
    >>> [(result.name, result.status.value) for result in report.results]
    [('batch_size', 'held')]
    """
    if not methods_of(scorer):
        raise CheckError(
            f"{request.model}: is not a scorer, it has none of the methods "
            f"{', '.join(method.value for method in Method)}; wrap a function with pit.testing.adapters.as_scorer"
        )
    begin = time.perf_counter()
    statistical = [invariant for invariant in invariants if isinstance(invariant, Statistical)]
    figures = any(i.applicable(scorer) for i in statistical)
    cases = cases_of(rows, request.data)[: request.measured] if figures else []
    ends = math.inf if request.seconds is None else begin + request.seconds
    exact = any(isinstance(i, Exact) and i.applicable(scorer) for i in invariants)
    # Figures have an end, and a search has none: it gets what they leave.
    reserve = _EXACT_SHARE * request.seconds if exact and request.seconds is not None else 0.0
    results, count = _measure_all(statistical, scorer, cases, request, ends - reserve, progress)
    material = Material(scorer, rows, longest_text(scorer, request.seconds))
    results |= _exact_all(invariants, material, request, ends, progress)
    for direct in (invariant for invariant in invariants if isinstance(invariant, Direct)):
        progress(direct.name)
        results[direct.name] = check_direct(direct, scorer, request)
    ordered = tuple(results[invariant.name] for invariant in invariants)
    seconds = time.perf_counter() - begin
    rows = rows[:count] if figures else rows
    notes = (
        *getattr(scorer, "notes", ()),
        *left_out(ordered, request.examples, count, len(cases)),
        *_cut_answers(scorer, rows),
    )
    return Report(request.model, request.data, request.seed, ordered, seconds, len(rows), digest_of(rows), notes)


def _exact_all(
    invariants: Sequence[Invariant],
    material: Material,
    request: Request,
    ends: float,
    progress: Callable[[str], None],
) -> dict[str, Result]:
    """Return the results of the exact invariants, which share the time that is left."""
    results: dict[str, Result] = {}
    gate = ""
    exact = [invariant for invariant in invariants if isinstance(invariant, Exact)]
    exact.sort(key=lambda i: GATES.index(i.name) if i.name in GATES else len(GATES))
    waiting = [invariant.name for invariant in exact if invariant.applicable(material.scorer)]
    for invariant in exact:
        now = time.perf_counter()
        progress(f"{invariant.name}, {len(waiting)} exact invariants left")
        share = max(0.0, ends - now) / max(1, len(waiting))
        results[invariant.name] = _exact(invariant, material, request, gate, now + share)
        if invariant.name in waiting:
            waiting.remove(invariant.name)
        if invariant.name in GATES and results[invariant.name].status == Status.VIOLATED:
            gate = f"{invariant.name} is violated"
    return results


def check_exact(invariant: Exact, material: Material, request: Request) -> Result:
    """Search for a counterexample of one exact invariant and return the result."""
    return _exact(invariant, material, request, "", math.inf)


def check_statistical(
    invariant: Statistical, scorer: Any, rows: Sequence[Row], request: Request, scores: ItemScores | None = None
) -> Result:
    """Measure one statistical invariant and return the result.

    Args:
        invariant: an invariant that is applicable to the scorer.
        scorer: the scorer.
        rows: the preferences.
        request: the settings.
        scores: scores of the same scorer from earlier calls, which are used; new scores are added.

    Raises:
        CheckError: there are too few pairs.
    """
    scores = ItemScores(scorer) if scores is None else scores
    cases = [case for case in cases_of(rows, request.data) if invariant.usable(case)]
    items = [invariant.items(case) for case in cases]
    try:
        scores.add(item for row in items for item in row)
    except InvariantError as violation:
        return _failed(invariant, violation)
    return _measured(invariant, cases, items, scores, request)


def check_direct(invariant: Direct, scorer: Any, request: Request) -> Result:
    """Measure a figure that needs no data and return the result."""
    if not invariant.applicable(scorer):
        return _not_applicable(invariant, scorer)
    begin = time.perf_counter()
    try:
        measurement = invariant.measure(scorer, request.seed)
    except InvariantError as violation:
        return _failed(invariant, violation)
    return _result(
        invariant,
        Status.MEASURED,
        detail=measurement.note,
        examples=measurement.interval.n,
        interval=measurement.interval,
        ideal=invariant.ideal,
        table=measurement.table,
        seconds=time.perf_counter() - begin,
    )


def _result(invariant: Invariant, status: Status, **more: Any) -> Result:
    return Result(invariant.name, invariant.kind, invariant.statement, invariant.source, status, **more)


def _not_applicable(invariant: Invariant, scorer: Any) -> Result:
    return _result(invariant, Status.NOT_APPLICABLE, detail=f"needs {invariant.missing(scorer)}")


def _failed(invariant: Invariant, violation: InvariantError) -> Result:
    return _result(invariant, Status.VIOLATED, detail=f"{violation.fault}: {violation}")


def _exact(invariant: Exact, material: Material, request: Request, gate: str, ends: float) -> Result:
    if not invariant.applicable(material.scorer):
        return _not_applicable(invariant, material.scorer)
    if gate:
        return _result(invariant, Status.NOT_CHECKED, detail=gate)
    begin, timed = time.perf_counter(), Timed(invariant, ends)
    counterexample = find_counterexample(timed, material, examples=request.examples, seed=request.seed)
    seconds = time.perf_counter() - begin
    if counterexample is None:
        tried = max(0, timed.tried - len(invariant.always())) if timed.cut else request.examples
        return _result(invariant, Status.HELD, examples=tried, seconds=seconds)
    fault = counterexample.fault
    if invariant.name in GATES[1:] and fault == InvariantError.fault:
        fault = NondeterminismError.fault
    return _result(
        invariant,
        Status.VIOLATED,
        detail=f"{fault}: {counterexample.message}",
        counterexample=format_example(counterexample.example),
        replay=_keep(invariant, counterexample.example, request),
        seconds=seconds,
    )


def _keep(invariant: Invariant, example: Any, request: Request) -> str:
    """Save an example if the request has a folder for it, and return the command that checks it again."""
    if request.failures is None:
        return ""
    path = request.failures / f"{invariant.name}.json"
    save_example(path, invariant, example)
    return shlex.join(["pit", "check", request.model, *request.options, "--replay", str(path)])


# Six parameters: those of the check, and the time at which it ends.
def _measure_all(
    invariants: Sequence[Statistical],
    scorer: Any,
    cases: Sequence[Case],
    request: Request,
    ends: float,
    progress: Callable[[str], None],
) -> tuple[dict[str, Result], int]:
    """Return the results of the statistical invariants, and the number of rows that they are of."""
    results = {i.name: _not_applicable(i, scorer) for i in invariants if not i.applicable(scorer)}
    applicable = {i.name: i for i in invariants if i.applicable(scorer)}
    scores, count = ItemScores(scorer), len(cases)
    reserve = 0.0 if request.seconds is None else _DEAR_SHARE * request.seconds
    for dear in (False, True):
        chosen = {name: i for name, i in applicable.items() if i.dear == dear}
        of_rows = cases[:count]
        items = [[item for i in chosen.values() if i.usable(case) for item in i.items(case)] for case in of_rows]
        try:
            done = score_cases(
                scores, items, ends - (0.0 if dear else reserve), progress, least=1 if dear else LEAST_ROWS
            )
        except InvariantError as violation:
            return results | {name: _failed(i, violation) for name, i in applicable.items()}, count
        for name, invariant in chosen.items():
            usable = [case for case in of_rows[:done] if invariant.usable(case)]
            of_each = [invariant.items(case) for case in usable]
            results[name] = _measured(invariant, usable, of_each, scores, request)
        count = count if dear else done
    return results, count


def _measured(
    invariant: Statistical,
    cases: Sequence[Case],
    items: Sequence[Sequence[Item]],
    scores: ItemScores,
    request: Request,
) -> Result:
    """Return the result of a statistical invariant; `items` holds the items of each case."""
    if not cases:
        return _result(invariant, Status.NOT_APPLICABLE, detail="no case of the data is usable for it")
    measurement = invariant.measure(cases, _table_of(items, scores))
    worst = int(np.argmin(measurement.margins))
    failed = bool(measurement.margins[worst] < 0)
    floor = invariant.floor if measurement.floor is None else measurement.floor
    result = _result(
        invariant,
        Status.MEASURED,
        examples=len(cases),
        interval=measurement.interval,
        floor=floor,
        ideal=invariant.ideal,
        table=measurement.table,
        counterexample=_scored_items(items[worst], scores) if failed else "",
    )
    if floor is None:
        return result
    interval = measurement.interval
    place = "above" if interval.low > floor else "below" if result.below_floor else "not distinguishable from"
    replay = _keep(invariant, cases[worst], request) if failed and result.below_floor else ""
    note = f"; {measurement.note}" if measurement.note else ""
    return replace(result, detail=f"{place} {floor:.4g}{note}", replay=replay)


def _table_of(items: Sequence[Sequence[Item]], scores: ItemScores) -> Scores:
    """Return the scores of the items of each case, with NaN after its last one."""
    table = np.full((len(items), max(map(len, items))), np.nan)
    for row, of_case in zip(table, items, strict=True):
        row[: len(of_case)] = [scores[item] for item in of_case]
    return table


def _scored_items(items: Sequence[Item], scores: ItemScores) -> str:
    """Return the items of one case, which share a prompt, and their scores as text."""
    lines = [f"  {role}: {content!r}" for role, content in items[0].prompt]
    lines += [f"  {scores[item]:+.4g} for {item.output!r} over {item.reference!r}" for item in items]
    return "\n".join(lines)
