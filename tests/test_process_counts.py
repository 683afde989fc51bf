"""How many hosts there are is asked in few places; everything else works alike on one and on many."""

import ast
from pathlib import Path

import pit

PACKAGE = Path(pit.__file__).parent

ASKS = {"process_count", "process_index", "many", "local_devices", "local_device_count", "num_processes"}
"""Names that tell how many processes there are, or which one this is."""

ALLOWED = {
    # The mesh must use all devices.
    "model/sharding.py",
    # A run does its jobs one after the other in this process, or in processes of their own.
    "pipeline.py",
    # A process may take its share of the draws.
    "data/curriculum/loader.py",
    # The processes themselves.
    "processes.py",
}


def asked(source: str) -> set[str]:
    """Return the names in ASKS that a module reads as attributes or variables."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return (names | {node.id for node in nodes if isinstance(node, ast.Name)}) & ASKS


def test_only_the_mesh_the_loaders_and_the_pipeline_ask_how_many_processes_there_are() -> None:
    asking = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if asked(path.read_text("utf-8"))}
    assert asking == ALLOWED


def test_a_question_is_seen() -> None:
    assert asked("import jax\nif jax.process_count() > 1:\n    pass") == {"process_count"}
    assert asked("from pit import processes\nprocesses.many()") == {"many"}
    assert asked("process_counts = 1") == set()
