"""The notebook of the guide on trees runs without `pit`, prints what it shows, and is as short as it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "train_on_trees.ipynb"
MOST_LINES = 60


def cells():
    """Return source and printed text of every cell with code."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [
        ("".join(cell["source"]), "".join(text for output in cell["outputs"] for text in output["text"]))
        for cell in code
    ]


def test_the_example_is_short():
    lines = [line for source, _ in cells() for line in source.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path):
    script = "import sys\nsys.modules['pit'] = None\n" + "\n".join(source for source, _ in cells())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "".join(printed for _, printed in cells())
