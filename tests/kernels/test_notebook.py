"""The notebook of the guide on trees runs without `pit`, and is as short as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "train-on-trees.md"
MOST_LINES = 60


def cells():
    """Return the source of every cell with code."""
    return re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", NOTEBOOK.read_text("utf-8"), re.M | re.S)


def test_the_example_is_short():
    lines = [line for source in cells() for line in source.splitlines() if line.strip()]
    assert 30 < len(lines) <= MOST_LINES


@pytest.mark.slow
def test_the_notebook_runs_without_pit(tmp_path):
    script = "import sys\nsys.modules['pit'] = None\n" + "\n".join(cells())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loss and gradients of trees are those of separate sequences" in done.stdout
    assert "the loss falls: True" in done.stdout
