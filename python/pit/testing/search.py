"""The search for a counterexample of an exact invariant, and the file that replays one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import example as fixed_example
from hypothesis import seed as with_seed

from pit.data.atomic import write_file
from pit.testing.faults import CheckError, Violation
from pit.testing.invariants.base import Case, Exact, Invariant, Material
from pit.testing.invariants.draws import Draw
from pit.testing.scorers import Item
from pit.testing.strategies.trees import Forest
from pit.types import Message


class Counterexample(NamedTuple):
    """The smallest example found on which an invariant fails, and what the check said of it."""

    example: Any
    fault: str
    message: str


def search(invariant: Exact, material: Material, *, examples: int, seed: int) -> Counterexample | None:
    """Look for a counterexample and shrink it.

    Args:
        invariant: what must hold.
        material: the scorer, and data to make examples from.
        examples: how many to try.
        seed: of Hypothesis; the same seed tries the same examples.
    """
    last: list[Any] = []

    @with_seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(invariant.examples(material))
    def attempt(example: Any) -> None:
        last[:] = [example]
        invariant.check(material.scorer, example)

    for fixed in reversed(invariant.always()):
        attempt = fixed_example(fixed)(attempt)
    try:
        attempt()
    except Violation as violation:
        return Counterexample(last[0], violation.fault, str(violation))
    except BaseExceptionGroup as group:
        # Hypothesis replays the smallest example; a scorer that is random may fail otherwise then, or not at all.
        return Counterexample(last[0], "random", f"fails in more than one way: {group.exceptions[0]}")
    except Exception as error:
        if type(error).__name__ not in ("Flaky", "FlakyFailure", "FlakyReplay"):
            raise
        return Counterexample(last[0], "random", "failed once and held when it was asked again")
    return None


def readable(example: Any) -> str:
    """An example as a person reads it."""
    if isinstance(example, Forest):
        rows = [f"  {name}: {list(column)}" for name, column in enumerate(map(list, example.columns))]
        return "\n".join([f"{example.trees} trees {example.topology.name}; columns of content tokens:", *rows])
    if isinstance(example, Case):
        example = (Item(example.prompt, example.better, example.worse),)
    if isinstance(example, Draw):
        prompts = "\n".join(f"  prompt: {list(prompt)}" for prompt in example.prompts)
        return f"temperature {example.temperature}, seed {example.seed}; content tokens:\n{prompts}"
    lines = []
    for item in example:
        lines += [f"  {role}: {content!r}" for role, content in item.prompt]
        lines += [f"  output: {item.output!r}", f"  reference: {item.reference!r}"]
    return "\n".join(lines)


def save(path: Path, invariant: Invariant, example: Any) -> None:
    """Write an example so that `pit check MODEL --replay FILE` checks it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"invariant": invariant.name, **_plain(example)}
    write_file(path, (json.dumps(record, ensure_ascii=True, indent=1) + "\n").encode())


def load(path: Path) -> tuple[str, Any]:
    """Name of the invariant, and the example, of a saved file.

    Raises:
        CheckError: the file holds no example.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, kind = record["invariant"], record["kind"]
        return name, _EXAMPLES[kind](record["example"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckError(
            f"{path}: is no saved example ({type(error).__name__}: {error}); name a file that `pit check` wrote"
        ) from error


def _plain(example: Any) -> dict[str, Any]:
    if isinstance(example, Forest):
        return {"kind": "forest", "example": example.to_json()}
    if isinstance(example, Draw):
        return {"kind": "draw", "example": example._asdict()}
    if isinstance(example, Case):
        return {"kind": "case", "example": example._asdict()}
    return {"kind": "items", "example": [list(item) for item in example]}


def _messages(value: list[list[str]]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in value)  # type: ignore[arg-type]


def _items(value: list[Any]) -> tuple[Item, ...]:
    return tuple(Item(_messages(prompt), output, reference) for prompt, output, reference in value)


def _draw(value: dict[str, Any]) -> Draw:
    return Draw(tuple(map(tuple, value["prompts"])), value["temperature"], value["seed"])


def _case(value: dict[str, Any]) -> Case:
    return Case(**{**value, "prompt": _messages(value["prompt"])})


_EXAMPLES: dict[str, Callable[[Any], Any]] = {"forest": Forest.from_json, "items": _items, "case": _case, "draw": _draw}
