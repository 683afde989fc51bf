"""The site's table of contents and its joints with the forge: the pages' own Markdown stays as a forge shows it.

Pages of the repository become pages of the site where they are, so that every relative link means the same in both.
`docs/index.md` orders them: a section is a part of the contents, and the links in its tables are that part's pages.
Tables that come from code stand where a page has `<!-- site: NAME -->`, which a forge does not show.
"""

import re
from collections.abc import Callable, Mapping

from site_pages.names import ROOT

INDEX = "docs/index"
"""Page that orders the others."""
START = "README"
"""First page."""

_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#:]+)(#[^)\s]*)?\)")
_MARK = re.compile(r"^<!-- site: (\w+) -->$", re.M)


class PageError(ValueError):
    """A page that the site cannot take as it is."""


def contents() -> dict[str, list[str]]:
    """Return the title of each part with its pages, by their paths from the root and without suffix."""
    parts: dict[str, list[str]] = {}
    title = ""
    for line in (ROOT / f"{INDEX}.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ").strip()
        elif line.startswith("|"):
            parts.setdefault(title, []).extend(
                resolved(INDEX, target).removesuffix(".md") for _, target, _ in _LINK.findall(line)
            )
    return parts


def pages() -> list[str]:
    """Return every page of the repository that the site has, by its path without suffix."""
    return [START, INDEX, *(page for part in contents().values() for page in part)]


def toctrees() -> str:
    """Return the contents for the first page, hidden: the theme shows them at the side."""
    parts = {"": [INDEX], **contents()}
    blocks = []
    for title, inside in parts.items():
        caption = [f":caption: {title}"] if title else []
        blocks.append("\n".join(["```{toctree}", ":hidden:", *caption, "", *(f"/{page}" for page in inside), "```"]))
    return "\n\n".join(blocks)


def resolved(page: str, target: str) -> str:
    """Return the path from the root that a link of a page names; of a folder, its README.

    Raises:
        PageError: the link leaves the repository, or names nothing.
    """
    path = (ROOT / page).parent.joinpath(target).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        raise PageError(f"{page}.md links to {target}, which is not in the repository; mend the link")
    return str((path / "README.md" if path.is_dir() else path).relative_to(ROOT))


def for_site(page: str, text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return a page's Markdown as Sphinx reads it.

    Args:
        page: path of the page, without suffix.
        text: Markdown of the repository.
        tables: name of a mark to the table in its place.

    Raises:
        PageError: a mark has no table.
    """

    def table(mark: "re.Match[str]") -> str:
        if mark[1] not in tables:
            raise PageError(f"{page}.md: site: {mark[1]} is not a table; known: {', '.join(tables)}")
        return tables[mark[1]]()

    def link(match: "re.Match[str]") -> str:
        path = (ROOT / page).parent / match[2]
        return f"{match[1]}({match[2].rstrip('/')}/README.md{match[3] or ''})" if path.is_dir() else match[0]

    text = _MARK.sub(table, _LINK.sub(link, text))
    return f"{text}\n\n{toctrees()}\n" if page == START else text
