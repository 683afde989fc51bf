"""The site has every page once, in the order of the index; its joints with the forge; its notebooks."""

import ast
import re
import shlex

import pytest

from pit.config import override
from pit.recipes import recipe
from site_pages import commands, contents, marks, names, reference

ROOT = names.ROOT
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```$", re.M | re.S)


def test_every_page_is_in_the_contents_once():
    pages = contents.pages()
    assert len(pages) == len(set(pages))
    own = {
        str(path.relative_to(ROOT).with_suffix(""))
        for path in (
            *ROOT.glob("*.md"),
            *ROOT.glob("docs/**/*.md"),
            *ROOT.glob("kernels/*.md"),
            *ROOT.glob("examples/**/*.md"),
        )
    }
    assert {page for page in own if not page.startswith(reference.FOLDER)} == set(pages)


def test_parts_are_the_sections_of_the_index():
    assert list(contents.contents()) == ["Notebooks", "Concepts", "Guides", "Studies", "Reference"]
    assert contents.contents()["Reference"][0] == "docs/reference/python"
    assert "kernels/README" in contents.contents()["Concepts"]


def test_only_the_first_page_has_the_contents():
    assert contents.for_site("README", "# PIT\n", {}).count("{toctree}") == 6
    assert contents.for_site("docs/data", "# Data\n", {}) == "# Data\n"


def test_a_mark_becomes_its_table():
    assert contents.for_site("docs/data", "a\n\n<!-- site: x -->\n", {"x": lambda: "T"}) == "a\n\nT\n"
    with pytest.raises(contents.PageError, match=r"docs/data\.md: site: y is not a table; known: x"):
        contents.for_site("docs/data", "<!-- site: y -->", {"x": lambda: "T"})


def test_a_link_to_a_folder_leads_to_its_page():
    text = "[it](../examples/reward_model_tests) and [that](data.md)"
    assert contents.for_site("docs/testing", text, {}) == (
        "[it](../examples/reward_model_tests/README.md) and [that](data.md)"
    )
    assert (
        contents.resolved("docs/testing", "../examples/reward_model_tests") == "examples/reward_model_tests/README.md"
    )
    with pytest.raises(contents.PageError, match=r"docs/testing.md links to none.md"):
        contents.resolved("docs/testing", "none.md")


def test_every_table_has_one_place():
    text = "".join((ROOT / f"{page}.md").read_text("utf-8") for page in contents.pages())
    assert sorted(re.findall(r"^<!-- site: (\w+) -->$", text, re.M)) == sorted(marks.TABLES)


def test_the_notebooks_are_the_five():
    assert [path.stem for path in NOTEBOOKS] == sorted(
        page.rpartition("/")[2] for page in contents.contents()["Notebooks"]
    )
    assert len(NOTEBOOKS) == 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_executed(path):
    """Its cells are Python, or commands and settings that exist."""
    text = path.read_text("utf-8")
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n")
    known = {name for name, _ in commands.commands()}
    cells = CELL.findall(text)
    assert cells
    for cell in cells:
        if cell.startswith("%%bash"):
            for line in cell.replace("\\\n", " ").splitlines()[1:]:
                for words in (shlex.split(part) for part in line.split("|")):
                    if words[:1] == ["pit"]:
                        assert " ".join(words[:2]) in known or " ".join(words[:3]) in known, words
                        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
                        override(recipe("demo"), settings)
        else:
            ast.parse(re.sub(r"^(%%writefile .*|:tags: .*)\n", "", cell))
