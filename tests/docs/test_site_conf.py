"""The joints with Sphinx: links of annotations, output of notebooks in one piece, names that the reference lacks."""

import importlib.util
import types

import pytest

from site_pages import names

pytest.importorskip("myst_nb", reason="the site's tools are not installed: make docs")
sphinx = pytest.importorskip("sphinx", reason="the site's tools are not installed: make docs")

from docutils import nodes, utils  # noqa: E402
from sphinx import addnodes  # noqa: E402


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("site_conf", names.ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "")
        patch.setenv("TTY_COMPATIBLE", "")
        spec.loader.exec_module(module)
    return module


def reference(target, module):
    made = addnodes.pending_xref("", nodes.Text(target), refdomain="py", reftype="class", reftarget=target)
    made["py:module"] = module
    return made


@pytest.mark.parametrize(
    ("target", "module", "expected"),
    [
        ("Run", "pit.pipeline", "pit.run.folder.Run"),
        ("Run", "pit_kernels.microbench.machine", "pit_kernels.microbench.machine.Run"),
        ("pit.config.run.RunConfig", None, "pit.config.run.RunConfig"),
        ("Path", "pit.run.folder", None),
    ],
)
def test_an_annotation_links_to_what_its_module_means(conf, target, module, expected):
    tree = utils.new_document("page")
    tree += nodes.paragraph("", "", reference(target, module))
    conf.link_annotations(None, tree)
    assert [node["reftarget"] for node in tree.findall(addnodes.pending_xref)] == ([expected] if expected else [])
    assert tree.astext() == target


def test_pieces_of_output_are_joined_and_kinds_are_not(conf):
    tree = utils.new_document("page")
    outputs = nodes.container(classes=["cell_output"])
    for kind, text in (("stream", "one li"), ("stream", "ne\ntwo"), ("stderr", "odd"), ("stream", "three")):
        outputs += nodes.literal_block(text, text, classes=["output", "stream", kind])
    tree += outputs
    conf.join_output(None, tree)
    assert [piece.astext() for piece in outputs.children] == ["one line\ntwo", "odd", "three"]


def test_a_name_that_the_reference_lacks_is_a_warning(conf, monkeypatch):
    warnings = []
    logger = types.SimpleNamespace(warning=lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(conf.logging, "getLogger", lambda name: logger)
    held = [(name,) for name in conf.PUBLIC - {"pit.config.run.RunConfig"}]
    domain = types.SimpleNamespace(get_objects=lambda: held)
    app = types.SimpleNamespace(env=types.SimpleNamespace(get_domain=lambda name: domain))
    conf.check_reference(app, None)
    assert warnings == ["pit.config.run.RunConfig is public, and not in the reference"]


def test_outputs_of_notebooks_depend_on_the_sources(conf):
    assert conf.nb_execution_cache_path.endswith(conf._sources())
    assert conf.nb_execution_raise_on_error
