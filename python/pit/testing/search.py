"""The search for a counterexample of an exact invariant, and the file that replays one.

Hypothesis searches and shrinks; a saved example is JSON and does not depend on Hypothesis's version.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import example as fixed_example
from hypothesis import seed as with_seed

from pit.atomic import write_file
from pit.testing.errors import CheckError, InvariantError, NondeterminismError
from pit.testing.invariants.base import Case, Exact, Invariant, Material
from pit.testing.invariants.draws import DrawCall
from pit.testing.scorers import Item
from pit.testing.strategies.trees import Forest
from pit.types import Message


class Counterexample(NamedTuple):
    """An example that violates an invariant, the short name of the fault, and the message of the check."""

    example: Any
    fault: str
    message: str


class Timed:
    """An exact invariant that is checked until a time; at least one example is.

    After that time examples pass unseen, so that search and shrinking end, but for the last counterexample.

    Args:
        invariant: the invariant.
        ends: time of the clock.
        clock: returns the time in seconds.

    Attributes:
        tried: number of examples that were checked.
        cut: whether there was no time for some.
    """

    def __init__(self, invariant: Exact, ends: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.examples, self.always, self._check = invariant.examples, invariant.always, invariant.check
        self.tried, self.cut, self._ends, self._clock = 0, False, ends, clock
        self._failed: tuple[Any, InvariantError] | None = None

    def check(self, scorer: Any, example: Any) -> None:
        """Check one example if there is time.

        Raises:
            InvariantError: the invariant does not hold on it.
        """
        if self.tried and self._clock() > self._ends:
            self.cut = True
            if self._failed is not None and self._failed[0] == example:
                raise self._failed[1]
            return
        self.tried += 1
        try:
            self._check(scorer, example)
        except InvariantError as violation:
            self._failed = example, violation
            raise


def find_counterexample(
    invariant: Exact | Timed, material: Material, *, examples: int, seed: int, shrink: bool = True
) -> Counterexample | None:
    """Search for a counterexample; return None if all examples pass.

    Args:
        invariant: the invariant to check.
        material: the scorer, and data to make examples from.
        examples: number of examples to try.
        seed: seed of Hypothesis; the same seed tries the same examples.
        shrink: whether to look for the smallest counterexample, or to return the first.
    """
    last: list[Any] = []

    @with_seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])),
        report_multiple_bugs=False,
    )
    @given(invariant.examples(material))
    def attempt(example: Any) -> None:
        last[:] = [example]
        invariant.check(material.scorer, example)

    for fixed in reversed(invariant.always()):
        attempt = fixed_example(fixed)(attempt)
    random = NondeterminismError.fault
    try:
        attempt()
    except InvariantError as violation:
        return Counterexample(last[0], violation.fault, str(violation))
    except BaseExceptionGroup as group:
        # Hypothesis replays the smallest example, on which a random scorer may fail in another way, or not at all.
        return Counterexample(last[0], random, f"fails in more than one way: {group.exceptions[0]}")
    except Exception as error:
        if type(error).__name__ not in ("Flaky", "FlakyFailure", "FlakyReplay"):
            raise
        return Counterexample(last[0], random, "failed once and passed when it was repeated")
    return None


def format_example(example: Any) -> str:
    r"""Return an example of any invariant as text for a person.

    >>> format_example((Item((Message("user", "Why?"),), "a\nb", ""),))
    "  user: 'Why?'\n  output: 'a\\nb'\n  reference: ''"
    """
    if isinstance(example, Forest):
        rows = [f"  {name}: {list(column)}" for name, column in enumerate(map(list, example.columns))]
        return "\n".join([f"{example.trees} trees {example.topology.name}; columns of content tokens:", *rows])
    if isinstance(example, Case):
        example = tuple(Item(example.prompt, good, bad) for good in example.good for bad in example.bad)
    if isinstance(example, DrawCall):
        prompts = "\n".join(f"  prompt: {list(prompt)}" for prompt in example.prompts)
        filters = "".join(f", {name} {number}" for name, number in example.filters)
        return f"temperature {example.temperature}{filters}, seed {example.seed}; content tokens:\n{prompts}"
    lines = []
    for item in example:
        lines += [f"  {role}: {content!r}" for role, content in item.prompt]
        lines += [f"  output: {item.output!r}", f"  reference: {item.reference!r}"]
    return "\n".join(lines)


def save_example(path: Path, invariant: Invariant, example: Any) -> None:
    """Write an example to a file that `pit check MODEL --replay FILE` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"invariant": invariant.name, **_plain(example)}
    write_file(path, (json.dumps(record, ensure_ascii=True, indent=1) + "\n").encode())


def load_example(path: Path) -> tuple[str, Any]:
    """Read the name of the invariant and the example from a saved file.

    Raises:
        CheckError: the file cannot be read or does not hold an example.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return str(record["invariant"]), _EXAMPLES[record["kind"]](record["example"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckError(
            f"--replay {path}: does not hold a saved example ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); give a file that "
            "`pit check` wrote to its --failures folder"
        ) from error


def _plain(example: Any) -> dict[str, Any]:
    if isinstance(example, Forest):
        return {"kind": "forest", "example": example.to_json()}
    if isinstance(example, DrawCall):
        return {"kind": "draw", "example": example._asdict()}
    if isinstance(example, Case):
        return {"kind": "case", "example": example._asdict()}
    return {"kind": "items", "example": [list(item) for item in example]}


def _messages(value: list[list[str]]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in value)  # type: ignore[arg-type]


def _items(value: list[Any]) -> tuple[Item, ...]:
    return tuple(Item(_messages(prompt), output, reference) for prompt, output, reference in value)


def _draw_call(value: dict[str, Any]) -> DrawCall:
    filters = tuple((name, number) for name, number in value.get("filters", ()))
    return DrawCall(tuple(map(tuple, value["prompts"])), value["temperature"], value["seed"], filters)


def _case(value: dict[str, Any]) -> Case:
    texts = {name: tuple(value.get(name, ())) for name in ("more_good", "more_bad")}
    return Case(**{**value, "prompt": _messages(value["prompt"]), **texts})


_EXAMPLES: dict[str, Callable[[Any], Any]] = {
    "forest": Forest.from_json,
    "items": _items,
    "case": _case,
    "draw": _draw_call,
}
