"""The diffs of the guides: applied to a copy of the package, which a process of its own then imports."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from compiling import users_environment

from pit.data import _core

ROOT = Path(__file__).parents[1]

PREAMBLE = """
import sys
# The copy is imported, not the installed package: finders of editable installs come before the path.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__.lower()]
import pit
assert pit.__file__.startswith(sys.argv[1]), pit.__file__
"""


def diff_of(page: str) -> str:
    """The diff of a page, at most 60 lines long."""
    text = (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")
    (diff,) = re.findall(r"^```diff\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(diff.splitlines()) <= 60, f"{page}: a diff of {len(diff.splitlines())} lines"
    return diff


def copy_with(folder: Path, *pages: str) -> Path:
    """A copy of the package with the diffs of some pages in it."""
    shutil.copytree(ROOT / "python" / "pit", folder / "python" / "pit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_core.__file__, folder / "python" / "pit" / "data")
    for page in pages:
        command = ["git", "apply", "--unidiff-zero", "--whitespace=error", "-"]
        applied = subprocess.run(
            command, cwd=folder, input=diff_of(page), capture_output=True, text=True, env=_environment(), check=False
        )
        assert applied.returncode == 0, f"{page}: {applied.stderr}"
    return folder


def _environment() -> dict[str, str]:
    # The copy may lie below a repository, which git would apply the diff to.
    return {**os.environ, "GIT_DIR": os.devnull}


def run_in(folder: Path, script: str, *arguments: object) -> str:
    """Return the output of a script that imports the copy."""
    path = os.pathsep.join([str(folder / "python"), str(folder / "kernels"), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, str(folder), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**users_environment(), "PYTHONPATH": path, "PIT_PROGRESS": "json"},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
