"""`pit_kernels` as a library of its own: what it imports, its metadata, and its wheel in an empty environment."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "kernels"
NEEDED = {"jax", "jaxtyping", "numpy"}
WHERE_INSTALLED = {"jax_triton", "triton", "matplotlib"}
"""Packages that the library works without: Triton for a GPU, and what draws the picture of a benchmark."""


def imports(path):
    """Return the packages that a module imports, at any place, beside the standard library and its own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - {"pit_kernels"}


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]


def test_modules_import_what_the_library_declares():
    modules = list((LIBRARY / "pit_kernels").rglob("*.py"))
    assert len(modules) > 50
    for path in modules:
        assert imports(path) <= NEEDED | WHERE_INSTALLED, path


SCRIPT = """
import sys
for name in ("pit", "flax", "jax_triton", "triton", "matplotlib", "scipy", "optax"):
    sys.modules[name] = None
import jax, jax.numpy as jnp, numpy as np
import pit_kernels, pit_kernels.conformance, pit_kernels.microbench
from pit_kernels import three_way_attention, trees
rows = trees.pack([[1, 2, 3], [1, 2, 4]], row_length=8)
x = jnp.ones((1, 8, 2, 4))
out = three_way_attention(x, x, x, jnp.asarray(rows.visible_until))
assert out.shape == x.shape and rows.tokens == 4
assert trees.row_logprob(x[:, :, 0], jnp.ones((8, 4)), rows).shape == (1, 8)
print(pit_kernels.__file__)
"""


def run(python, path, folder):
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [python, "-P", "-c", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip())


def test_it_works_without_pit(tmp_path):
    assert run(sys.executable, str(LIBRARY), tmp_path).is_relative_to(LIBRARY)


def test_both_distributions_ask_for_the_same_versions():
    whole, library = project(ROOT), project(LIBRARY)
    assert {name.partition(">")[0] for name in library["dependencies"]} == NEEDED
    assert set(library["dependencies"]) <= set(whole["dependencies"])
    for name in ("requires-python", "license"):
        assert library[name] == whole[name]
    assert (LIBRARY / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(LIBRARY)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"pit_kernels-{project(LIBRARY)['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(path.relative_to(LIBRARY)) for path in (LIBRARY / "pit_kernels").rglob("*") if path.is_file()}
    packed = {name for name in names if name.startswith("pit_kernels/")}
    assert packed == {name for name in sources if "__pycache__" not in name}
    assert any(name.endswith("LICENSE") for name in names)

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    constraints = ROOT / f"constraints{'' if sys.version_info < (3, 12) else '-newest'}.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", str(constraints), str(wheel)], check=True)
    assert run(python, "", tmp_path).is_relative_to(environment)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    installed = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert not installed & {"flax", "optax", "triton", "pit-jax", "matplotlib"}
