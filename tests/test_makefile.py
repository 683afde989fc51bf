"""The Makefile's choice of environment and versions, by the Python that is asked for and the one that is there."""

import os
import subprocess
import sys
from pathlib import Path

import flax
import jax
import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
PROBE = "probe:\n\t@echo $(VENV) $(CONSTRAINTS) $(notdir $(GPU_TEST))\n"


def interpreter(folder: Path, version: str) -> Path:
    """Write a program that says its version as Python would."""
    program = folder / f"python{version}"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    return program


def choice(folder: Path, *words: str) -> list[str]:
    """Return environment, pins and folder of Triton that make chooses in a folder."""
    (folder / "cpp").mkdir(exist_ok=True)
    (folder / "probe.mk").write_text(f"include {MAKEFILE}\n{PROBE}")
    command = ["make", "-s", "-f", "probe.mk", "probe", *words]
    # These tests may run under make themselves.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=True).stdout.split()


def made_by(folder: Path, version: str) -> None:
    """Leave an environment of a version in a folder."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}.4\n")


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        (None, "3.11", [".venv", "constraints.txt", "gpu-test"]),
        (None, "3.13", [".venv", "constraints-newest.txt", "gpu-test"]),
        ("3.11", "3.11", [".venv", "constraints.txt", "gpu-test"]),
        ("3.11", "3.13", [".venv-3.13", "constraints-newest.txt", "gpu-test-3.13"]),
        ("3.13", "3.11", [".venv-3.11", "constraints.txt", "gpu-test-3.11"]),
        # Without PYTHON= what is there stays, whatever python3 is today.
        ("3.11", None, [".venv", "constraints.txt", "gpu-test"]),
        ("3.12", None, [".venv", "constraints-newest.txt", "gpu-test"]),
    ],
)
def test_each_python_has_its_environment_and_versions(there, asked, expected, tmp_path):
    if there is not None:
        made_by(tmp_path, there)
    words = [] if asked is None else [f"PYTHON={interpreter(tmp_path, asked)}"]
    assert choice(tmp_path, *words) == expected


def test_the_tests_run_on_the_versions_of_their_python():
    name = "constraints.txt" if sys.version_info < (3, 12) else "constraints-newest.txt"
    pinned = dict(line.split("==") for line in (MAKEFILE.parent / name).read_text().splitlines() if "==" in line)
    assert (jax.__version__, flax.__version__) == (pinned["jax"], pinned["flax"])


def test_both_sets_of_versions_pin_the_same_packages():
    names = [
        [line.partition("==")[0] for line in (MAKEFILE.parent / name).read_text().splitlines() if "==" in line]
        for name in ("constraints.txt", "constraints-newest.txt")
    ]
    assert names[0] == names[1]
