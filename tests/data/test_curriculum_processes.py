"""Real processes (jax.distributed on CPUs) that train together draw and pack one global sequence, bit for bit."""

import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
from process_draws import train

from pit.data.store import build
from pit.data.template import RoleTemplate
from pit.data.tokenizer import Tokenizer
from pit.types import Message, Preference

SCRIPT = Path(__file__).parent / "process_draws.py"
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(9)]
    rows = [
        Preference((Message("user", " ".join(rng.choice(words, 3))),), *(" ".join(rng.choice(words, 2)) for _ in "bw"))
        for _ in range(200)
    ]
    tokenizer = Tokenizer.train_bpe((row.better for row in rows), 280)
    build(rows, folder / "store", RoleTemplate(tokenizer, (20, 20, 20)))
    return folder


def run(count, first, last, folder):
    """Return the draws of `count` real processes, joined."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_NUMPY_RANK_PROMOTION": "allow",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), coordinator, str(count), str(i), str(first), str(last), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(count)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return join([json.loads(output.splitlines()[-1]) for output, _ in outputs])


def run_here(first, last, folder):
    """Return the draws of this process alone."""
    with jax.numpy_rank_promotion("allow"):
        return join([json.loads(json.dumps(train(first, last, folder)))])


def join(parts):
    """Return the draws, tokens and sums of all steps from the parts of the processes."""
    steps = range(len(parts[0]["draws"]))
    draws = [[[example for part in parts for example in part["draws"][step][k]] for k in (0, 1)] for step in steps]
    tokens = [[[row for part in parts for row in part["tokens"][step][i]] for i in (0, 1)] for step in steps]
    assert all(part["sums"] == parts[0]["sums"] for part in parts)
    return draws, tokens, parts[0]["sums"]


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing_also_at_a_restart(folder):
    whole = run_here(0, STEPS, folder)
    assert len({tuple(ids) for ids, _ in whole[0]}) == STEPS
    # Two processes stop after the first step that sees feedback, four continue, and one finishes.
    pieces = run(2, 0, 3, folder), run(4, 3, 5, folder), run_here(5, STEPS, folder)
    assert tuple(list(chain(*parts)) for parts in zip(*pieces, strict=True)) == whole
