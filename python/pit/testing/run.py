"""A whole check: every invariant that applies, over examples and data; what `pit check` and the pytest plugin run."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pit.testing.faults import CheckError, Random, Violation
from pit.testing.invariants import ALL, Case, Exact, Invariant, Material, Statistical
from pit.testing.report import Report, Result, Status
from pit.testing.scorers import Item, Level, gaps, levels_of
from pit.testing.search import readable, save, search
from pit.types import Preference

GATES = ("well_formed", "deterministic", "rows_deterministic", "draws_deterministic")
"""Checked first, in this order: of a scorer that fails or is random nothing else that is exact can be judged."""

_AT_ONCE = 256
"""Questions of a call, so that progress is seen."""


class Request(NamedTuple):
    """What is to be checked.

    model, data: what reports call the scorer and the preferences.
    examples: examples tried of each exact invariant.
    seed: of the search.
    failures: folder for counterexamples, none to keep none.
    """

    model: str
    data: str
    examples: int = 30
    seed: int = 0
    failures: Path | None = None


def cases_of(rows: Sequence[Preference], where: str = "the data") -> list[Case]:
    """Preferences as cases, each with an answer to another prompt.

    Raises:
        CheckError: there are no pairs, or all are of one prompt.
    """
    others = [
        next((r.better for r in (*rows[i + 1 :], *rows[:i]) if r.prompt != row.prompt), None)
        for i, row in enumerate(rows)
    ]
    if len(rows) < 2 or any(other is None for other in others):
        raise CheckError(
            f"{where}: holds {len(rows)} pairs, and a check needs at least 2 with different prompts; give preferences "
            "with a prompt, a better and a worse answer (columns prompt, chosen, rejected), or ask for exact "
            "invariants alone (--invariant exact)"
        )
    return [
        Case(row.prompt, row.better, row.worse, other or "", i)
        for i, (row, other) in enumerate(zip(rows, others, strict=True))
    ]


def select(names: Sequence[str]) -> tuple[Invariant, ...]:
    """Invariants by name or kind, all if none are named.

    Raises:
        CheckError: there is none of a name.
    """
    chosen = tuple(each for each in ALL if not names or each.name in names or each.kind in names)
    known = {each.name for each in ALL} | {each.kind for each in ALL}
    for name in names:
        if name not in known:
            kinds = ", ".join(dict.fromkeys(each.kind for each in ALL))
            raise CheckError(
                f"invariant {name!r}: there is none of that name or kind; kinds are {kinds}, names are "
                f"{', '.join(each.name for each in ALL)}"
            )
    return chosen


def run_check(
    scorer: Any,
    rows: Sequence[Preference],
    request: Request,
    *,
    invariants: Sequence[Invariant] = ALL,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Check a scorer.

    Args:
        scorer: anything with a level of `pit.testing.scorers`.
        rows: preferences; exact invariants draw examples from them too, statistical ones are measured on them.
        request: how much, and what to call it.
        invariants: what to check.
        progress: told the name of what is being done.

    Raises:
        CheckError: the scorer has no level, or statistical invariants have too few pairs.
    """
    if not levels_of(scorer):
        raise CheckError(
            f"{request.model}: is no scorer, it has none of the methods {', '.join(level.value for level in Level)}; "
            "wrap a function with pit.testing.adapters.GapFunction or Difference"
        )
    begin = time.perf_counter()
    statistical = [each for each in invariants if isinstance(each, Statistical)]
    cases = cases_of(rows, request.data) if any(each.applicable(scorer) for each in statistical) else []
    results: dict[str, Result] = {}
    material = Material(scorer, rows)
    gate = ""
    exact = [each for each in invariants if isinstance(each, Exact)]
    for each in sorted(exact, key=lambda each: GATES.index(each.name) if each.name in GATES else len(GATES)):
        progress(each.name)
        results[each.name] = _exact(each, material, request, gate)
        if each.name in GATES and results[each.name].status == Status.VIOLATED:
            gate = f"{each.name} is violated"
    results |= _measure_all(statistical, scorer, cases, request, progress)
    ordered = tuple(results[each.name] for each in invariants)
    return Report(request.model, request.data, request.seed, ordered, time.perf_counter() - begin)


def check_exact(invariant: Exact, material: Material, request: Request) -> Result:
    """Search one exact invariant."""
    return _exact(invariant, material, request, "")


def _result(invariant: Invariant, status: Status, **more: Any) -> Result:
    return Result(invariant.name, invariant.kind, invariant.statement, invariant.source, status, **more)


def _not_applicable(invariant: Invariant, scorer: Any) -> Result:
    return _result(invariant, Status.NOT_APPLICABLE, detail=f"needs {invariant.missing(scorer)}")


