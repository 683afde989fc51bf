"""A pytest plugin that runs every invariant as a test of a user's own reward model.

Three lines are a whole suite; the fixture returns a scorer, or a function of (prompts, outputs, references):

    @pytest.fixture(scope="session")
    def pit_scorer(): return my_model.gap
    def test_reward_model(pit_invariant): pit_invariant()

pytest loads this module at every start, so it imports the rest of PIT only when a test uses `pit_invariant`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = {
    "pit_data": "file or folder of preferences for statistical invariants, relative to the configuration file",
    "pit_examples": "examples of each exact invariant [30]",
    "pit_rows": "maximum number of pairs of the data [200]",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the settings."""
    for name, text in _OPTIONS.items():
        parser.addini(name, f"pit.testing: {text}", default="")
    parser.addini("pit_invariants", "pit.testing: names or kinds of invariants [all]", type="args")
    parser.addini("pit_floors", "pit.testing: NAME=NUMBER, floor of a statistical invariant", type="linelist")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per invariant."""
    if "pit_invariant" in metafunc.fixturenames:
        names = metafunc.config.getini("pit_invariants")
        chosen = _module("run").select(names)
        metafunc.parametrize("pit_invariant", chosen, indirect=True, ids=[invariant.name for invariant in chosen])


@pytest.fixture(scope="session")
def pit_data(pytestconfig: pytest.Config) -> Any:
    """Return the preferences that the setting `pit_data` names, or none without it; a project may override it."""
    path = pytestconfig.getini("pit_data")
    if not path:
        return []
    root = pytestconfig.rootpath if pytestconfig.inipath is None else pytestconfig.inipath.parent
    return _module("data").read_rows(root / path, int(pytestconfig.getini("pit_rows") or 200))


@pytest.fixture(scope="session")
def _pit_checked(pit_scorer: Any) -> tuple[Any, Any]:
    """Return the scorer, and the scores of its items, which tests share."""
    scorer = _module("adapters").as_scorer(pit_scorer, "pit_scorer")
    return scorer, _module("scoring").ItemScores(scorer)


@pytest.fixture
def pit_invariant(request: pytest.FixtureRequest, pit_data: Any, _pit_checked: tuple[Any, Any]) -> Callable[[], None]:
    """Return a function that checks one invariant of `pit_scorer`; it skips an invariant that is not applicable."""
    invariant, config = request.param, request.config

    def check() -> None:
        scorer, scores = _pit_checked
        run, status = _module("run"), _module("report").Status
        where = config.getini("pit_data") or "the fixture pit_data"
        examples = int(config.getini("pit_examples") or 30)
        settings = run.Request("MODULE:NAME", str(where), examples, 0, _failures(config))
        if invariant.kind == "exact":
            result = run.check_exact(invariant, _module("invariants").Material(scorer, pit_data), settings)
        elif invariant.kind == "sampler":
            result = run.check_direct(invariant, scorer, settings)
        elif not invariant.applicable(scorer):
            pytest.skip(f"not applicable: needs {invariant.missing(scorer)}")
        elif not pit_data:
            pytest.skip("not applicable: needs preferences; name a file in the setting pit_data")
        else:
            result = run.check_statistical(invariant, scorer, pit_data, settings, scores)
        if result.status == status.NOT_APPLICABLE:
            pytest.skip(f"not applicable: {result.detail}")
        _assert_passed(result, status, _floors(config).get(invariant.name, result.floor))

    return check


def _assert_passed(result: Any, status: Any, floor: float | None) -> None:
    __tracebackhide__ = True
    if result.status == status.VIOLATED:
        message = f"{result.name}: {result.detail}\n{result.counterexample}\ncheck it again: {result.replay}"
        pytest.fail(message, pytrace=False)
    if result.interval is not None and floor is not None and result.interval.high < floor:
        interval = _module("report").format_interval(result.interval)
        pytest.fail(
            f"{result.name}: {interval} of {result.examples} cases lies below {floor:g}; {result.statement}\n"
            f"worst case:\n{result.counterexample}",
            pytrace=False,
        )


def _floors(config: pytest.Config) -> dict[str, float]:
    floors = {}
    for line in config.getini("pit_floors"):
        name, _, value = line.partition("=")
        try:
            floors[name.strip()] = float(value)
        except ValueError:
            message = f"pit_floors: {line!r} is not of the form NAME=NUMBER; write for example accuracy=0.6"
            raise pytest.UsageError(message) from None
    return floors


def _failures(config: pytest.Config) -> Path:
    folder: Path = config.rootpath / _module("command").FAILURES
    return folder


def _module(name: str) -> Any:
    return importlib.import_module(f"pit.testing.{name}")
