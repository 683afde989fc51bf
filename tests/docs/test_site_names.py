"""Every public name is documented, and on exactly one page of the reference."""

import collections
import importlib
import re
from pathlib import Path

import pytest

from site_pages import names, reference

OBJECT = re.compile(
    r"^:+\{py:(?:class|function|data|method|property)\} (?P<name>[\w.]+).*\n:module: (?P<module>\S+)$", re.M
)
SAMPLES = (
    "pit.config.rl",
    "pit.testing.strategies.text",
    "pit_kernels.trees.values",
    "pit.losses.kl",
    "pit.rl.records",
)


def module(tmp_path: Path, source: str) -> names.Module:
    path = tmp_path / "example.py"
    path.write_text(source)
    return names.Module("pit.example", path)


def test_every_public_name_says_what_it_is():
    assert names.undocumented(names.public_names()) == []


@pytest.mark.parametrize("name", names.modules())
def test_every_public_module_says_what_it_is_for(name):
    assert names.modules()[name].doc


def test_every_public_name_is_on_one_page_of_the_reference():
    shown = collections.Counter(
        f"{match['module']}.{match['name']}" for text in reference.pages().values() for match in OBJECT.finditer(text)
    )
    assert len(shown) > 2000
    assert set(shown) == {name for name, _ in names.public_names()}
    assert {name for name, count in shown.items() if count > 1} == set()


def test_the_packages_are_public():
    assert {"pit", "pit.testing", "pit_kernels", "pit_kernels.trees"} <= set(names.modules())
    assert not [name for name in names.modules() if re.search(r"\._", name)]


def test_every_entry_point_leads_to_its_definition():
    unknown = [
        f"{module.name}.{name}"
        for module in names.modules().values()
        for name in module.entry_points
        if names.defined_in(module, name) is None
    ]
    assert unknown == []


@pytest.mark.parametrize("name", SAMPLES)
def test_names_of_a_source_are_those_of_the_module(name):
    imported = importlib.import_module(name)
    static = {member.name for member in names.modules()[name].members}
    made_here = {
        key
        for key, value in vars(imported).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name
    }
    assert made_here <= static <= set(vars(imported))


def test_a_name_without_a_docstring_is_found(tmp_path):
    bad = "class Bad:\n    def worse(self): ...\n    def _own(self): ...\n"
    source = f'def good():\n    "Return."\n\n{bad}\ndef _own(): ...\n'
    made = module(tmp_path, source)
    named = [(member.name, member) for member in made.members]
    named += [(f"{member.name}.{part.name}", part) for member in made.members for part in member.members]
    assert names.undocumented(named) == ["Bad", "Bad.worse"]


def test_signatures_are_as_written(tmp_path):
    made = module(
        tmp_path,
        "class A(Base):\n"
        '    """A."""\n'
        "    width: int = 3\n"
        "    def of(self, x: Float[Array, 'B T'], *, n: int = 2) -> 'A':\n        'Return.'\n"
        "    @classmethod\n    def made(cls) -> int:\n        'Return.'\n"
        "    @property\n    def size(self) -> int:\n        'Size.'\n"
        "X, Y = 1, 2\n'''Both.'''\n",
    )
    (a, x, y) = made.members
    assert (a.bases, a.fields) == (("Base",), (names.Field("width", "int", "3"),))
    assert [(part.kind, part.signature) for part in a.members] == [
        ("method", "(x: Float[Array, 'B T'], *, n: int=2) -> 'A'"),
        ("classmethod", "() -> int"),
        ("property", "int"),
    ]
    assert (x.signature, x.doc, y.signature, y.doc) == ("1", "Both.", "2", "Both.")


def test_defaults_of_fields_are_shown(tmp_path):
    source = (
        "class A:\n"
        "    a: int\n"
        "    b: int = field(repr=False)\n"
        "    c: int = field(default=2, repr=False)\n"
        "    d: B = field(default_factory=B)\n"
        "    e: B = dataclasses.field(default_factory=lambda: B(1))\n"
    )
    (a,) = module(tmp_path, source).members
    assert [field.default for field in a.fields] == [None, None, "2", "B()", "B(1)"]


def test_a_word_of_an_annotation_means_what_its_module_imports():
    assert names.full_name("pit.pipeline", "Run") == "pit.run.folder.Run"
    assert names.full_name("pit.run.folder", "Run") == "pit.run.folder.Run"
    assert names.full_name("pit.run.folder", "Path") is None