def _exact(invariant: Exact, material: Material, request: Request, gate: str) -> Result:
    if not invariant.applicable(material.scorer):
        return _not_applicable(invariant, material.scorer)
    if gate:
        return _result(invariant, Status.NOT_JUDGED, detail=gate)
    begin = time.perf_counter()
    found = search(invariant, material, examples=request.examples, seed=request.seed)
    seconds = time.perf_counter() - begin
    if found is None:
        return _result(invariant, Status.HELD, examples=request.examples, seconds=seconds)
    fault = found.fault
    if invariant.name in GATES[1:] and fault == Violation.fault:
        fault = Random.fault
    return _result(
        invariant,
        Status.VIOLATED,
        detail=f"{fault}: {found.message}",
        counterexample=readable(found.example),
        replay=_keep(invariant, found.example, request),
        seconds=seconds,
    )


def _keep(invariant: Invariant, example: Any, request: Request) -> str:
    """Save an example if asked to; the command that checks it again."""
    if request.failures is None:
        return ""
    path = request.failures / f"{invariant.name}.json"
    save(path, invariant, example)
    return f"pit check {shlex.quote(request.model)} --replay {shlex.quote(str(path))}"


def ask_all(
    scorer: Any, items: Sequence[Item], progress: Callable[[str], None] = lambda text: None
) -> dict[Item, float]:
    """Scores of questions, each asked once.

    Raises:
        Violation: the scorer fails.
    """
    distinct = list(dict.fromkeys(items))
    scores: dict[Item, float] = {}
    for first in range(0, len(distinct), _AT_ONCE):
        piece = distinct[first : first + _AT_ONCE]
        scores.update(zip(piece, map(float, gaps(scorer, piece)), strict=True))
        progress(f"questions {len(scores)} of {len(distinct)}")
    return scores


def check_statistical(
    invariant: Statistical, scorer: Any, rows: Sequence[Preference], request: Request, answers: dict[Item, float]
) -> Result:
    """Measure one statistical invariant; `answers` keeps what was asked, for others to use."""
    cases = [case for case in cases_of(rows, request.data) if invariant.usable(case)]
    questions = [invariant.questions(case) for case in cases]
    try:
        answers.update(ask_all(scorer, [item for row in questions for item in row if item not in answers]))
    except Violation as violation:
        return _failed(invariant, violation)
    return measured(invariant, cases, questions, answers, request)


def _measure_all(
    invariants: Sequence[Statistical],
    scorer: Any,
    cases: Sequence[Case],
    request: Request,
    progress: Callable[[str], None],
) -> dict[str, Result]:
    results = {each.name: _not_applicable(each, scorer) for each in invariants if not each.applicable(scorer)}
    asked = {each.name: each for each in invariants if each.applicable(scorer)}
    usable = {name: [case for case in cases if each.usable(case)] for name, each in asked.items()}
    questions = {name: [each.questions(case) for case in usable[name]] for name, each in asked.items()}
    items = [item for rows in questions.values() for row in rows for item in row]
    try:
        scores = ask_all(scorer, items, progress)
    except Violation as violation:
        return results | {name: _failed(each, violation) for name, each in asked.items()}
    for name, each in asked.items():
        results[name] = measured(each, usable[name], questions[name], scores, request)
    return results


def _asked(questions: Sequence[Item], scores: Mapping[Item, float]) -> str:
    """What was asked of a case and answered; all its questions have one prompt."""
    lines = [f"  {role}: {content!r}" for role, content in questions[0].prompt]
    lines += [f"  {scores[item]:+.4g} for {item.output!r} over {item.reference!r}" for item in questions]
    return "\n".join(lines)


def _failed(invariant: Invariant, violation: Violation) -> Result:
    return _result(invariant, Status.VIOLATED, detail=f"{violation.fault}: {violation}")


def measured(
    invariant: Statistical,
    cases: Sequence[Case],
    questions: Sequence[Sequence[Item]],
    scores: Mapping[Item, float],
    request: Request,
) -> Result:
    """The result of one statistical invariant whose questions, those of each case, are answered."""
    if not cases:
        return _result(invariant, Status.NOT_APPLICABLE, detail="no case of the data says anything about it")
    finding = invariant.measure(cases, np.array([[scores[item] for item in row] for row in questions], np.float64))
    worst = int(np.argmin(finding.margins))
    failed = bool(finding.margins[worst] < 0)
    result = _result(
        invariant,
        Status.MEASURED,
        examples=len(cases),
        interval=finding.interval,
        floor=invariant.floor,
        table=finding.table,
        counterexample=_asked(questions[worst], scores) if failed else "",
    )
    if invariant.floor is None:
        return result
    interval, floor = finding.interval, invariant.floor
    place = "above" if interval.low > floor else "below" if result.below_floor else "not told from"
    replay = _keep(invariant, cases[worst], request) if failed and result.below_floor else ""
    return replace(result, detail=f"{place} {floor:g}", replay=replay)
