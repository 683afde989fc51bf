"""A pytest plugin: every invariant as a test of a user's own reward model.

Three lines are a whole suite; the model is any scorer, or a function of (prompts, outputs, references):

    @pytest.fixture(scope="session")
    def pit_scorer(): return my_model.gap
    def test_reward_model(pit_invariant): pit_invariant()

pytest loads this module at every start, so it imports nothing of PIT before an invariant is asked for.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = {
    "pit_data": "preferences that statistical invariants are measured on, relative to the configuration file",
    "pit_examples": "examples tried of each exact invariant [30]",
    "pit_rows": "most pairs of the data [200]",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Settings of a project's pytest configuration."""
    for name, text in _OPTIONS.items():
        parser.addini(name, f"pit.testing: {text}", default="")
    parser.addini("pit_invariants", "pit.testing: names or kinds of invariants [all that apply]", type="args")
    parser.addini("pit_floors", "pit.testing: NAME=NUMBER, least figure of a statistical invariant", type="linelist")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each invariant."""
    if "pit_invariant" in metafunc.fixturenames:
        names = metafunc.config.getini("pit_invariants")
        chosen = _module("run").select(names)
        metafunc.parametrize("pit_invariant", chosen, indirect=True, ids=[each.name for each in chosen])


@pytest.fixture(scope="session")
def pit_data(pytestconfig: pytest.Config) -> Any:
    """The preferences of the file or folder that `pit_data` names, none without it; override it to make your own."""
    path = pytestconfig.getini("pit_data")
    if not path:
        return []
    root = pytestconfig.rootpath if pytestconfig.inipath is None else pytestconfig.inipath.parent
    return _module("data").read_rows(root / path, int(pytestconfig.getini("pit_rows") or 200))


@pytest.fixture(scope="session")
def _pit_answers() -> dict[Any, float]:
    """Questions that were asked, so that tests share them."""
    return {}


@pytest.fixture
def pit_invariant(
    request: pytest.FixtureRequest, pit_scorer: Any, pit_data: Any, _pit_answers: dict[Any, float]
) -> Callable[[], None]:
    """Checks one invariant of `pit_scorer`; a call fails, or skips what is not applicable and names what is missing."""
    invariant, config = request.param, request.config

    def check() -> None:
        scorer = _module("adapters").as_scorer(pit_scorer, "pit_scorer")
        run, status = _module("run"), _module("report").Status
        where = config.getini("pit_data") or "the fixture pit_data"
        asked = run.Request("MODULE:NAME", str(where), int(config.getini("pit_examples") or 30), 0, _failures(config))
        if invariant.kind == "exact":
            result = run.check_exact(invariant, _module("invariants").Material(scorer, pit_data), asked)
        elif not invariant.applicable(scorer):
            pytest.skip(f"not applicable: needs {invariant.missing(scorer)}")
        elif not pit_data:
            pytest.skip("not applicable: needs preferences; set pit_data to a file of them")
        else:
            result = run.check_statistical(invariant, scorer, pit_data, asked, _pit_answers)
        if result.status == status.NOT_APPLICABLE:
            pytest.skip(f"not applicable: {result.detail}")
        _judge(result, status, _floors(config).get(invariant.name, result.floor))

    return check


def _judge(result: Any, status: Any, floor: float | None) -> None:
    __tracebackhide__ = True
    report = _module("report")
    if result.status == status.VIOLATED:
        pytest.fail(f"{result.name}: {result.detail}\n{result.counterexample}\nagain: {result.replay}", pytrace=False)
    if result.interval is not None and floor is not None and result.interval.high < floor:
        pytest.fail(
            f"{result.name}: {report.figure(result.interval)} of {result.examples} cases lies below {floor:g}; "
            f"{result.statement}\nworst case:\n{result.counterexample}",
            pytrace=False,
        )


def _floors(config: pytest.Config) -> dict[str, float]:
    found = {}
    for line in config.getini("pit_floors"):
        name, _, value = line.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise pytest.UsageError(f"pit_floors: {line!r} must have the form NAME=NUMBER; write it so") from None
    return found


def _failures(config: pytest.Config) -> Path:
    folder: Path = config.rootpath / _module("command").FAILURES
    return folder


def _module(name: str) -> Any:
    return importlib.import_module(f"pit.testing.{name}")
