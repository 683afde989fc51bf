"""The examples in docstrings and in docs/ say what the code does."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import pit
import pit_kernels

DOCS = Path(__file__).parents[1] / "docs"
BENCH = Path(__file__).parents[1] / "bench"


def documented() -> list[str]:
    """Modules whose source holds an example."""
    found = []
    for package in (pit, pit_kernels):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            source = getattr(module.module_finder.find_spec(module.name), "origin", "")
            if source.endswith(".py"):
                with open(source, encoding="utf-8") as file:
                    if ">>> " in file.read():
                        found.append(module.name)
    return found


@pytest.mark.parametrize("name", documented())
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0


def measurements() -> list[str]:
    """Modules of bench/ with an example."""
    found = [path.relative_to(BENCH) for path in BENCH.rglob("*.py") if ">>> " in path.read_text("utf-8")]
    return sorted(".".join(path.with_suffix("").parts) for path in found)


@pytest.mark.parametrize("name", measurements())
def test_examples_in_measurements(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md") if "    >>> " in p.read_text("utf-8")))
def test_examples_in_pages(page: str) -> None:
    result = doctest.testfile(str(DOCS / page), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 0
