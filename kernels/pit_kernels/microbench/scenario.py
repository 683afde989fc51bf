"""The plan of the committed figures, and their refresh: row by row, resumed where it stopped."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pit_kernels.microbench import suite
from pit_kernels.microbench.suite import DIRECTIONS, Row, load, origin, save
from pit_kernels.microbench.worker import named_contender


@dataclass(frozen=True)
class Entry:
    """Problems of an operation, measured for every contender on every target."""

    operation: str
    problems: tuple[str, ...]
    targets: tuple[str, ...]
    contenders: tuple[str, ...]


_ALL = ("pallas_tpu", "tokamax", "jax_splash", "jax_flash", "xla")
_FAST = _ALL[:3]
_MAIN = ("packed-4096", "rollout-4096", "classic-1536", "causal-4096")
_SHAPES = tuple(
    f"{name}-{model}" for name in ("packed-4096", "rollout-4096") for model in ("smollm2-135m", "gemma-2-2b")
)

_NEW = ("v5e", "v6e", "v7x")
_OWN = ("pallas_tpu_paths", "pallas_tpu_btnh")

PLAN = (
    Entry("three_way_attention", ("packed-4096",), ("v4",), ("pallas_tpu",)),
    Entry("three_way_attention", ("tile-512-full", "tile-512-partial"), ("v4", *_NEW), _ALL[:4]),
    Entry("three_way_attention", _MAIN, _NEW, _ALL),
    Entry("three_way_attention", _MAIN[:2], _NEW, _OWN),
    Entry("three_way_attention", _SHAPES, ("v5e", "v6e"), _FAST),
    Entry("three_way_attention", ("packed-4096", "rollout-4096", "causal-4096"), ("v5p",), _FAST),
    Entry("three_way_attention", ("packed-2048",), ("v4",), _FAST),
    Entry("token_logprob", ("gemma-2-2b",), ("v4", "v5p"), ("pallas_tpu",)),
    Entry("token_logprob", ("gemma-2-2b",), _NEW, ("pallas_tpu", "tokamax", "xla")),
    Entry("gap_reward", ("gemma-2-2b",), _NEW, ("pallas_tpu", "xla")),
)
"""All that the committed results hold."""


@dataclass(frozen=True)
class Step:
    """The least that is measured at a time: one problem of one contender on one target, in both directions."""

    operation: str
    problem: str
    target: str
    contender: str

    def names(self) -> list[str]:
        """Return the names of its rows in a results file."""
        first, last = f"{self.operation}/{self.problem}", f"{self.contender}/{self.target}"
        return [f"{first}/{direction}/{last}" for direction in DIRECTIONS]


def steps(
    plan: Sequence[Entry],
    *,
    problems: Sequence[str] = (),
    targets: Sequence[str] = (),
    contenders: Sequence[str] = (),
) -> list[Step]:
    """Return the steps of a plan, contender by contender; only the named problems, targets and contenders where given.

    Raises:
      ValueError: if nothing is left.
    """
    chosen = [
        Step(entry.operation, problem, target, contender)
        for entry in plan
        for contender in entry.contenders
        for target in entry.targets
        for problem in entry.problems
        if (not problems or problem in problems)
        and (not targets or target in targets)
        and (not contenders or contender in contenders)
    ]
    if not chosen:
        raise ValueError(
            f"the plan has nothing for problems {list(problems)}, targets {list(targets)} and contenders "
            f"{list(contenders)}; name a combination that is in pit_kernels.microbench.scenario.PLAN"
        )
    return chosen


def stale(planned: Sequence[Step], path: Path) -> list[Step]:
    """Return the steps whose rows a results file lacks or has from other sources or versions."""
    here = functools.cache(origin)
    measured = suite.origins(path)

    def is_stale(step: Step) -> bool:
        now = here(step.operation, step.contender)
        return now["commit"].endswith("with changes") or any(measured.get(key) != now for key in step.names())

    return [step for step in planned if is_stale(step)]


@dataclass
class Refresh:
    """A run that keeps every row as soon as it is measured; a contender is judged once, before its first figure.

    path: the results file.
    tell: called with the reason for a missing figure.
    judge: whether contenders must pass conformance here; False where it was judged elsewhere.
    """

    path: Path
    tell: Callable[[str], None] = lambda line: None
    judge: bool = True

    def __post_init__(self) -> None:
        self._verdicts: dict[tuple[str, str], str | None] = {}

    def run(self, step: Step) -> list[Row]:
        """Return the rows of a step, which are in the results file when this returns."""
        failure = self._failure(step.operation, step.contender)
        if failure is not None:
            self.tell(f"left out: {step.contender}: {failure}")
            return []
        outcome = suite.run_suite(
            step.operation,
            [step.contender],
            [step.target],
            [step.problem],
            judge=False,
            swept=load(self.path) if self.path.exists() else (),
        )
        for name, why in outcome.left_out:
            self.tell(f"left out: {name}: {why}")
        save(outcome.rows, self.path)
        return outcome.rows

    def _failure(self, operation: str, name: str) -> str | None:
        if (operation, name) not in self._verdicts:
            contender = named_contender(operation, name)
            self._verdicts[operation, name] = contender.absent or (
                suite.judged_apart(operation, name) if self.judge else None
            )
        return self._verdicts[operation, name]
