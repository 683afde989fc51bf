"""Pages: links and anchors that resolve, a short README, lines that wrap."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "reference" / "api"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), ROOT / "kernels/README.md", *ROOT.glob("docs/**/*.md"))
    if path.parent != GENERATED
)
UNWRAPPED = {"kernels/README.md", "docs/curriculum.md", "docs/data.md", "docs/testing.md"}
"""Pages that still have longer lines of prose than `WIDTH`."""

WIDTH = 120
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def prose(page: Path) -> Iterator[str]:
    """Yield the lines of a page that are not code."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield line


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for line in prose(page):
        if heading := re.match(r"#{1,6} +(.+?)\s*$", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            found.append(name if name not in found else f"{name}-{found.count(name)}")
    return set(found)


def broken(page: Path) -> list[str]:
    """Return the relative links of a page whose file or anchor does not exist."""
    text = re.sub(r"`[^`\n]*`", "", "\n".join(prose(page)))
    targets = [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    wrong = []
    for target in targets:
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        missing = not file.exists() or (anchor and anchor not in anchors(file))
        wrong += [target] if missing else []
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_resolve(page: str) -> None:
    assert broken(ROOT / page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Two words, one `name`\n\n```\n# code\n```\n", encoding="utf-8")
    page.write_text(
        "[good](other.md#two-words-one-name) [outside](https://example.org/x) `[code](none.md)`\n"
        "[no file](none.md) [no anchor](other.md#code) ![no picture](none.png) [here](#none)\n",
        encoding="utf-8",
    )
    assert broken(page) == ["none.md", "other.md#code", "none.png", "#none"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", sorted({*PAGES} - UNWRAPPED))
def test_lines_of_prose_wrap(page: str) -> None:
    long = [line for line in prose(ROOT / page) if len(line) > WIDTH and not line.startswith(("|", "<", "!["))]
    assert long == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text("utf-8"))}
    pages = {path.resolve() for path in ROOT.glob("docs/**/*.md") if path.parent != GENERATED}
    assert pages - {index.resolve()} <= linked
