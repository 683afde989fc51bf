"""The guide's example of a new backend, applied to a copy of the package, conforms there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guides/add-a-kernel-backend.md"
# An editable installation answers imports before sys.path does; the standard finders are classes.
JUDGE = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
folder, *words = sys.argv[1:]
sys.path.insert(0, folder)
sys.argv = ["conformance", *words]
import pit_kernels
print(pit_kernels.__file__)
runpy.run_module("pit_kernels.conformance", run_name="__main__")
"""


def test_the_backend_of_the_guide_conforms(tmp_path):
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(diff.splitlines()) <= 60
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kernels/pit_kernels", tmp_path / "kernels/pit_kernels", ignore=ignored)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    applied = subprocess.run(
        ["git", "apply", "-"], input=diff, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert applied.returncode == 0, applied.stderr

    words = [sys.executable, "-c", JUDGE, str(tmp_path / "kernels"), "gap_reward", "dense"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    where, verdict = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert verdict == "gap_reward dense: 2 cases passed"
