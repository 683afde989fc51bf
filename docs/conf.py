"""Settings of the site (`make docs`). Its pages are those of the repository; see `site_pages.contents` for the rule."""

import hashlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from docutils import nodes  # noqa: E402
from sphinx import addnodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util import logging  # noqa: E402

from site_pages import contents, marks, names, reference  # noqa: E402

project = "PIT"
author = "the authors of PIT"
version = release = __import__("importlib.metadata").metadata.version("pit-jax")
copyright = "Apache-2.0"

extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = contents.START
include_patterns = [f"{page}.md" for page in contents.pages()] + [f"{reference.FOLDER}/*.md"]
exclude_patterns = ["build", "runs", "dist", ".*", "python", "tests", "bench", "cpp"]
add_module_names = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# A forge starts a page where it likes; these pages keep one title each.
suppress_warnings = ["myst.header"]
source_suffix = {".md": "myst-nb"}

# The outputs of a notebook are kept for as long as nothing that it can import changes.
nb_execution_mode = os.environ.get("PIT_NOTEBOOKS", "cache")
# A slow machine may take ten minutes for a training that takes two.
nb_execution_timeout = 1800
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
# Kernels say that they take colours; commands in a page are no terminal, and show no live progress.
os.environ |= {"TTY_COMPATIBLE": "0", "COLUMNS": "100"}


def _sources() -> str:
    """Return a digest of everything that a notebook's output depends on."""
    digest = hashlib.sha256()
    for folder in ("python", "kernels", "cpp"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".cpp", ".hpp"):
                digest.update(path.read_bytes())
    for name in ("constraints.txt", "constraints-newest.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


nb_execution_cache_path = str(ROOT / "build" / "notebooks" / _sources())

html_theme = "sphinx_book_theme"
html_title = "PIT"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "start.html"}
templates_path = ["_templates"]
# The search finds every name; the lists of all names are wider than a phone.
html_use_index = False
html_domain_indices = False
html_copy_source = True
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "max_navbar_depth": 4,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    # The side bar has the search; the theme's header would repeat it.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

PUBLIC = frozenset(name for name, _ in names.public_names())


def write_reference(_: Sphinx) -> None:
    """Write the pages of the reference that changed, and remove those of packages that are gone."""
    folder = ROOT / reference.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    texts = {ROOT / f"{page}.md": text for page, text in reference.pages().items()}
    for path in set(folder.glob("*.md")) - texts.keys():
        path.unlink()
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def read_page(_: Sphinx, page: str, source: list[str]) -> None:
    """Put the generated tables and the contents into a page."""
    source[0] = contents.for_site(page, source[0], marks.TABLES)


def link_annotations(_: Sphinx, tree: nodes.document) -> None:
    """Let each name in a signature mean what its module means by it; Sphinx alone would take any one so called."""
    for node in list(tree.findall(addnodes.pending_xref)):
        if node.get("refdomain") == "py" and "py:module" in node and node.parent is not None:
            target = node["reftarget"]
            known = target if target in PUBLIC else names.full_name(node["py:module"] or "", target)
            if known is None:
                node.replace_self(node.children)
            else:
                node["reftarget"], node["refspecific"] = known, False


def join_output(_: Sphinx, tree: nodes.document) -> None:
    """Join the pieces in which a cell's text arrived; they end anywhere, and MyST-NB would end a line at each."""
    for outputs in tree.findall(lambda node: isinstance(node, nodes.container) and "cell_output" in node["classes"]):
        last = None
        for piece in list(outputs.children):
            streams = isinstance(piece, nodes.literal_block) and "stream" in piece["classes"]
            if streams and last is not None and last["classes"] == piece["classes"]:
                last.rawsource = last.astext() + piece.astext()
                last.children = [nodes.Text(last.rawsource)]
                outputs.remove(piece)
            else:
                last = piece if streams else None


def check_reference(app: Sphinx, _: object) -> None:
    """Warn, which ends the build, of every public name that the built reference does not hold."""
    held = {name for name, *_ in app.env.get_domain("py").get_objects()}
    for name in PUBLIC:
        if name not in held:
            logging.getLogger(__name__).warning("%s is public, and not in the reference", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Join the generators with Sphinx."""
    app.connect("builder-inited", write_reference)
    app.connect("source-read", read_page)
    app.connect("doctree-read", link_annotations)
    app.connect("doctree-read", join_output)
    app.connect("env-check-consistency", lambda app, env: check_reference(app, env))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
