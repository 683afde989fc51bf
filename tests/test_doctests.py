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
    """Modules with an example."""
    names = []
    for package in (pit, pit_kernels):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            source = getattr(module.module_finder.find_spec(module.name), "origin", "")
            if source.endswith(".py"):
                with open(source, encoding="utf-8") as file:
                    if ">>> " in file.read():
                        names.append(module.name)
    return names


@pytest.mark.parametrize("name", documented())
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0


def measurements() -> list[str]:
    """Modules of bench/ with an example."""
    paths = [path.relative_to(BENCH) for path in BENCH.rglob("*.py") if ">>> " in path.read_text("utf-8")]
    return sorted(".".join(path.with_suffix("").parts) for path in paths)


@pytest.mark.parametrize("name", measurements())
def test_examples_in_measurements(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0


def pages() -> list[str]:
    """Pages of docs/ with an example."""
    written = (page for page in DOCS.rglob("*.md") if page.parent != DOCS / "reference" / "api")
    return sorted(str(page.relative_to(DOCS)) for page in written if ">>> " in page.read_text("utf-8"))


@pytest.mark.parametrize("page", pages())
def test_examples_in_pages(page: str) -> None:
    result = doctest.testfile(str(DOCS / page), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 0
